//! The work queue: which item is reconciled next, and when. Pure: the caller passes the time.
//!
//! It combines the scheduler and the runner of `kube::runtime`: items are deduplicated, the earliest time wins, and an
//! item in work is not handed out a second time, but once more afterwards if it was named meanwhile. Beyond those, an
//! event resets an item's backoff, an item has a cooldown, the node needs no slot among the containers, and scopes are
//! merged.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::key::{Key, Scope};

/// Containers in work at once: enough for all processors to have work while some wait for the kernel.
const MAX_CONCURRENT: usize = 16;

/// The pause from one failure to the next attempt: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// `BACKOFF` for the node, which is compared that often in any case.
const NODE_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The pause between attempts at a container whose lock is held.
const BUSY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// `BUSY` for the node: some of its pods are being changed, and all others were compared.
const NODE_BUSY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What follows for an item that was reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// The delay until it is due without an event; `None`: never.
    after: Option<Duration>,
    /// The time before which no event makes it due.
    cooldown: Duration,
}

impl Action {
    /// Compares again after this time: the resync.
    #[must_use]
    pub const fn requeue(after: Duration) -> Self {
        Self {
            after: Some(after),
            cooldown: Duration::ZERO,
        }
    }

    /// Compares again only if an event names it.
    #[must_use]
    pub const fn await_change() -> Self {
        Self {
            after: None,
            ..Self::requeue(Duration::ZERO)
        }
    }

    /// Sets a cooldown: it is not compared again earlier, however often it is named.
    #[must_use]
    pub const fn with_cooldown(self, cooldown: Duration) -> Self {
        Self { cooldown, ..self }
    }
}

/// The result of reconciling an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the desired state.
    Done(Action),
    /// It, or a part of it, is locked by a command. That is no failure.
    Busy,
    /// It could not be brought to the desired state.
    Failed,
}

/// All items, and when each is due.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use ebbtide_agent::reconcile::{Action, Key, Outcome, Queue, Scope};
///
/// let now = Instant::now();
/// let pod = Key::container("4f1c");
/// let mut queue = Queue::default();
/// queue.add(&pod, Scope::PLAN, now);
/// queue.add(&pod, Scope::GUARD, now);
///
/// // Named twice, it is reconciled once; both scopes are compared.
/// assert_eq!(queue.next(now), Some((pod.clone(), Scope::GUARD)));
/// assert_eq!(queue.next(now), None);
///
/// // After a failure it is due again after a pause, after success only for the resync.
/// queue.done(&pod, now, Outcome::Failed);
/// let later = now + Duration::from_secs(1);
/// assert_eq!(queue.due(&pod), Some(later));
/// assert!(queue.next(later).is_some());
/// let resync = Duration::from_secs(30);
/// queue.done(&pod, later, Outcome::Done(Action::requeue(resync)));
/// assert_eq!(queue.next_due(), Some(later + resync));
/// ```
#[derive(Debug, Default)]
pub struct Queue {
    items: HashMap<Key, Item>,
    /// The due times of items that are not in work.
    by_due: BTreeSet<(Instant, Key)>,
    containers_in_work: usize,
}

#[derive(Debug, Default)]
struct Item {
    due: Option<Instant>,
    scope: Scope,
    /// The scope that is being compared, while it is in work.
    in_work: Option<Scope>,
    not_before: Option<Instant>,
    failures: u32,
    busy: u32,
}

impl Queue {
    /// Makes an item due at `at`, or keeps an earlier time: an event concerns it. Its backoff is reset, as what failed
    /// before may succeed now.
    pub fn add(&mut self, key: &Key, scope: Scope, at: Instant) {
        let item = self.items.entry(key.clone()).or_default();
        item.scope |= scope;
        item.failures = 0;
        item.busy = 0;
        self.expedite(key, at);
    }

    /// Makes an item due at `at` if it is not due at all.
    pub fn ensure(&mut self, key: &Key, at: Instant) {
        let item = self.items.entry(key.clone()).or_default();
        if item.due.is_none() && item.in_work.is_none() {
            self.expedite(key, at);
        }
    }

    /// Keeps an item from being due before `until`, whatever names it.
    pub fn hold(&mut self, key: &Key, until: Instant) {
        let item = self.items.entry(key.clone()).or_default();
        item.not_before = Some(until);
        let at = item.due.unwrap_or(until);
        self.schedule(key, Some(at));
    }

    /// Ends [`Queue::hold`], and makes the item due.
    pub fn release(&mut self, key: &Key, now: Instant) {
        if let Some(item) = self.items.get_mut(key) {
            item.not_before = None;
            self.expedite(key, now);
        }
    }

    /// Returns the next item that is due and may be reconciled. It is in work until [`Queue::done`].
    pub fn next(&mut self, now: Instant) -> Option<(Key, Scope)> {
        let (_, key) = self.first().filter(|(due, _)| *due <= now)?;
        let key = key.clone();
        self.schedule(&key, None);
        let item = self.items.get_mut(&key)?;
        let scope = std::mem::take(&mut item.scope);
        item.in_work = Some(scope);
        self.containers_in_work += usize::from(key != Key::Node);
        Some((key, scope))
    }

    /// Returns when [`Queue::next`] will have an item, if nothing is named or done before.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.first().map(|(due, _)| due)
    }

    /// Returns when an item is due; `None` while it is in work.
    #[must_use]
    pub fn due(&self, key: &Key) -> Option<Instant> {
        let item = self.items.get(key)?;
        item.due.filter(|_| item.in_work.is_none())
    }

    /// Returns how many items are due or in work, and how long the first of those that are due has waited.
    #[must_use]
    pub fn waiting(&self, now: Instant) -> (usize, Duration) {
        let due = self.by_due.iter().take_while(|(due, _)| *due <= now);
        let in_work = self.items.values().filter(|item| item.in_work.is_some());
        let oldest = self.by_due.first().map(|(due, _)| *due);
        let waited = oldest.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        (due.count() + in_work.count(), waited)
    }

    /// Records the result of reconciling an item.
    pub fn done(&mut self, key: &Key, now: Instant, outcome: Outcome) {
        let Some(item) = self.items.get_mut(key) else {
            return;
        };
        let Some(scope) = item.in_work.take() else {
            return;
        };
        self.containers_in_work -= usize::from(*key != Key::Node);
        let is_node = *key == Key::Node;
        let (after, cooldown) = match outcome {
            Outcome::Done(action) => {
                item.failures = 0;
                item.busy = 0;
                (action.after, action.cooldown)
            }
            Outcome::Busy => {
                item.scope |= scope;
                let limits = if is_node { NODE_BUSY } else { BUSY };
                let after = backoff(limits, item.busy);
                item.busy = item.busy.saturating_add(1);
                // Naming it repeatedly does not make it due earlier.
                (Some(after), limits.0)
            }
            Outcome::Failed => {
                item.scope |= scope;
                let limits = if is_node { NODE_BACKOFF } else { BACKOFF };
                let after = backoff(limits, item.failures);
                item.failures = item.failures.saturating_add(1);
                item.busy = 0;
                (Some(after), limits.0)
            }
        };
        item.not_before = Some(now + cooldown);
        let due = match (item.due, after.map(|after| now + after)) {
            (Some(named), Some(own)) => Some(named.min(own)),
            (named, own) => named.or(own),
        };
        if due.is_none() && *key != Key::Node {
            self.items.remove(key);
            return;
        }
        self.schedule(key, due);
    }

    fn first(&self) -> Option<(Instant, &Key)> {
        if self.containers_in_work >= MAX_CONCURRENT {
            return self.due(&Key::Node).map(|due| (due, &Key::Node));
        }
        self.by_due.first().map(|(due, key)| (*due, key))
    }

    fn expedite(&mut self, key: &Key, at: Instant) {
        let due = self.items.get(key).and_then(|item| item.due);
        self.schedule(key, Some(due.map_or(at, |due| due.min(at))));
    }

    /// Sets an item's due time, limited by its cooldown. An item in work is queued when it is done.
    fn schedule(&mut self, key: &Key, due: Option<Instant>) {
        let Some(item) = self.items.get_mut(key) else {
            return;
        };
        if let Some(before) = item.due {
            self.by_due.remove(&(before, key.clone()));
        }
        item.due = due.map(|due| item.not_before.map_or(due, |earliest| due.max(earliest)));
        if let Some(due) = item.due.filter(|_| item.in_work.is_none()) {
            self.by_due.insert((due, key.clone()));
        }
    }
}

/// Returns the pause after `before` earlier attempts.
fn backoff((first, most): (Duration, Duration), before: u32) -> Duration {
    let factor = 1_u32.checked_shl(before.min(16)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(most)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
