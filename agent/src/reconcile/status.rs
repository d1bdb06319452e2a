//! The status of items that could not be reconciled: since when, how many attempts, and the last error.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tracing::{error, info};

use super::key::Key;

/// Why an item could not be reconciled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// The interface, if the failure concerns a single one.
    pub interface: Option<Interface>,
    /// What went wrong, in words.
    pub error: String,
}

/// An interface, as people refer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// `namespace/name`, or the container ID.
    pub pod: String,
    /// Its name in the pod.
    pub name: String,
}

impl Failure {
    /// Makes a failure that concerns no single interface.
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            interface: None,
            error: error.into(),
        }
    }

    /// Makes a failure of an interface.
    pub fn of_interface(pod: &str, name: &str, error: impl Into<String>) -> Self {
        Self {
            interface: Some(Interface {
                pod: pod.to_owned(),
                name: name.to_owned(),
            }),
            error: error.into(),
        }
    }
}

/// An item that is not in the desired state.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The last failure.
    pub failure: Failure,
    /// The time of the first failure.
    pub since: Instant,
    /// The number of failures since.
    pub attempts: u32,
}

/// All items that fail. One line is logged when an item begins to fail and one when it has recovered, and none for
/// each attempt.
#[derive(Debug, Default)]
pub struct Status(BTreeMap<Key, Failing>);

impl Status {
    /// Records a failure.
    pub fn failed(&mut self, key: &Key, failure: Failure, now: Instant) {
        if let Some(known) = self.0.get_mut(key) {
            known.attempts = known.attempts.saturating_add(1);
            known.failure = failure;
            return;
        }
        const AGAIN: &str = "it is tried again, and `ebbtidectl status` says how that goes";
        match &failure.interface {
            Some(Interface { pod, name }) => {
                error!(pod, interface = name, "{failure}; {AGAIN}");
            }
            None => error!("{key}: {failure}; {AGAIN}"),
        }
        let failing = Failing {
            failure,
            since: now,
            attempts: 1,
        };
        self.0.insert(key.clone(), failing);
    }

    /// Records that an item is in the desired state.
    pub fn succeeded(&mut self, key: &Key, now: Instant) {
        let Some(failing) = self.0.remove(key) else {
            return;
        };
        let attempts = failing.attempts;
        let seconds = failing.lasted(now).as_secs();
        match failing.failure.interface {
            Some(Interface { pod, name }) => {
                info!(pod, interface = name, attempts, seconds, "reconciled again")
            }
            None => info!(attempts, seconds, "{key} reconciled again"),
        }
    }

    /// Removes an item that no longer exists.
    pub fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// Returns all items that fail.
    pub fn failing(&self) -> impl Iterator<Item = (&Key, &Failing)> {
        self.0.iter()
    }
}

impl Failing {
    /// Returns how long the item has failed.
    #[must_use]
    pub fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_fails_since_its_first_failure_and_says_its_last() {
        let (start, mut status) = (Instant::now(), Status::default());
        let key = Key::container("a");
        for second in 0..3 {
            let failure = Failure::of_interface("default/a", "eth0", format!("error {second}"));
            status.failed(&key, failure, start + Duration::from_secs(second));
        }
        status.failed(&Key::Node, Failure::new("refused"), start);
        let said: Vec<_> = status
            .failing()
            .map(|(_, failing)| (failing.attempts, failing.since, failing.failure.to_string()))
            .collect();
        let expected = [
            (1, start, "refused".to_owned()),
            (3, start, "error 2".to_owned()),
        ];
        assert_eq!(said, expected);
        status.succeeded(&key, start);
        status.forget(&Key::Node);
        assert_eq!(status.failing().count(), 0);
    }
}
