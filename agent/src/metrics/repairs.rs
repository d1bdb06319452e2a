//! The repairs that were made last, for people: metrics only count them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

/// How many are remembered.
const KEPT: usize = 20;

/// What was repaired since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repairs {
    /// How often, by kind; also those that never were.
    pub counts: Vec<RepairCount>,
    /// The last ones, the latest first.
    pub recent: Vec<RepairLine>,
}

/// How often objects of one kind were repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairCount {
    /// `node` or `pod`.
    pub place: String,
    /// The kind of object, as in `rule`.
    pub object: String,
    /// How often.
    pub count: u64,
}

/// One repair, or several of the same object on end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairLine {
    /// When, the last time: seconds since 1970.
    pub at: u64,
    /// `node` or `pod`.
    pub place: String,
    /// The kind of object, as in `rule`.
    pub object: String,
    /// How it was found, as in `rule ... is missing`.
    pub what: String,
    /// How often on end.
    pub times: u64,
}

/// The last repairs. All clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(Arc<Mutex<VecDeque<RepairLine>>>);

impl Recent {
    /// Adds one.
    pub(super) fn add(&self, place: &str, object: &str, what: String) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at = since.map_or(0, |since| since.as_secs());
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let again = lines.iter().position(|line| line.what == what);
        // Something that somebody keeps removing must not displace all others.
        let times = again
            .and_then(|place| lines.remove(place))
            .map_or(1, |line| line.times + 1);
        lines.push_front(RepairLine {
            at,
            place: place.to_owned(),
            object: object.to_owned(),
            what,
            times,
        });
        lines.truncate(KEPT);
    }

    /// Returns them, the latest first.
    pub(super) fn all(&self) -> Vec<RepairLine> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_what_repeats_takes_one_place() {
        let recent = Recent::default();
        recent.add("node", "route", "a route is missing".into());
        for _ in 0..30 {
            recent.add("node", "rule", "a rule is missing".into());
        }
        let told: Vec<_> = recent
            .all()
            .into_iter()
            .map(|line| (line.object, line.times))
            .collect();
        assert_eq!(told, [("rule".to_owned(), 30), ("route".to_owned(), 1)]);
        for number in 0..KEPT {
            recent.add("pod", "address", format!("a had 10.0.0.{number}"));
        }
        let all = recent.all();
        assert_eq!(all.len(), KEPT);
        assert!(all.iter().all(|line| line.place == "pod"), "{all:?}");
    }
}
