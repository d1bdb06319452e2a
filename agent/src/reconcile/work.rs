//! The reconciler's end that everybody has: naming what is to be looked at, and asking what is not as it should be.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    time::{Instant as TokioInstant, sleep_until},
};

use super::{
    key::{Key, Scope},
    queue::{Action, Outcome, Queue},
    status::{Failing, Failure, Status},
};

/// Changes come in bursts; one comparison of the node serves a whole burst.
const SETTLE: Duration = Duration::from_millis(200);

/// From one look at an item to the next where no event names it: the safety net under all events.
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
}

/// An item that is not as it should be, and when it is tried again.
#[derive(Clone, Debug)]
pub struct Item {
    /// Which.
    pub key: Key,
    /// Since when, and why.
    pub failing: Failing,
    /// In which time it is tried again; `None` while that is being done.
    pub next: Option<Duration>,
}

impl Work {
    /// Names the node: something of its part may not be as it should be.
    pub fn name_node(&self) {
        self.name(&Key::Node, Scope::PLAN, SETTLE);
    }

    /// Names a container: it may not be as it should be.
    pub fn name_container(&self, id: &str, scope: Scope) {
        self.name_now(&Key::container(id), scope);
    }

    /// Has a new container looked at from time to time.
    pub fn add_container(&self, id: &str) {
        let key = Key::container(id);
        self.state().queue.ensure(&key, Instant::now() + RESYNC);
        self.changed.notify_one();
    }

    /// Names an item, to be reconciled as soon as there is a place.
    pub(super) fn name_now(&self, key: &Key, scope: Scope) {
        self.name(key, scope, Duration::ZERO);
    }

    fn name(&self, key: &Key, scope: Scope, after: Duration) {
        self.state().queue.name(key, scope, Instant::now() + after);
        self.changed.notify_one();
    }

    /// What is not as it should be, the node first.
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

    /// Keeps the node's turn back for this time, at most.
    pub(super) fn hold_node(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        self.state().queue.hold(&Key::Node, until);
    }

    /// The node's turn need not wait any more.
    pub(super) fn let_node_go(&self) {
        self.state().queue.let_go(&Key::Node, Instant::now());
        self.changed.notify_one();
    }

    /// What is to be done now, if anything is.
    pub(super) fn next(&self) -> Option<(Key, Scope)> {
        self.state().queue.next(Instant::now())
    }

    /// Waits until [`Work::next`] may have something.
    pub(super) async fn wait(&self) {
        // Asked for before the queue is looked at: what is named in between is not missed.
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

    /// Notes how a reconciliation ended.
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
            // All of its own is as it should be.
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
        drop(state);
        // There is a place for another one.
        self.changed.notify_one();
    }

    /// A panic elsewhere leaves the queue whole: no item is half changed when something of it can fail.
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
            // Whether it is as it should be nobody knows.
            (Key::container("a"), Outcome::Busy, true),
        ] {
            let work = Work::default();
            for attempt in 1..3 {
                work.name_now(&key, Scope::PLAN);
                // After its cooldown.
                work.state().queue.let_go(&key, Instant::now());
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
        // Named before somebody waits.
        work.wait().await;
        assert_eq!(work.next(), None);
        work.name_node();
        work.wait().await;
        while work.next().is_none() {
            work.wait().await;
        }
        work.name_container("a", Scope::GUARD);
        work.wait().await;
        assert_eq!(work.next(), Some((Key::container("a"), Scope::GUARD)));
    }
}
