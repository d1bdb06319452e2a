//! Pools that nodes share, leased to this node: so much as it uses, and a little more.
//!
//! An address is handed out here only while it is in this node's lease. It is given back only after
//! [`Pools::withdraw`] has promised that nobody gets it here, and after the smaller lease is on disk:
//! an agent that dies at any point knows too little, never too much.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Node},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{ListParams, PostParams},
    core::PartialObjectMeta,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tracing::{debug, info, warn};

use super::{book::Book, cluster::Cluster, object::Kind};
use crate::{
    catalog::{AddressSet, Catalog, Pool, manifest::API_VERSION},
    pool::{Full, Pools},
};

/// On the ConfigMaps.
pub(super) const LABEL: &str = "ebbtide.io/leases";

/// A ConfigMap is called this and the pool.
const PREFIX: &str = "ebbtide-leases.";

/// How long a request waits for a lease: others may have to give something back.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it looks without being told.
const SLICE: Duration = Duration::from_millis(500);

/// Between two looks at what is idle.
const LOOK: Duration = Duration::from_secs(30);

/// Between two tries for a pool that somebody else changed at the same moment, times the try.
const PAUSE: Duration = Duration::from_millis(20);

/// Tries before the next round.
const TRIES: u32 = 20;

/// The most that a node keeps for pods to come.
const SPARE: u64 = 16;

/// This node's leases.
#[derive(Debug)]
pub struct Leases {
    cluster: Arc<Cluster>,
    pools: Pools,
    catalog: watch::Receiver<Arc<Catalog>>,
    /// How many requests wait, by pool.
    demand: Mutex<BTreeMap<String, u64>>,
    wake: Notify,
}

/// Why a pool's leases were not changed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] Box<kube::Error>),
    #[error(transparent)]
    Bad(#[from] super::book::BadLease),
    #[error("keep it on disk: {0}")]
    Disk(#[from] std::io::Error),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Whether addresses of the pool are leased: it is not one node's alone.
#[must_use]
pub fn is_shared(pool: &Pool) -> bool {
    pool.node_names.len() != 1
}

/// How many addresses without a pod a node with so many pods keeps.
fn spare(used: u64) -> u64 {
    (used / 4).clamp(1, SPARE)
}

impl Leases {
    /// Begins to lease. Ends with the runtime.
    pub fn start(
        cluster: Arc<Cluster>,
        pools: Pools,
        catalog: watch::Receiver<Arc<Catalog>>,
    ) -> Arc<Self> {
        let leases = Arc::new(Self {
            cluster,
            pools,
            catalog,
            demand: Mutex::default(),
            wake: Notify::new(),
        });
        tokio::spawn(Arc::clone(&leases).run());
        leases
    }

    /// When a request is to stop trying.
    #[must_use]
    pub fn deadline() -> Instant {
        Instant::now() + PATIENCE
    }

    /// After a request found all its pools full: waits until one that nodes share may have more. False:
    /// there is none, or the time is up.
    pub async fn more(&self, full: &Full, deadline: Instant) -> bool {
        let mut catalogs = self.catalog.clone();
        let catalog = Arc::clone(&catalogs.borrow_and_update());
        let names: Vec<String> = full.pools.iter().map(|each| each.pool.clone()).collect();
        let shared = |name: &&String| catalog.pool(name).is_some_and(is_shared);
        let Some(name) = names.iter().find(shared) else {
            return false;
        };
        *self.demand().entry(name.clone()).or_default() += 1;
        self.wake.notify_one();
        // In slices, since the catalog may have changed just before it was looked at.
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
        let mut changes = self.cluster.changes();
        let mut idle_since: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            changes.mark_unchanged();
            let declared = self.cluster.mirror().declared_catalog();
            for pool in declared.pools().iter().filter(|pool| self.concerns(pool)) {
                if let Err(e) = self.look_after(pool, &mut idle_since).await {
                    warn!("leases of SpiderIPPool {}: {e}", pool.name);
                }
            }
            let look = Instant::now() + LOOK;
            tokio::select! {
                () = self.wake.notified() => {}
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }

    fn concerns(&self, pool: &Pool) -> bool {
        is_shared(pool)
            && (pool.node_names.is_empty() || pool.node_names.contains(&self.cluster.node))
    }

    /// Takes what is missing and gives back what is idle.
    async fn look_after(
        &self,
        pool: &Pool,
        idle_since: &mut BTreeMap<String, Instant>,
    ) -> Result<(), Error> {
        let known = self.cluster.mirror().book(&pool.name, pool.family)?;
        let lease = known.of(&self.cluster.node);
        let idle = self.idle(&lease);
        let used = u64::try_from(lease.len().saturating_sub(idle.len())).unwrap_or(u64::MAX);
        let waiting = self.demand().get(&pool.name).copied().unwrap_or(0);
        let idle_count = u64::try_from(idle.len()).unwrap_or(u64::MAX);
        if waiting > idle_count {
            idle_since.remove(&pool.name);
            return self.take(pool, waiting - idle_count, spare(used)).await;
        }
        let keep = if known.is_wanted_beside(&self.cluster.node) {
            waiting
        } else {
            let since = *idle_since
                .entry(pool.name.clone())
                .or_insert_with(Instant::now);
            if idle_count <= waiting + spare(used) {
                idle_since.remove(&pool.name);
                return Ok(());
            }
            if since.elapsed() < LOOK * 2 {
                return Ok(());
            }
            waiting + spare(used)
        };
        if idle_count > keep {
            let surplus = idle.without(&idle.first(u128::from(keep)));
            return self.give_back(pool, &surplus).await;
        }
        Ok(())
    }

    /// The addresses of the lease that nobody has and that do not rest.
    fn idle(&self, lease: &AddressSet) -> AddressSet {
        let mut idle = lease.clone();
        // A lease is as large as this node's use of the pool: a look at each address is cheap.
        for index in 0..lease.len() {
            let Some(address) = lease.get(index) else {
                break;
            };
            let standing = self.pools.look(address);
            let busy =
                standing.holder.is_some() || standing.claim.is_some() || standing.rests_for > 0;
            if busy {
                idle = idle.without(&AddressSet::single(address));
            }
        }
        idle
    }

    async fn take(&self, pool: &Pool, needed: u64, spare: u64) -> Result<(), Error> {
        let node = &self.cluster.node;
        let mut got = None;
        self.change(pool, |book| {
            let before = book.clone();
            let free = u64::try_from(book.free(&pool.ranges).len()).unwrap_or(u64::MAX);
            // For pods to come only what nobody needs now.
            let more = if book.is_wanted_beside(node) {
                0
            } else {
                spare
            };
            let count = needed.saturating_add(more).min(free);
            let taken = book.take(node, &pool.ranges, count);
            book.want(node, needed.saturating_sub(count));
            got = Some(taken);
            // To wait for what others have needs no second write.
            *book != before
        })
        .await?;
        if let Some(got) = got.filter(|got| !got.is_empty()) {
            info!(pool = pool.name, addresses = %got, "leased");
            // It may have been ours before.
            self.pools.restore(&got);
        }
        Ok(())
    }

    async fn give_back(&self, pool: &Pool, surplus: &AddressSet) -> Result<(), Error> {
        if self.pools.withdraw(surplus).is_err() {
            // A pod was quicker; the next look sees it.
            return Ok(());
        }
        // First on disk: an agent that starts anew must not think that they are its own.
        let node = &self.cluster.node;
        self.cluster.shrink_lease(pool, surplus).await?;
        let given = self
            .change(pool, |book| {
                book.give_back(node, surplus);
                true
            })
            .await;
        match &given {
            Ok(()) => info!(pool = pool.name, addresses = %surplus, "given back"),
            // Whether the write arrived is not known. What is still ours comes back with the
            // next change of the ConfigMap; until then it is merely not used.
            Err(e) => warn!(pool = pool.name, addresses = %surplus, "not given back for sure: {e}"),
        }
        given
    }

    /// Changes the pool's ConfigMap, again if somebody else did at the same moment.
    async fn change(
        &self,
        pool: &Pool,
        change: impl FnMut(&mut Book) -> bool,
    ) -> Result<(), Error> {
        change_book(&self.cluster, pool, change).await
    }
}

async fn change_book(
    cluster: &Cluster,
    pool: &Pool,
    mut change: impl FnMut(&mut Book) -> bool,
) -> Result<(), Error> {
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client.clone());
    let name = map_of(&pool.name);
    let mut tries = 0;
    loop {
        let found = api.get_opt(&name).await?;
        let data = found.as_ref().and_then(|map| map.data.clone());
        let mut book = Book::parse(&data.unwrap_or_default(), pool.family)?;
        if !change(&mut book) {
            return Ok(());
        }
        let is_new = found.is_none();
        let mut map = found.unwrap_or_else(|| new_map(cluster, &name, pool));
        map.metadata.managed_fields = None;
        map.data = Some(book.to_data());
        let params = PostParams::default();
        let written = if is_new {
            api.create(&params, &map).await
        } else {
            api.replace(&name, &params, &map).await
        };
        match written {
            Ok(map) => {
                cluster.note_leases(map);
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE * jitter(&cluster.node, tries)).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// From 1 to three times the try, by the node's name: who collided once should not do so again.
fn jitter(node: &str, tries: u32) -> u32 {
    let seed = node
        .bytes()
        .fold(tries.wrapping_mul(2_654_435_761), |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
    1 + (seed >> 8) % (3 * tries.max(1))
}

fn new_map(cluster: &Cluster, name: &str, pool: &Pool) -> ConfigMap {
    let object = cluster.all(Kind::Pool).into_iter();
    let mut object = object.filter(|object| object.metadata.name.as_deref() == Some(&pool.name));
    let uid = object.next().and_then(|object| object.metadata.uid);
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
            // It goes with its pool.
            owner_references: uid.map(|uid| {
                vec![OwnerReference {
                    api_version: API_VERSION.into(),
                    kind: Kind::Pool.name().into(),
                    name: pool.name.clone(),
                    uid,
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// The ConfigMap of a pool.
pub(super) fn map_of(pool: &str) -> String {
    format!("{PREFIX}{pool}")
}

/// Takes back what nodes had that are no more: the elected agent's work. The evidence is that there is
/// no Node object of that name.
pub(super) async fn reclaim(cluster: &Cluster) {
    let shared: Vec<Pool> = {
        let catalog = cluster.mirror().declared_catalog();
        let pools = catalog.pools().iter();
        pools.filter(|pool| is_shared(pool)).cloned().collect()
    };
    if shared.is_empty() {
        return;
    }
    let api: Api<PartialObjectMeta<Node>> = Api::all(cluster.client.clone());
    let nodes: BTreeSet<String> = match api.list(&ListParams::default()).await {
        Ok(list) => list
            .into_iter()
            .filter_map(|node| node.metadata.name)
            .collect(),
        Err(e) => {
            debug!("nodes cannot be listed: {e}");
            return;
        }
    };
    for pool in shared {
        let changed = change_book(cluster, &pool, |book| {
            let gone = book.reclaim(&nodes);
            for node in &gone {
                info!(
                    pool = pool.name,
                    node, "the node is no more: its lease is free"
                );
            }
            !gone.is_empty()
        });
        if let Err(e) = changed.await {
            warn!("leases of SpiderIPPool {}: {e}", pool.name);
        }
    }
}
