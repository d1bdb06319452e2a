//! What the rest of the agent sees of the cloud, and asks of its follower.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use ebbtide_cloud::{LeftOut, Provider, ledger::Ledger};
use ebbtide_types::Family;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{Sets, Sharing, waiting::WaitingPods};

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
    waiting: Mutex<WaitingPods>,
    /// Something is to be told to the cluster.
    news: Notify,
    /// Taken by the task that tells the cluster.
    sharing: Mutex<Option<Sharing>>,
}

/// What the cloud controller asks back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AskedBack {
    /// What is asked back now.
    pub(super) asked: Sets,
    /// What of it nobody has, as the cluster was told.
    pub(super) surrendered: Sets,
    /// What was asked back, and is kept.
    pub(super) kept: Sets,
    /// Why it is not known what is asked back now.
    pub(super) unknown: Option<String>,
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
    /// What is asked back, for people.
    pub(super) asked_back: AskedBack,
    /// What nobody gets for that reason; the same one as long as it is the same.
    pub(super) withheld: Arc<Sets>,
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

    /// Notes that this pod found no address of the NIC; `family` is the one that lacks, or none if all do.
    pub(super) fn found_none(&self, link: &str, pod: &str, family: Option<Family>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.found_none(link, pod, family, Instant::now());
        self.news.notify_one();
    }

    /// Notes that this pod, which may have found none before, has its addresses of the NIC.
    pub(super) fn found(&self, link: &str, pod: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.found(link, pod) {
            self.news.notify_one();
        }
    }

    /// Returns how many pods wait for an address of the NIC; for `first`, if any is good for them.
    pub(super) fn waiting(&self, link: &str, first: Family) -> BTreeMap<Family, u64> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.count(link, first, Instant::now())
    }

    /// Waits until there may be something new to tell.
    pub(crate) async fn has_news(&self) {
        self.news.notified().await;
    }

    /// Returns the addresses that nobody gets, since the cloud controller asks for them back, or did so.
    pub(crate) fn withheld(&self) -> Arc<Sets> {
        Arc::clone(&self.state().withheld)
    }

    /// Replaces what is asked back.
    pub(super) fn set_asked_back(&self, asked_back: AskedBack, withheld: Sets) {
        let mut state = self.state();
        state.asked_back = asked_back;
        if *state.withheld != withheld {
            state.withheld = Arc::new(withheld);
        }
    }

    /// Keeps what the task needs that tells the cluster.
    pub(super) fn put_sharing(&self, sharing: Sharing) {
        let mut own = self.sharing.lock().unwrap_or_else(PoisonError::into_inner);
        *own = Some(sharing);
    }

    /// Returns it, once.
    pub(crate) fn take_sharing(&self) -> Option<Sharing> {
        let mut own = self.sharing.lock().unwrap_or_else(PoisonError::into_inner);
        own.take()
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
