//! The reconciler's interface to the rest of the agent: names items to compare, and reports those that fail.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    time::{Instant as TokioInstant, sleep_until},
};

use crate::metrics::QueueState;

use super::{
    key::{Key, Scope},
    queue::{Action, Outcome, Queue},
    status::{Failing, Failure, Status},
};

/// The delay of the node's comparison after an event: changes come in bursts, and one comparison serves a whole burst.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// The interval at which an item is compared without an event: the safety net for missed events.
pub const RESYNC: Duration = Duration::from_secs(30);

/// The work queue and the status of its items.
#[derive(Debug, Default)]
pub struct Work {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    status: Status,
    counted: Counted,
}

/// How often items were reconciled: in the desired state, locked, failed.
#[derive(Debug, Default)]
struct Counted {
    node: [u64; 3],
    containers: [u64; 3],
}

/// An item that is not in the desired state, and when it is tried again.
#[derive(Clone, Debug)]
pub struct Item {
    /// The item's key.
    pub key: Key,
    /// Since when it fails, and why.
    pub failing: Failing,
    /// The time until it is tried again; `None` while that happens.
    pub next: Option<Duration>,
}

impl Work {
    /// Names the node: a part of it may not be in the desired state.
    pub fn enqueue_node(&self) {
        self.add(&Key::Node, Scope::PLAN, DEBOUNCE);
    }

    /// Names a container: it may not be in the desired state.
    pub fn enqueue_container(&self, id: &str, scope: Scope) {
        self.enqueue_now(&Key::container(id), scope);
    }

    /// Schedules the resync of a new container.
    pub fn add_container(&self, id: &str) {
        let key = Key::container(id);
        self.state().queue.ensure(&key, Instant::now() + RESYNC);
        self.changed.notify_one();
    }

    /// Names an item, to be reconciled as soon as there is a free slot.
    pub(super) fn enqueue_now(&self, key: &Key, scope: Scope) {
        self.add(key, scope, Duration::ZERO);
    }

    fn add(&self, key: &Key, scope: Scope, after: Duration) {
        self.state().queue.add(key, scope, Instant::now() + after);
        self.changed.notify_one();
    }

    /// Returns the items that fail, the node first.
    #[must_use]
    pub fn failing(&self) -> Vec<Item> {
        let (now, state) = (Instant::now(), self.state());
        let item = |(key, failing): (&Key, &Failing)| Item {
            key: key.clone(),
            failing: failing.clone(),
            next: state
                .queue
                .due(key)
                .map(|due| due.saturating_duration_since(now)),
        };
        state.status.failing().map(item).collect()
    }

    /// Returns what there is to do, and how often it was done.
    #[must_use]
    pub fn state_of_queue(&self) -> QueueState {
        let (now, state) = (Instant::now(), self.state());
        let (length, oldest) = state.queue.waiting(now);
        let mut found = QueueState {
            length: length as u64,
            oldest,
            of_node: state.counted.node,
            of_containers: state.counted.containers,
            ..QueueState::default()
        };
        for (key, failing) in state.status.failing() {
            match key {
                Key::Node => found.node_fails = true,
                Key::Container(_) => found.failing_containers += 1,
            }
            found.failing_for = found.failing_for.max(failing.lasted(now));
        }
        found
    }

    /// Delays the node's comparison by at most this time.
    pub(super) fn hold_node(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        self.state().queue.hold(&Key::Node, until);
    }

    /// Ends [`Work::hold_node`].
    pub(super) fn release_node(&self) {
        self.state().queue.release(&Key::Node, Instant::now());
        self.changed.notify_one();
    }

    /// Returns the next item that is due, if there is one.
    pub(super) fn next(&self) -> Option<(Key, Scope)> {
        self.state().queue.next(Instant::now())
    }

    /// Waits until [`Work::next`] may have an item.
    pub(super) async fn wait(&self) {
        // Created before the queue is read, so that nothing that is named in between is missed.
        let changed = self.changed.notified();
        let due = self.state().queue.next_due();
        match due {
            Some(due) => tokio::select! {
                () = changed => {}
                () = sleep_until(TokioInstant::from_std(due)) => {}
            },
            None => changed.await,
        }
    }

    /// Records the result of a reconciliation.
    pub(super) fn done(&self, key: &Key, outcome: Result<Outcome, Failure>) {
        let (now, mut state) = (Instant::now(), self.state());
        let outcome = match outcome {
            Ok(Outcome::Done(action)) if action == Action::await_change() => {
                state.status.forget(key);
                Outcome::Done(action)
            }
            Ok(Outcome::Done(action)) => {
                state.status.succeeded(key, now);
                Outcome::Done(action)
            }
            // All of its own part is in the desired state.
            Ok(Outcome::Busy) if *key == Key::Node => {
                state.status.succeeded(key, now);
                Outcome::Busy
            }
            Ok(outcome) => outcome,
            Err(failure) => {
                state.status.failed(key, failure, now);
                Outcome::Failed
            }
        };
        state.queue.done(key, now, outcome);
        let counted = match key {
            Key::Node => &mut state.counted.node,
            Key::Container(_) => &mut state.counted.containers,
        };
        counted[match outcome {
            Outcome::Done(_) => 0,
            Outcome::Busy => 1,
            Outcome::Failed => 2,
        }] += 1;
        drop(state);
        // A slot is free.
        self.changed.notify_one();
    }

    /// Locks the state, even if it is poisoned: a panic elsewhere never leaves an item half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_shown_until_it_is_as_it_should_be_or_gone() {
        let resync = Outcome::Done(Action::requeue(RESYNC));
        let gone = Outcome::Done(Action::await_change());
        for (key, outcome, is_shown) in [
            (Key::Node, resync, false),
            (Key::Node, Outcome::Busy, false),
            (Key::container("a"), resync, false),
            (Key::container("a"), gone, false),
            // Whether it is in the desired state is not known.
            (Key::container("a"), Outcome::Busy, true),
        ] {
            let work = Work::default();
            for attempt in 1..3 {
                work.enqueue_now(&key, Scope::PLAN);
                // After its cooldown.
                work.state().queue.release(&key, Instant::now());
                assert_eq!(work.next(), Some((key.clone(), Scope::PLAN)));
                let [shown] = &work.failing()[..] else {
                    assert!(attempt == 1 && work.failing().is_empty());
                    work.done(&key, Err(Failure::new("refused")));
                    continue;
                };
                // It is being tried now.
                assert_eq!((shown.failing.attempts, shown.next), (1, None));
                work.done(&key, Ok(outcome));
            }
            let shown = work.failing();
            assert_eq!(!shown.is_empty(), is_shown, "{key} {outcome:?}");
            assert!(shown.iter().all(|item| item.next.is_some()));
        }
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_a_name_and_by_what_is_due() {
        let work = Work::default();
        work.add_container("a");
        // Named before anybody waits.
        work.wait().await;
        assert_eq!(work.next(), None);
        work.enqueue_node();
        work.wait().await;
        while work.next().is_none() {
            work.wait().await;
        }
        work.enqueue_container("a", Scope::GUARD);
        work.wait().await;
        assert_eq!(work.next(), Some((Key::container("a"), Scope::GUARD)));
    }
}
