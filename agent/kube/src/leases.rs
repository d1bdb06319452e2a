//! Leases this node's share of shared pools: what it uses, and a few more.
//!
//! An address is handed out here only while it is in this node's lease. It is given back only after
//! [`Pools::withdraw`] guarantees that no pod gets it here, and after the smaller lease is on disk:
//! an agent that dies at any point has too few addresses, never too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ebbtide_ipam::{
    catalog::{AddressSet, Catalog, Pool},
    pool::{Full, Pools},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use super::{
    cluster::Cluster,
    evidence,
    lease_map::{self, Error},
    lease_table::LeaseTable,
    object::Kind,
};

/// How long a request waits for a lease: other nodes may have to give addresses back.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The polling interval of a waiting request.
const SLICE: Duration = Duration::from_millis(500);

/// The intervals at which a node maintains its leases.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The interval between two checks for idle addresses. A surplus that lasts twice that long is given back.
    pub look: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(30),
        }
    }
}

/// The kinds that leases depend on: pods affect them only through the pools.
pub(super) const KINDS: [Kind; 3] = [Kind::Pool, Kind::Reserved, Kind::Lease];

/// The maximum number of addresses kept for future pods.
const SPARE: u64 = 16;

/// Maintains this node's leases.
#[derive(Debug)]
pub struct Leases {
    cluster: Arc<Cluster>,
    pools: Pools,
    catalog: watch::Receiver<Arc<Catalog>>,
    pace: Pace,
    /// The number of waiting requests, by pool.
    demand: Mutex<BTreeMap<String, u64>>,
    wake: Notify,
}

/// Returns how many addresses without a pod a node with `used` ones keeps.
fn spare(used: u64) -> u64 {
    (used / 4).clamp(1, SPARE)
}

impl Leases {
    /// Starts leasing. Ends with the runtime.
    pub fn start(
        cluster: Arc<Cluster>,
        pools: Pools,
        catalog: watch::Receiver<Arc<Catalog>>,
    ) -> Arc<Self> {
        Self::start_with(cluster, pools, catalog, Pace::default())
    }

    /// Starts as [`Leases::start`], at another pace.
    pub fn start_with(
        cluster: Arc<Cluster>,
        pools: Pools,
        catalog: watch::Receiver<Arc<Catalog>>,
        pace: Pace,
    ) -> Arc<Self> {
        let leases = Arc::new(Self {
            cluster,
            pools,
            catalog,
            pace,
            demand: Mutex::default(),
            wake: Notify::new(),
        });
        tokio::spawn(Arc::clone(&leases).run());
        leases
    }

    /// Returns the deadline for a request's retries.
    #[must_use]
    pub fn deadline() -> Instant {
        Instant::now() + TIMEOUT
    }

    /// Waits, after a request found all its pools full, until a shared one may have more. False:
    /// none is shared, or the deadline has passed.
    pub async fn more(&self, full: &Full, deadline: Instant) -> bool {
        let mut catalogs = self.catalog.clone();
        let catalog = Arc::clone(&catalogs.borrow_and_update());
        let names: Vec<String> = full.pools.iter().map(|each| each.pool.clone()).collect();
        let shared = |name: &&String| catalog.pool(name).is_some_and(Pool::is_shared);
        let Some(name) = names.iter().find(shared) else {
            return false;
        };
        *self.demand().entry(name.clone()).or_default() += 1;
        self.wake.notify_one();
        // In slices, since the catalog may have changed just before it was read.
        let slice = deadline.min(Instant::now() + SLICE);
        let changed = timeout_at(slice, catalogs.changed()).await;
        if let Some(count) = self.demand().get_mut(name) {
            *count = count.saturating_sub(1);
        }
        !matches!(changed, Ok(Err(_))) && Instant::now() < deadline
    }

    fn demand(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>) {
        let mut changes = self.cluster.changes(&KINDS);
        let mut idle_since: BTreeMap<String, Instant> = BTreeMap::new();
        let mut not_made = BTreeSet::new();
        loop {
            changes.mark_unchanged();
            let declared = self.cluster.mirror().declared_catalog();
            for pool in declared.pools().iter().filter(|pool| self.concerns(pool)) {
                match self.look_after(pool, &mut idle_since).await {
                    Ok(()) => drop(not_made.remove(&pool.name)),
                    // Retried twice a second while a pod waits.
                    Err(Error::NotMade(_)) if !not_made.insert(pool.name.clone()) => {}
                    Err(e) => warn!("leases of SpiderIPPool {}: {e}", pool.name),
                }
            }
            let look = Instant::now() + self.pace.look;
            tokio::select! {
                () = self.wake.notified() => {}
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }

    fn concerns(&self, pool: &Pool) -> bool {
        pool.is_shared()
            && (pool.node_names.is_empty() || pool.node_names.contains(&self.cluster.node))
    }

    /// Takes what is missing and gives back what is idle.
    async fn look_after(
        &self,
        pool: &Pool,
        idle_since: &mut BTreeMap<String, Instant>,
    ) -> Result<(), Error> {
        let known = self.cluster.mirror().lease_table(&pool.name, pool.family)?;
        let lease = known.of(&self.cluster.node);
        let idle = self.idle(&lease);
        let used = u64::try_from(lease.len().saturating_sub(idle.len())).unwrap_or(u64::MAX);
        let waiting = self.demand().get(&pool.name).copied().unwrap_or(0);
        let idle_count = u64::try_from(idle.len()).unwrap_or(u64::MAX);
        if waiting > idle_count {
            idle_since.remove(&pool.name);
            return self.acquire(pool, waiting - idle_count, spare(used)).await;
        }
        let keep = if known.has_other_requests(&self.cluster.node) {
            waiting
        } else {
            let since = *idle_since
                .entry(pool.name.clone())
                .or_insert_with(Instant::now);
            if idle_count <= waiting + spare(used) {
                idle_since.remove(&pool.name);
                return Ok(());
            }
            if since.elapsed() < self.pace.look * 2 {
                return Ok(());
            }
            waiting + spare(used)
        };
        if idle_count > keep {
            let surplus = idle.without(&idle.first(u128::from(keep)));
            return self.release(pool, &surplus).await;
        }
        Ok(())
    }

    /// Returns the free addresses of the lease that do not cool down and that pods may get. One
    /// that the node itself has stays leased to it, so that no other node hands it out.
    fn idle(&self, lease: &AddressSet) -> AddressSet {
        let mut idle = lease.clone();
        // A lease is as large as this node's use of the pool: checking each address is cheap.
        for index in 0..lease.len() {
            let Some(address) = lease.get(index) else {
                break;
            };
            let standing = self.pools.lookup(address);
            let busy = standing.holder.is_some()
                || standing.reservation.is_some()
                || standing.cooldown_for > 0
                || standing.withheld.is_some();
            if busy {
                idle = idle.without(&AddressSet::single(address));
            }
        }
        idle
    }

    async fn acquire(&self, pool: &Pool, needed: u64, spare: u64) -> Result<(), Error> {
        let used = evidence::holders(&self.cluster, pool).await?;
        let mut barred = AddressSet::of(pool.family, used.keys().copied());
        let (missing, free) = self.take_existing(pool, needed, spare, &barred).await?;
        if missing == 0 || used.is_empty() {
            return Ok(());
        }
        // The status may be late, so the holders that it names are verified if necessary.
        let suspects = used.into_iter();
        let suspects = suspects.filter(|(address, _)| free.contains(*address));
        let gone = evidence::gone(&self.cluster, suspects.collect(), missing).await?;
        if !gone.is_empty() {
            barred = barred.without(&AddressSet::of(pool.family, gone));
            self.take_existing(pool, missing, 0, &barred).await?;
        }
        Ok(())
    }

    /// Leases addresses that are neither leased nor barred, i.e. held by pods without a lease
    /// (Spiderpool's). Returns how many are missing, and which no node has.
    async fn take_existing(
        &self,
        pool: &Pool,
        needed: u64,
        spare: u64,
        barred: &AddressSet,
    ) -> Result<(u64, AddressSet), Error> {
        let node = &self.cluster.node;
        let open = pool.ranges.without(barred);
        let mut got = AddressSet::empty(pool.family);
        let mut left = AddressSet::empty(pool.family);
        let mut missing = needed;
        self.change(pool, |lease_table| {
            let before = lease_table.clone();
            let free = u64::try_from(lease_table.free(&open).len()).unwrap_or(u64::MAX);
            // For future pods only while no other node waits.
            let more = if lease_table.has_other_requests(node) {
                0
            } else {
                spare
            };
            let count = needed.saturating_add(more).min(free);
            got = lease_table.allocate(node, &open, count);
            missing = needed.saturating_sub(count);
            lease_table.set_request(node, missing);
            left = lease_table.free(&pool.ranges);
            // Waiting for other nodes' addresses needs no second write.
            *lease_table != before
        })
        .await?;
        if !got.is_empty() {
            info!(pool = pool.name, addresses = %got, "leased");
            // This node may have had it before.
            self.pools.restore(&got);
        }
        Ok((missing, left))
    }

    async fn release(&self, pool: &Pool, surplus: &AddressSet) -> Result<(), Error> {
        if self.pools.withdraw(surplus).is_err() {
            // A pod took one of them first; the next check handles it.
            return Ok(());
        }
        // First on disk: an agent that restarts must not consider them its own.
        let node = &self.cluster.node;
        self.cluster.shrink_lease(pool, surplus).await?;
        let given = self
            .change(pool, |lease_table| {
                lease_table.release(node, surplus);
                true
            })
            .await;
        match &given {
            Ok(()) => info!(pool = pool.name, addresses = %surplus, "given back"),
            // It is unknown whether the write arrived. Addresses that are still this node's return
            // with the next change of the ConfigMap; until then they are merely unused.
            Err(e) => {
                warn!(
                    pool = pool.name,
                    addresses = %surplus,
                    "shrink this node's lease: the result is unknown: {e}"
                )
            }
        }
        given
    }

    /// Changes the pool's ConfigMap, with retries after conflicts.
    async fn change(
        &self,
        pool: &Pool,
        change: impl FnMut(&mut LeaseTable) -> bool,
    ) -> Result<(), Error> {
        lease_map::change(&self.cluster, pool, change).await
    }
}
