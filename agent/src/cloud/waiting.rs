//! Pods that found no address of a NIC lately: each is one, however often its runtime tries.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ebbtide_types::Family;

/// For how long a pod waits that does not come again: runtimes try again within a minute.
const LATELY: Duration = Duration::from_secs(90);

/// The most that are remembered: more pods than a node can have.
const MOST: usize = 4096;

/// The pods that wait, by NIC.
#[derive(Clone, Debug, Default)]
pub(super) struct WaitingPods(BTreeMap<(String, String), Waiting>);

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// None: the NIC has addresses of no family.
    family: Option<Family>,
    at: Instant,
}

impl WaitingPods {
    /// Notes that the pod found no address of this family on the NIC; none: of no family.
    pub(super) fn found_none(
        &mut self,
        link: &str,
        pod: &str,
        family: Option<Family>,
        now: Instant,
    ) {
        self.0
            .retain(|_, waiting| now.duration_since(waiting.at) < LATELY);
        if self.0.len() < MOST {
            let waiting = Waiting { family, at: now };
            self.0.insert((link.to_owned(), pod.to_owned()), waiting);
        }
    }

    /// Notes that the pod has its addresses of the NIC. True if it had waited.
    pub(super) fn found(&mut self, link: &str, pod: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let key = (link.to_owned(), pod.to_owned());
        self.0.remove(&key).is_some()
    }

    /// Returns how many pods wait for an address of the NIC, by the family. Those that found none of any family count for
    /// `first`.
    pub(super) fn count(&self, link: &str, first: Family, now: Instant) -> BTreeMap<Family, u64> {
        let mut counts = BTreeMap::new();
        for ((of, _), waiting) in &self.0 {
            if of == link && now.duration_since(waiting.at) < LATELY {
                *counts.entry(waiting.family.unwrap_or(first)).or_default() += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_tries_again_is_one_and_one_that_ceased_is_none() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut waiting = WaitingPods::default();
        waiting.found_none("ens6", "a", Some(Family::V4), at(0));
        waiting.found_none("ens6", "a", Some(Family::V4), at(10));
        waiting.found_none("ens6", "b", None, at(20));
        waiting.found_none("ens6", "c", Some(Family::V6), at(20));
        waiting.found_none("ens7", "a", Some(Family::V4), at(20));
        let counts = |waiting: &WaitingPods, seconds| {
            let counts = waiting.count("ens6", Family::V4, at(seconds));
            let of = |family| counts.get(&family).copied().unwrap_or(0);
            (of(Family::V4), of(Family::V6))
        };
        assert_eq!(counts(&waiting, 20), (2, 1));
        assert_eq!(waiting.count("ens6", Family::V6, at(20))[&Family::V6], 2);
        assert_eq!(counts(&waiting, 105), (1, 1), "a came last at 10");
        assert!(waiting.found("ens6", "c"));
        assert!(!waiting.found("ens6", "c"));
        assert_eq!(counts(&waiting, 105), (1, 0));
        assert_eq!(counts(&waiting, 110), (0, 0));
    }
}
