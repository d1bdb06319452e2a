//! The node's facts as they are now, without asking the kernel for all of them each time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::NodeFacts;
use crate::netlink::{Error, Netlink, notification::Notification};

/// A snapshot that the kernel's netlink notifications keep true: it is thrown away when one of them says
/// something else, and read again by whoever needs it next.
#[derive(Debug, Default)]
pub struct CurrentFacts {
    state: Mutex<State>,
    /// One reads, the others wait for what it finds.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether somebody listens; without, nothing is kept.
    listening: bool,
    snapshot: Option<Arc<NodeFacts>>,
    /// What was announced while the facts were being read, and whether they are.
    meanwhile: Option<Vec<Notification>>,
}

impl CurrentFacts {
    /// The facts.
    ///
    /// # Errors
    /// When they had to be read and the kernel refused.
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
        // What was announced meanwhile may be in the facts, or half of it.
        if state.listening && !meanwhile.iter().any(|heard| facts.changes_facts(heard)) {
            state.snapshot = Some(Arc::clone(&facts));
        }
        Ok(facts)
    }

    /// The facts, certainly true of the link `name`: notifications take a moment, and an interface
    /// must not be made on a link that has just been replaced.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn sure_of(&self, name: &str, netlink: &Netlink) -> Result<Arc<NodeFacts>, Error> {
        let link = netlink.link(name).await?;
        let facts = self.get(netlink).await?;
        let still = match (facts.nic(name), &link) {
            (Some(nic), Some(link)) => nic.is_still(link),
            (None, None) => true,
            _ => false,
        };
        if still {
            return Ok(facts);
        }
        self.forget();
        self.get(netlink).await
    }

    /// Whether `facts` are still the ones that [`CurrentFacts::get`] gives.
    #[must_use]
    pub fn are(&self, facts: &Arc<NodeFacts>) -> bool {
        self.snapshot().is_some_and(|now| Arc::ptr_eq(&now, facts))
    }

    /// The kernel says something else than the facts: they are read again by who needs them next.
    pub fn doubt(&self) {
        self.forget();
    }

    /// Says whether notifications are being heard from now on. The snapshot goes either way:
    /// nobody knows what was missed before.
    pub fn listen(&self, listening: bool) {
        self.forget();
        self.state().listening = listening;
    }

    /// Takes notice of a notification. True if it was news.
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

    /// A snapshot that is being made is as suspect as the one that was.
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

    /// A panic elsewhere leaves the state whole: each change is one assignment or two.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
