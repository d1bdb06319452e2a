//! What the rest of the agent sees of the cloud, and asks of its follower.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use ebbtide_cloud::{LeftOut, Provider, ledger::Ledger};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

/// How long [`Cloud::refresh`] waits for a read.
const PATIENCE: Duration = Duration::from_secs(35);

/// The follower's state, and the requests to it.
#[derive(Debug, Default)]
pub struct Cloud {
    state: Mutex<State>,
    /// Read soon, and more often for a while.
    hurry: Notify,
    /// How many reads have begun.
    begun: AtomicU64,
    /// The number of the read that ended last.
    ended: watch::Sender<u64>,
}

/// What is known of the cloud.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The cloud that is asked; else why there is none.
    pub(super) provider: Option<Result<Provider, String>>,
    /// Where its service is.
    pub(super) endpoint: String,
    /// NICs of which a request found no address, with the time of the latest one: they are followed for a while, whatever
    /// networks are declared.
    pub(super) requested: BTreeMap<String, Instant>,
    /// When the service was last read whole.
    pub(super) last_read: Option<SystemTime>,
    /// Why it could not be read the last time, and how often on end.
    pub(super) failed: Option<(String, u32)>,
    /// What it told that no pod can have.
    pub(super) left_out: Vec<LeftOut>,
    /// What may be believed.
    pub(super) ledger: Ledger,
    /// Links of which something is told that is about to be believed.
    pub(super) soon: BTreeSet<String>,
}

impl Cloud {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a pod wants an address of this NIC: it is followed from now on, if it was not before.
    pub(super) fn want(&self, link: &str) {
        self.state()
            .requested
            .insert(link.to_owned(), Instant::now());
    }

    /// Notes that the node's links changed: a NIC that was attached is told after a moment.
    pub fn links_changed(&self) {
        self.hurry.notify_one();
    }

    /// Has the service read now, and waits until that is done.
    pub async fn refresh(&self) {
        let number = self.ask();
        // A service that hangs has its own limits; what it says then is in the report.
        let _late = timeout(PATIENCE, self.has_read(number)).await;
    }

    /// Has the service read soon, and more often for a minute. Returns the number of the first read that begins from
    /// now on: one that is under way may have asked already.
    pub(super) fn ask(&self) -> u64 {
        let next = self.begun.load(Ordering::SeqCst) + 1;
        self.hurry.notify_one();
        next
    }

    /// Waits until the read of this number, or a later one, has ended, whether well or not.
    pub(super) async fn has_read(&self, number: u64) {
        let mut ended = self.ended.subscribe();
        // It fails only when this is dropped.
        let _dropped = ended.wait_for(|ended| *ended >= number).await;
    }

    /// Whether there is a service to ask.
    pub(super) fn can_read(&self) -> bool {
        !matches!(self.state().provider, Some(Err(_)))
    }

    /// Whether something is told of a link that is about to be believed.
    pub(super) fn is_soon(&self, link: &str) -> bool {
        self.state().soon.contains(link)
    }

    pub(super) async fn hurried(&self) {
        self.hurry.notified().await;
    }

    /// Counts a read that begins, and returns its number.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Tells those who wait that a read has ended, and that what it told is published.
    pub(super) fn end(&self, number: u64) {
        self.ended.send_replace(number);
    }
}
