//! The cloud controller of the histories, and what the API server has of it and of an agent.
//!
//! The plan of the real one is `agent/assign/src/plan.rs`, which has its own histories. This one asks for anything, and takes
//! what it may take: as late as the cloud lets it.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_ipam::catalog::AddressSet;
use ebbtide_kube::cloud_map::Wish;
use ebbtide_types::Family;
use ipnet::IpNet;

use super::vpc::{Random, Vpc};
use crate::cloud::{Sets, surrender::KEPT};

/// How long after its signature's time a request may be carried out: AWS' five minutes, with a clock that is as much ahead.
const LATEST: u64 = 590;

/// A node's ConfigMap.
#[derive(Default)]
pub(super) struct Store {
    /// What is asked back, by NIC.
    asked: BTreeMap<usize, Sets>,
    is_unreadable: bool,
    /// Whether the API server takes no report.
    pub(super) is_mute: bool,
    /// Whether it tells the agent nothing new.
    pub(super) is_deaf: bool,
    /// What the agent's report names as surrendered.
    told: Sets,
    /// What was asked back and told as surrendered, with the last time at which it was.
    taken: Vec<(u64, Sets)>,
    /// Requests to take a block from a NIC, with the time at which they are carried out.
    on_their_way: Vec<(u64, usize, usize)>,
}

fn sets(block: IpNet) -> Sets {
    let mut sets = Sets::default();
    sets.add(&AddressSet::of_net(&block));
    sets
}

impl Store {
    /// Returns what the agent is asked.
    pub(super) fn wish(&self) -> Wish {
        if self.is_unreadable {
            return Wish::Unknown("nobody can read it".into());
        }
        let of_nic = |(nic, sets): (&usize, &Sets)| {
            let sets: Vec<AddressSet> =
                sets.iter().filter(|set| !set.is_empty()).cloned().collect();
            (format!("eni-{nic}"), sets)
        };
        Wish::Back(self.asked.iter().map(of_nic).collect())
    }

    /// Takes over a report.
    pub(super) fn tell(&mut self, now: u64, surrendered: Sets) {
        self.told = surrendered;
        self.look(now);
    }

    /// Returns what the controller may take now.
    pub(super) fn takeable(&self) -> Sets {
        let asked = self.asked.values();
        let asked = asked.fold(Sets::default(), |all, sets| all.union(sets));
        asked.common(&self.told)
    }

    /// Notes what the controller may take at this moment.
    pub(super) fn look(&mut self, now: u64) {
        let takeable = self.takeable();
        for (_, sets) in &mut self.taken {
            *sets = sets.without(&takeable);
        }
        self.taken.push((now, takeable));
        self.taken
            .retain(|(at, sets)| now - at < KEPT && !sets.is_empty());
    }

    /// Returns for how long the controller could not have taken an address that no pod may have yet.
    pub(super) fn too_early(&self, now: u64, address: IpAddr) -> Option<u64> {
        let family = Family::of(address);
        let mut taken = self.taken.iter();
        let (at, _) = taken.find(|(_, sets)| sets.of(family).contains(address))?;
        Some(now - at).filter(|since| *since < KEPT)
    }

    /// Asks for other addresses of this node's NICs, and sends requests.
    pub(super) fn act(&mut self, node: usize, vpc: &Vpc, random: &mut Random) {
        self.look(vpc.now);
        if random.percent(10) {
            self.is_unreadable = random.percent(20);
        }
        if random.percent(10) {
            self.is_mute = random.percent(50);
        }
        if random.percent(10) {
            self.is_deaf = random.percent(30);
        }
        if random.percent(12) {
            let wants = if random.percent(30) { 0 } else { 40 };
            for nic in [2 * node, 2 * node + 1] {
                let mut asked = Sets::default();
                for (_, block) in vpc.blocks() {
                    if random.percent(wants) {
                        asked = asked.union(&sets(block));
                    }
                }
                self.asked.insert(nic, asked);
            }
        }
        self.look(vpc.now);
        for (nic, asked) in &self.asked {
            let takeable = asked.common(&self.told);
            for (number, block) in vpc.blocks() {
                if sets(block).without(&takeable).is_empty() && random.percent(10) {
                    let at = vpc.now + random.below(LATEST);
                    self.on_their_way.push((at, *nic, number));
                }
            }
        }
    }

    /// Returns the requests that are carried out now: the NIC, and the number of the block.
    pub(super) fn due(&mut self, now: u64) -> Vec<(usize, usize)> {
        let due = self.on_their_way.extract_if(.., |(at, ..)| *at <= now);
        due.map(|(_, nic, block)| (nic, block)).collect()
    }

    /// Asks for nothing any more.
    pub(super) fn cease(&mut self, now: u64) {
        self.look(now);
        self.asked.clear();
        (self.is_mute, self.is_deaf) = (false, false);
        self.is_unreadable = false;
        self.on_their_way.clear();
    }
}
