//! The earlier owners of addresses, for a person who traces old packets to a pod.
//!
//! Kept in memory since the agent's start, and bounded; the log has all of it.

use std::{collections::VecDeque, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{Allocation, Owner};

/// The number of attachments kept, some 200 bytes each.
const LIMIT: usize = 4096;

/// A former owner of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Past {
    /// The owner.
    pub owner: Owner,
    /// The pod, as `namespace/name`; none without Kubernetes.
    pub pod: Option<String>,
    /// The time of assignment: seconds since 1970.
    pub since: u64,
    /// The time of release: seconds since 1970.
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

    /// Returns the former owners of the address, the latest first.
    pub(super) fn of(&self, address: IpAddr) -> Vec<Past> {
        let had = |entry: &&(Vec<IpAddr>, Past)| entry.0.contains(&address);
        let entries = self.0.iter().rev().filter(had);
        entries.map(|(_, past)| past.clone()).collect()
    }
}
