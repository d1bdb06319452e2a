//! What the rest of the agent sees of the cloud, and asks of its follower.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use ebbtide_cloud::{LeftOut, Provider, ledger::Ledger};
use tokio::{sync::Notify, time::timeout};

/// How long [`Cloud::refresh`] waits for a read.
const PATIENCE: Duration = Duration::from_secs(35);

/// The follower's state, and the requests to it.
#[derive(Debug, Default)]
pub struct Cloud {
    state: Mutex<State>,
    /// Read soon, and more often for a while.
    hurry: Notify,
    /// A read has ended.
    read: Notify,
}

/// What is known of the cloud.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The cloud that is asked; else why there is none.
    pub(super) provider: Option<Result<Provider, String>>,
    /// Where its service is.
    pub(super) endpoint: String,
    /// NICs of requests whose network is not declared.
    pub(super) requested: BTreeSet<String>,
    /// When the service was last read whole.
    pub(super) last_read: Option<SystemTime>,
    /// Why it could not be read the last time, and how often on end.
    pub(super) failed: Option<(String, u32)>,
    /// What it told that no pod can have.
    pub(super) left_out: Vec<LeftOut>,
    /// What may be believed.
    pub(super) ledger: Ledger,
}

impl Cloud {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a pod found no address of this NIC: the service is asked soon, and more often for a minute.
    pub fn found_none(&self, link: &str) {
        self.state().requested.insert(link.to_owned());
        self.hurry.notify_one();
    }

    /// Notes that the node's links changed: a NIC that was attached is told after a moment.
    pub fn links_changed(&self) {
        self.hurry.notify_one();
    }

    /// Has the service read now, and waits until that is done.
    pub async fn refresh(&self) {
        let read = self.read.notified();
        self.hurry.notify_one();
        // A service that hangs has its own limits; what it says then is in the report.
        let _late = timeout(PATIENCE, read).await;
    }

    pub(super) async fn hurried(&self) {
        self.hurry.notified().await;
    }

    pub(super) fn has_read(&self) {
        self.read.notify_waiters();
    }
}
