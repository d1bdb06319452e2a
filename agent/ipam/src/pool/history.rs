//! Who had an address before: for a person who asks whose packets these were.
//!
//! In memory, since the agent started, and bounded: the log has it all.

use std::{collections::VecDeque, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{Allocation, Owner};

/// So many attachments are remembered, some 200 bytes each.
const LIMIT: usize = 4096;

/// An owner that an address had, and has no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Past {
    /// Who.
    pub owner: Owner,
    /// The pod, as `namespace/name`; none where there is no Kubernetes.
    pub pod: Option<String>,
    /// From when: seconds since 1970.
    pub since: u64,
    /// Until when: seconds since 1970.
    pub until: u64,
}

#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(Vec<IpAddr>, Past)>);

impl History {
    pub(super) fn add(&mut self, allocation: &Allocation, until: u64) {
        if self.0.len() == LIMIT {
            self.0.pop_front();
        }
        let addresses = allocation.assigned.iter().map(|each| each.address);
        let past = Past {
            owner: allocation.owner.clone(),
            pod: allocation.pod.as_ref().map(ToString::to_string),
            since: allocation.since,
            until,
        };
        self.0.push_back((addresses.collect(), past));
    }

    /// The latest first.
    pub(super) fn of(&self, address: IpAddr) -> Vec<Past> {
        let had = |entry: &&(Vec<IpAddr>, Past)| entry.0.contains(&address);
        let entries = self.0.iter().rev().filter(had);
        entries.map(|(_, past)| past.clone()).collect()
    }
}
