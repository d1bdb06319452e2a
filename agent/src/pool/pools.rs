//! The module's face: reserve, commit, release, look.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    Allocation, Assigned, OpenError, Owner, PoolError, PoolUsage, Record, Request, Standing,
    annotations::Wish,
    clock::{Clock, millis},
    codec::encode,
    select::select,
    state::{State, Taken},
    store::{Contents, Store},
    writer::{self, Job, What, lock},
};
use crate::catalog::Catalog;

/// Settings of the pools.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a released address rests before it is handed out again: neighbours, conntrack entries
    /// and load balancers still know the old pod.
    pub rest: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rest: Duration::from_secs(60),
        }
    }
}

/// All addresses of this node. Clones share them.
///
/// The last clone waits, when it is dropped, until what was requested is written.
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<Mutex<State>>,
    clock: Clock,
    rest: Duration,
    /// None only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

/// The answer to a request.
#[derive(Debug)]
pub enum Reserved {
    /// The owner has addresses already: ADD was repeated.
    Existing(Allocation),
    /// Addresses that are the caller's to commit, or to drop.
    New(Grant),
}

/// Addresses that are taken in memory only.
///
/// Dropping it gives them back at once, without a rest: nobody has seen them.
#[must_use = "dropping a grant gives its addresses back"]
pub struct Grant {
    pools: Pools,
    owner: Arc<Owner>,
    assigned: Vec<Assigned>,
    /// Emptied by the commit.
    taken: Option<Vec<Taken>>,
}

impl Pools {
    /// Opens the record in `state_dir`, making both if they are not there, and recovers what it holds.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`]: another agent has it, it is damaged, or the file system refuses.
    pub fn open(state_dir: &Path, options: Options) -> Result<Self, OpenError> {
        let (store, contents) = Store::open(state_dir)?;
        Self::start(store, contents, &options, Clock::system(), state_dir)
    }

    pub(super) fn start(
        store: Store,
        contents: Contents,
        options: &Options,
        clock: Clock,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let mut state = State::new(options.rest);
        for allocation in contents.allocations {
            let owner = allocation.owner.clone();
            if !state.recover(allocation) {
                let detail = format!("an address of {owner} has another owner as well");
                return Err(OpenError::Corrupt {
                    path: path.to_owned(),
                    detail,
                });
            }
        }
        for (address, released_at) in contents.released {
            state.recover_released(address, clock.moment_of(released_at));
        }
        let state = Arc::new(Mutex::new(state));
        let (sender, receiver) = mpsc::channel();
        let writer =
            writer::spawn(store, Arc::clone(&state), clock.clone(), receiver).map_err(|error| {
                OpenError::Failed {
                    path: path.to_owned(),
                    detail: format!("starting a thread: {error}"),
                }
            })?;
        Ok(Self {
            inner: Arc::new(Inner {
                state,
                clock,
                rest: options.rest,
                jobs: Some(sender),
                writer: Some(writer),
            }),
        })
    }

    /// Chooses addresses for the request, in memory: microseconds, no waiting.
    ///
    /// An owner that has addresses gets those, whatever the catalog says now. Two requests of one
    /// owner at the same time: the second is [`PoolError::Busy`].
    ///
    /// # Errors
    /// [`PoolError`]; then nothing is taken.
    pub fn reserve(&self, request: &Request<'_>) -> Result<Reserved, PoolError> {
        if let Some(allocation) = lock(&self.inner.state).existing(request.owner)? {
            return Ok(Reserved::Existing(Allocation::clone(&allocation)));
        }
        let wish = Wish::read(request.subject, &request.owner.interface)?;
        let named = wish.source();
        let request = &Request {
            source: named.map_or(request.source, |(_, source)| source),
            annotation: named.map(|(annotation, _)| annotation),
            ..*request
        };
        let selection = select(request)?;
        let owner = Arc::new(request.owner.clone());
        let mut state = lock(&self.inner.state);
        // Once more: the lock was open while the pools were selected.
        if let Some(allocation) = state.existing(request.owner)? {
            return Ok(Reserved::Existing(Allocation::clone(&allocation)));
        }
        let (taken, assigned) = state.take(
            &owner,
            &selection,
            &wish,
            request.catalog,
            self.inner.clock.now(),
        )?;
        drop(state);
        Ok(Reserved::New(Grant {
            pools: self.clone(),
            owner,
            assigned,
            taken: Some(taken),
        }))
    }

    /// Several interfaces of a pod at once: all of them get their addresses, or none takes any.
    ///
    /// # Errors
    /// The first [`PoolError`]; what was taken for the others is given back without a rest.
    pub fn reserve_all(&self, requests: &[Request<'_>]) -> Result<Vec<Reserved>, PoolError> {
        requests
            .iter()
            .map(|request| self.reserve(request))
            .collect()
    }

    /// Gives back what the owner has; returns after it is on disk. `None`: the owner has nothing.
    ///
    /// The addresses rest before they are handed out again.
    ///
    /// # Errors
    /// [`PoolError::Busy`] while another request of this owner is served; [`PoolError::Store`], and
    /// then the owner still has them.
    pub async fn release(&self, owner: &Owner) -> Result<Option<Allocation>, PoolError> {
        self.remove(owner, true).await
    }

    /// As [`Pools::release`], for addresses that nobody was told of and nothing was sent from: they
    /// need no rest. Without this, a pod that fails over and over would drain a small pool.
    ///
    /// # Errors
    /// As [`Pools::release`].
    pub async fn release_unused(&self, owner: &Owner) -> Result<Option<Allocation>, PoolError> {
        self.remove(owner, false).await
    }

    async fn remove(&self, owner: &Owner, rest: bool) -> Result<Option<Allocation>, PoolError> {
        let Some(allocation) = lock(&self.inner.state).begin(owner, "releasing")? else {
            return Ok(None);
        };
        self.write(What::Remove { allocation, rest })
            .await
            .map(Some)
    }

    /// Replaces the record that is kept with the owner's addresses; returns after it is on disk.
    ///
    /// # Errors
    /// [`PoolError::NotHeld`] if it has none, [`PoolError::Busy`], or [`PoolError::Store`] with the
    /// old record still there.
    pub async fn update_record(
        &self,
        owner: &Owner,
        record: impl Into<Record>,
    ) -> Result<Allocation, PoolError> {
        let record = record.into();
        let Some(old) = lock(&self.inner.state).begin(owner, "updating")? else {
            return Err(PoolError::NotHeld {
                owner: owner.clone(),
            });
        };
        let new = Arc::new(Allocation {
            record,
            ..Allocation::clone(&old)
        });
        let value = self.encode(&new, |state| state.hold(&old))?;
        self.write(What::Update { old, new, value }).await
    }

    /// What the owner has on disk.
    #[must_use]
    pub fn get(&self, owner: &Owner) -> Option<Allocation> {
        lock(&self.inner.state).get(owner).map(Arc::unwrap_or_clone)
    }

    /// All that is on disk, by owner.
    #[must_use]
    pub fn list(&self) -> Vec<Allocation> {
        let mut all = lock(&self.inner.state).all();
        all.sort_by(|a, b| a.owner.cmp(&b.owner));
        all.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Who has an address, or when it was released, and who had it before.
    #[must_use]
    pub fn look(&self, address: IpAddr) -> Standing {
        let clock = &self.inner.clock;
        let (now, rest) = (clock.now(), millis(self.inner.rest));
        let look = lock(&self.inner.state).look(address);
        let ago = |moment: i64| u64::try_from(now.saturating_sub(moment)).unwrap_or(0);
        let left = |moment: i64| moment.saturating_add(rest).saturating_sub(now);
        Standing {
            holder: look.holder.map(Arc::unwrap_or_clone),
            allocation: look.allocation.map(Arc::unwrap_or_clone),
            released_at: look
                .released
                .map(|moment| clock.unix_millis().saturating_sub(ago(moment)) / 1000),
            rests_for: look
                .released
                .map_or(0, |moment| u64::try_from(left(moment)).unwrap_or(0)),
            past: look.past,
        }
    }

    /// How full each pool of the catalog is, in the catalog's order.
    #[must_use]
    pub fn usage(&self, catalog: &Catalog) -> Vec<PoolUsage> {
        let now = self.inner.clock.now();
        let state = lock(&self.inner.state);
        let usage = |pool: &crate::catalog::Pool| {
            let count = state.count(pool, now);
            let total = pool.ranges.len();
            PoolUsage {
                name: pool.name.clone(),
                family: pool.family,
                subnet: pool.subnet,
                total,
                used: count.used.saturating_add(count.held_reserved),
                resting: count.resting,
                reserved: pool.reserved.len(),
                free: total.saturating_sub(u128::from(count.used) + u128::from(count.resting)),
                node_names: pool.node_names.clone(),
                networks: pool.networks.clone(),
                default: pool.default,
                disabled: pool.disabled,
            }
        };
        catalog.pools().iter().map(usage).collect()
    }

    /// The allocation as it goes to disk: encoded here, by the caller's thread, as the one that writes
    /// has enough to do.
    fn encode(
        &self,
        allocation: &Allocation,
        undo: impl FnOnce(&mut State),
    ) -> Result<Arc<[u8]>, PoolError> {
        encode(allocation).map(Into::into).map_err(|error| {
            undo(&mut lock(&self.inner.state));
            PoolError::Encode(Arc::new(error))
        })
    }

    /// Sends the change at once and waits for the disk; dropping the future does not take it back.
    async fn write(&self, what: What) -> Result<Allocation, PoolError> {
        let (reply, answer) = oneshot::channel();
        if let Some(jobs) = &self.inner.jobs {
            // If nobody receives it, the reply's other end goes with it, and the answer below says so.
            let _ = jobs.send(Job { what, reply });
        }
        match answer.await {
            Ok(result) => Ok(result.map(Arc::unwrap_or_clone)?),
            Err(oneshot::error::RecvError { .. }) => Err(PoolError::WriterDied),
        }
    }
}

impl Grant {
    /// The addresses: one of each family that the pod is to have, IPv4 first.
    #[must_use]
    pub fn assigned(&self) -> &[Assigned] {
        &self.assigned
    }

    /// Whose they are to be.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Writes the addresses and `record` down; returns after they are on disk.
    ///
    /// The write begins with the first poll and is not taken back if the future is dropped
    /// after that: the owner then has the addresses until it is released.
    ///
    /// # Errors
    /// [`PoolError::Store`]; the addresses are given back.
    pub async fn commit(mut self, record: impl Into<Record>) -> Result<Allocation, PoolError> {
        let allocation = Arc::new(Allocation {
            owner: Owner::clone(&self.owner),
            assigned: std::mem::take(&mut self.assigned),
            record: record.into(),
            since: self.pools.inner.clock.unix_millis() / 1000,
        });
        // On failure the grant is dropped here, and gives the addresses back.
        let value = self.pools.encode(&allocation, |_| ())?;
        // Only this empties it, and this consumes the grant.
        let taken = self.taken.take().unwrap_or_default();
        let what = What::Add {
            allocation,
            taken,
            value,
        };
        self.pools.write(what).await
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            lock(&self.pools.inner.state).abandon(&self.owner, &taken);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been reported by its thread; dropping must not panic again.
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools")
            .field("allocations", &lock(&self.inner.state).all().len())
            .finish()
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("owner", &self.owner)
            .field("assigned", &self.assigned)
            .finish_non_exhaustive()
    }
}
