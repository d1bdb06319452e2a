//! The interface of the pools: reserve, commit, release.

mod grant;
mod reservations;
mod view;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use super::{
    Allocation, OpenError, Owner, PoolError, Reason, Record, Request, Reservation, ReservationKey,
    annotations::Requested,
    clock::Clock,
    select::select,
    state::{Asked, State, can_be_met},
    store::{self, Change, Contents, Journal, encode},
    writer::{self, AfterRelease, Job, Operation, lock},
};

pub use grant::Grant;
pub use reservations::Adopt;
pub use view::{Assignment, Snapshot};

/// Settings of the pools.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cooldown of a released address before it is handed out again: neighbours, conntrack
    /// entries and load balancers still have the old pod.
    pub cooldown: Duration,
    /// Whether the addresses of a StatefulSet's pod are reserved for its next sandbox on this node.
    pub sticky: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cooldown: Duration::from_secs(60),
            sticky: false,
        }
    }
}

/// All addresses of this node. Clones share them.
///
/// Dropping the last clone waits until all requested changes are written.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::pool::{Options, Owner, Pools, Request, Reserved};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pools = "
/// # apiVersion: spiderpool.spidernet.io/v2beta1
/// # kind: SpiderIPPool
/// # metadata: {name: ens5-v4}
/// # spec: {default: true, subnet: 10.0.0.0/24, ips: [10.0.0.5-10.0.0.6]}
/// # ";
/// # let catalog = ebbtide_ipam::catalog::Catalog::from_texts([("pools.yaml".as_ref(), pools)]);
/// # let directory = tempfile::tempdir()?;
/// # let owner = |container_id: &str| Owner {
/// #     network: "pods".into(),
/// #     container_id: container_id.into(),
/// #     interface: "eth0".into(),
/// # };
/// // `catalog` has one pool: 10.0.0.5-10.0.0.6.
/// let pools = Pools::open(directory.path(), Options::default())?;
/// let first = owner("4f1c");
/// let Reserved::New(grant) = pools.reserve(&Request::new(&first, "node1", &catalog))? else {
///     unreachable!("it has no addresses yet")
/// };
/// // What is planned for the address is stored with it, before the kernel is touched.
/// let allocation = grant.commit(serde_json::json!({"mtu": 9001})).await?;
/// assert_eq!(allocation.assigned[0].address.to_string(), "10.0.0.5");
///
/// // After DEL the address cools down: the next pod gets another one.
/// pools.release(&first).await?;
/// let second = owner("9ab0");
/// let Reserved::New(grant) = pools.reserve(&Request::new(&second, "node1", &catalog))? else {
///     unreachable!("it has no addresses yet")
/// };
/// assert_eq!(grant.assigned()[0].address.to_string(), "10.0.0.6");
/// assert!(pools.lookup("10.0.0.5".parse()?).cooldown_for > 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<Mutex<State>>,
    clock: Clock,
    options: Options,
    changes: watch::Receiver<u64>,
    /// None only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

/// The result of [`Pools::reserve`].
#[derive(Debug)]
pub enum Reserved {
    /// The owner has addresses already: ADD was repeated.
    Existing(Allocation),
    /// Addresses that the caller commits or drops.
    New(Grant),
}

impl Pools {
    /// Opens the store in `state_dir`, creating both if they do not exist, and recovers its
    /// contents. Blocks on the disk.
    ///
    /// # Errors
    /// If another agent has the store open, it is damaged or of another version, or the file system fails.
    pub fn open(state_dir: &Path, options: Options) -> Result<Self, OpenError> {
        let (journal, contents) = store::open(state_dir)?;
        Self::start(journal, contents, &options, Clock::system(), state_dir)
    }

    pub(super) fn start(
        mut journal: Journal,
        mut contents: Contents,
        options: &Options,
        clock: Clock,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let failed = |detail: String| OpenError::Failed {
            path: path.to_owned(),
            detail,
        };
        if !options.sticky {
            let released = end_sticky(&mut contents, clock.unix_millis());
            let mut lines = released.map_err(|error| failed(error.to_string()))?;
            if !lines.is_empty() {
                journal
                    .append(&mut lines)
                    .map_err(|error| failed(error.to_string()))?;
            }
        }
        let state = Arc::new(Mutex::new(recover(contents, options, &clock, path)?));
        let (sender, receiver) = mpsc::channel();
        let (counter, changes) = watch::channel(0);
        let writer = writer::spawn(
            journal,
            Arc::clone(&state),
            clock.clone(),
            counter,
            receiver,
        )
        .map_err(|error| failed(format!("starting a thread: {error}")))?;
        Ok(Self {
            inner: Arc::new(Inner {
                state,
                clock,
                options: options.clone(),
                changes,
                jobs: Some(sender),
                writer: Some(writer),
            }),
        })
    }

    /// Chooses addresses for the request, in memory: microseconds, no waiting.
    ///
    /// An owner that has addresses gets those, whatever the catalog says now. A pod with a reservation gets
    /// its addresses, if they are of the pools that it is to have now; one that released some a moment ago
    /// gets them back. Of two concurrent requests of one owner the second fails with [`PoolError::Busy`].
    ///
    /// # Errors
    /// If an annotation is invalid, no pool serves the request or all are full, a requested address
    /// is unavailable, or another request is in flight. Nothing is taken then.
    pub fn reserve(&self, request: &Request<'_>) -> Result<Reserved, PoolError> {
        if let Some(allocation) = lock(&self.inner.state).existing(request.owner)? {
            return Ok(Reserved::Existing(Allocation::clone(&allocation)));
        }
        let requested = Requested::read(request.subject, &request.owner.interface)?;
        let named = requested.source();
        let named = named.filter(|_| request.metadata.is_none() || !requested.is_of_namespace());
        let request = &Request {
            source: named.map_or(request.source, |(_, source)| source),
            annotation: named.map(|(annotation, _)| annotation),
            ..*request
        };
        let selection = select(request)?;
        can_be_met(request.requested_addresses, &selection)?;
        let owner = Arc::new(request.owner.clone());
        let pod = request.subject.pod_ref();
        let mut state = lock(&self.inner.state);
        // Check again: the lock was released while the pools were selected.
        if let Some(allocation) = state.existing(request.owner)? {
            return Ok(Reserved::Existing(Allocation::clone(&allocation)));
        }
        let bundle = state.take(&Asked {
            owner: &owner,
            pod: pod.as_ref(),
            selection: &selection,
            requested: &requested,
            requested_addresses: request.requested_addresses,
            catalog: request.catalog,
            now: self.inner.clock.now(),
        })?;
        drop(state);
        let sticky = self.inner.options.sticky && request.subject.is_stateful();
        Ok(Reserved::New(Grant::new(
            self.clone(),
            owner,
            pod,
            sticky,
            bundle,
        )))
    }

    /// Releases the owner's addresses after its sandbox was removed; returns once that is durable. `None`: it has none.
    ///
    /// The addresses cool down before they are handed out again, or are reserved for the pod if they are sticky.
    ///
    /// # Errors
    /// If another request of this owner is in flight ([`PoolError::Busy`]), or if the disk fails
    /// ([`PoolError::Store`]); the owner then still has them.
    pub async fn release(&self, owner: &Owner) -> Result<Option<Allocation>, PoolError> {
        self.remove(owner, |allocation, state| {
            self.after_release(allocation, state)
        })
        .await
    }

    /// Releases as [`Pools::release`], but without a reservation: by a person's request.
    ///
    /// # Errors
    /// As [`Pools::release`].
    pub async fn release_permanently(
        &self,
        owner: &Owner,
    ) -> Result<Option<Allocation>, PoolError> {
        self.remove(owner, |_, _| AfterRelease::CoolDown).await
    }

    /// Releases, as [`Pools::release`], addresses that were never used or announced: they need no
    /// cooldown. Without this, a pod that fails over and over would drain a small pool.
    ///
    /// # Errors
    /// As [`Pools::release`].
    pub async fn release_unused(&self, owner: &Owner) -> Result<Option<Allocation>, PoolError> {
        self.remove(owner, |allocation, state| {
            match self.after_release(allocation, state) {
                AfterRelease::CoolDown => AfterRelease::Free,
                wait => wait,
            }
        })
        .await
    }

    async fn remove(
        &self,
        owner: &Owner,
        then: impl FnOnce(&Allocation, &State) -> AfterRelease,
    ) -> Result<Option<Allocation>, PoolError> {
        let (allocation, then) = {
            let mut state = lock(&self.inner.state);
            let Some(allocation) = state.begin(owner, "releasing")? else {
                return Ok(None);
            };
            let then = then(&allocation, &state);
            (allocation, then)
        };
        let what = Operation::Remove {
            allocation: Arc::clone(&allocation),
            then,
        };
        self.write(what).await?;
        Ok(Some(Arc::unwrap_or_clone(allocation)))
    }

    /// Decides what happens to the addresses of a removed sandbox.
    fn after_release(&self, allocation: &Allocation, state: &State) -> AfterRelease {
        let interface = &allocation.owner.interface;
        match &allocation.pod {
            Some(pod)
                if allocation.sticky
                    && self.inner.options.sticky
                    && !state.is_reserved(&ReservationKey::new(pod, interface)) =>
            {
                AfterRelease::Wait(Arc::new(Reservation {
                    pod: pod.clone(),
                    interface: interface.clone(),
                    reason: Reason::Sticky,
                    since: self.inner.clock.unix_millis() / 1000,
                    assigned: allocation.assigned.clone(),
                }))
            }
            _ => AfterRelease::CoolDown,
        }
    }

    /// Replaces the record of the owner; returns once it is durable.
    ///
    /// # Errors
    /// If the owner has no addresses ([`PoolError::NotHeld`]), if another request of it is in flight
    /// ([`PoolError::Busy`]), or if the disk fails ([`PoolError::Store`]); the old record then stays.
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
        let line = match line(&new) {
            Ok(line) => line,
            Err(error) => {
                lock(&self.inner.state).hold(&old);
                return Err(error);
            }
        };
        let update = Operation::Update {
            old,
            new: Arc::clone(&new),
            line,
        };
        self.write(update).await?;
        Ok(Arc::unwrap_or_clone(new))
    }

    /// Sends the change at once and waits for the disk; dropping the future does not undo it.
    async fn write(&self, what: Operation) -> Result<(), PoolError> {
        let (reply, answer) = oneshot::channel();
        if let Some(jobs) = &self.inner.jobs {
            // If the receiver is gone, the reply's sender is dropped with the job, and the answer below reports that.
            let _ = jobs.send(Job { what, reply });
        }
        match answer.await {
            Ok(result) => Ok(result?),
            Err(oneshot::error::RecvError { .. }) => Err(PoolError::WriterDied),
        }
    }
}

/// Encodes the allocation's line, in the caller's thread: the writer has enough to do.
fn line(allocation: &Allocation) -> Result<Vec<u8>, PoolError> {
    let mut line = Vec::with_capacity(allocation.record.as_str().len() + 512);
    match encode(&mut line, Change::Put(allocation)) {
        Ok(()) => Ok(line),
        Err(error) => Err(PoolError::Encode(Arc::new(error))),
    }
}

fn recover(
    contents: Contents,
    options: &Options,
    clock: &Clock,
    path: &Path,
) -> Result<State, OpenError> {
    let double = |who: String| OpenError::Corrupt {
        path: path.to_owned(),
        detail: format!("an address of {who} has another owner as well"),
    };
    let mut state = State::new(options.cooldown);
    for allocation in contents.allocations.into_values() {
        if !state.recover(Arc::clone(&allocation)) {
            return Err(double(allocation.owner.to_string()));
        }
    }
    for reservation in contents.reservations.into_values() {
        if !state.recover_reservation(Arc::clone(&reservation)) {
            return Err(double(format!("pod {}", reservation.pod)));
        }
    }
    for (address, released_at) in contents.released {
        state.recover_released(address, clock.moment_of(released_at));
    }
    Ok(state)
}

/// Ends all sticky reservations after the option was turned off; returns the lines to write.
fn end_sticky(contents: &mut Contents, date: u64) -> serde_json::Result<Vec<u8>> {
    let mut lines = Vec::new();
    let (sticky, others) = std::mem::take(&mut contents.reservations)
        .into_iter()
        .partition(|(_, reservation)| reservation.reason == Reason::Sticky);
    contents.reservations = others;
    for reservation in std::collections::BTreeMap::into_values(sticky) {
        encode(&mut lines, Change::Unreserve(&reservation, Some(date)))?;
        let addresses = reservation.assigned.iter().map(|each| (each.address, date));
        contents.released.extend(addresses);
    }
    Ok(lines)
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
