//! Keeps current facts of the node without reading all of them from the kernel each time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::NodeFacts;
use crate::netlink::{Error, Netlink, notification::Notification};

/// A snapshot of the node's facts that netlink notifications keep valid. A notification that contradicts it discards
/// it; the next caller reads it again.
#[derive(Debug, Default)]
pub struct CurrentFacts {
    state: Mutex<State>,
    /// Held by the one caller that reads; the others wait for its result.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether notifications are being received. Without them no snapshot is kept.
    listening: bool,
    snapshot: Option<Arc<NodeFacts>>,
    /// Notifications received while a read is in flight; `None` without one.
    meanwhile: Option<Vec<Notification>>,
}

impl CurrentFacts {
    /// Returns the current facts of the node, from the snapshot if it is still valid.
    ///
    /// # Errors
    /// If they have to be read and the kernel refuses a request.
    pub async fn get(&self, netlink: &Netlink) -> Result<Arc<NodeFacts>, Error> {
        if let Some(snapshot) = self.snapshot() {
            return Ok(snapshot);
        }
        let _turn = self.reading.lock().await;
        if let Some(snapshot) = self.snapshot() {
            return Ok(snapshot);
        }
        self.state().meanwhile = Some(Vec::new());
        let read = NodeFacts::read(netlink).await;
        let mut state = self.state();
        let meanwhile = state.meanwhile.take().unwrap_or_default();
        let facts = Arc::new(read?);
        // What was announced during the read may be in the facts, or half of it.
        if state.listening && !meanwhile.iter().any(|heard| facts.changes_facts(heard)) {
            state.snapshot = Some(Arc::clone(&facts));
        }
        Ok(facts)
    }

    /// Returns facts that are certainly current for the link `name`. Notifications arrive with a delay, and an
    /// interface must not be created on a link that has just been replaced.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn get_for_link(
        &self,
        name: &str,
        netlink: &Netlink,
    ) -> Result<Arc<NodeFacts>, Error> {
        let link = netlink.link(name).await?;
        let facts = self.get(netlink).await?;
        let still = match (facts.nic(name), &link) {
            (Some(nic), Some(link)) => nic.matches(link),
            (None, None) => true,
            _ => false,
        };
        if still {
            return Ok(facts);
        }
        self.forget();
        self.get(netlink).await
    }

    /// Whether `facts` are still the snapshot that [`CurrentFacts::get`] returns.
    #[must_use]
    pub fn is_current(&self, facts: &Arc<NodeFacts>) -> bool {
        self.snapshot().is_some_and(|now| Arc::ptr_eq(&now, facts))
    }

    /// Discards the snapshot, since the kernel contradicts it. The next caller reads it again.
    pub fn invalidate(&self) {
        self.forget();
    }

    /// Records whether netlink notifications are being received. Discards the snapshot in either case, since some may
    /// have been missed before.
    pub fn set_listening(&self, listening: bool) {
        self.forget();
        self.state().listening = listening;
    }

    /// Processes a notification. Returns whether it changes the facts.
    pub fn observe(&self, notification: &Notification) -> bool {
        let mut state = self.state();
        if let Some(meanwhile) = &mut state.meanwhile {
            meanwhile.push(notification.clone());
        }
        let news = match &state.snapshot {
            Some(snapshot) => snapshot.changes_facts(notification),
            None => !matches!(
                notification,
                Notification::ForeignRule
                    | Notification::RouteGone(_)
                    | Notification::RuleGone
                    | Notification::HookGone(_)
                    | Notification::Other
            ),
        };
        if news {
            state.snapshot = None;
        }
        news
    }

    /// Discards the snapshot, and that of a read in flight.
    fn forget(&self) {
        let mut state = self.state();
        state.snapshot = None;
        if let Some(meanwhile) = &mut state.meanwhile {
            meanwhile.push(Notification::Overrun);
        }
    }

    fn snapshot(&self) -> Option<Arc<NodeFacts>> {
        self.state().snapshot.clone()
    }

    /// Locks the state. A panic elsewhere leaves it consistent: each change is one assignment or two.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
