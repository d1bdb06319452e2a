//! Random histories of a metadata service that lies, with all that the agent makes of it: the ledger with its file, the
//! derived pools, the store of addresses, and what is given back to a cloud controller, beside a VPC that knows the truth.
//!
//! What holds in each, for two nodes of two NICs each, whose addresses move between all of them:
//!
//! - An address that a pod gets is the VPC's for this NIC, or has been until the documented window: the service's own delay
//!   ([`DELAY`] here; no vendor publishes a bound), and then fewer than [`WINDOW`] whole reads, none of which was without it.
//! - No address is two pods' of a node.
//! - What a pod has it keeps, whatever the service says, until its DEL.
//! - A kind that is not answered for fewer than three reads takes nothing from new pods.
//! - The cloud controller takes nothing that a pod has, however late, and what it may have taken is no pod's for twenty
//!   minutes.
//! - Each pod that waits for an address is told once, and none that has one.
//! - An agent that starts again knows what it knew.
//! - When the service is honest again, and nobody asks for anything back, pods can have all that is assigned.

mod controller;
mod node;
mod vpc;

use std::{num::NonZero, thread};

use ebbtide_cloud::ledger::{FORGET, RETURN, WINDOW};
use ebbtide_ipam::pool::Families;
use ebbtide_types::Family;

use super::surrender::KEPT;
use controller::Store;
use node::{Node, Refused};
use vpc::{DELAY, Manners, Random, Vpc, mac};

/// How much was seen of what, so that a test of nothing is noticed.
#[derive(Debug, Default)]
struct Seen {
    pods: u64,
    refused: u64,
    late: u64,
    kept: u64,
    restarts: u64,
    withheld: u64,
    taken: u64,
    lies: [u64; 5],
}

struct History {
    number: u64,
    random: Random,
    vpc: Vpc,
    nodes: [Node; 2],
    stores: [Store; 2],
    containers: u64,
    seen: Seen,
}

impl History {
    fn new(number: u64) -> Self {
        let mut random = Random::of(number);
        Self {
            number,
            vpc: Vpc::new(&mut random),
            random,
            nodes: [0, 1].map(Node::new),
            stores: Default::default(),
            containers: 0,
            seen: Seen::default(),
        }
    }

    fn lie(&mut self) {
        let nodes = &self.nodes;
        self.vpc.lie(&mut self.random, |nic, block| {
            nodes[nic / 2].uses(nic, block)
        });
    }

    /// Adds a pod, and checks what it got.
    fn add(&mut self, node: usize, place: usize, families: Families) -> bool {
        self.containers += 1;
        self.try_again(node, self.containers, place, families)
    }

    fn try_again(&mut self, at: usize, container: u64, place: usize, families: Families) -> bool {
        let dies = self.random.percent(3);
        let (now, vpc) = (self.vpc.now, &self.vpc);
        let what = format!("history {}, pod {container}", self.number);
        let node = &mut self.nodes[at];
        if !node.add(container, place, families, now, dies) {
            self.seen.refused += 1;
            return false;
        }
        let Some(pod) = node.pods.get(&container) else {
            self.seen.restarts += 1;
            return false;
        };
        for address in &pod.addresses {
            let early = self.stores[at].too_early(now, *address);
            assert_eq!(early, None, "{what}: {address} may have been taken away");
            if vpc.delivers(*address) == Some(pod.nic) {
                continue;
            }
            self.seen.late += 1;
            let reads = vpc.reads_since(*address, pod.nic);
            let nic = pod.nic;
            assert!(
                reads < WINDOW,
                "{what}: the VPC drops {address} on NIC {nic}, for {reads} reads"
            );
            let is_said = vpc.is_said_gone(*address, nic);
            assert!(
                !is_said,
                "{what}: the VPC drops {address} on NIC {nic}, and said so"
            );
        }
        self.seen.pods += 1;
        true
    }

    fn delete(&mut self, node: usize, chance: u64) {
        let random = &mut self.random;
        let node = &mut self.nodes[node];
        let pods = node.pods.keys().copied();
        let gone: Vec<u64> = pods.filter(|_| random.percent(chance)).collect();
        gone.into_iter()
            .for_each(|container| node.delete(container));
    }

    /// The cloud controller's requests are carried out.
    fn deliver(&mut self, node: usize) {
        for (nic, block) in self.stores[node].due(self.vpc.now) {
            if self.vpc.unassign(nic, block, &mut self.random) {
                self.seen.taken += 1;
                let mut blocks = self.vpc.blocks();
                let has = blocks.find(|(number, _)| *number == block);
                let has = has.filter(|(_, block)| self.nodes[node].uses(nic, block));
                assert_eq!(has, None, "history {}: a pod has it", self.number);
            }
        }
    }

    /// The cloud controller asks and takes, and the agent answers.
    fn give_back(&mut self, node: usize, step: u32) {
        let (now, store) = (self.vpc.now, &mut self.stores[node]);
        store.act(node, &self.vpc, &mut self.random);
        if self.random.percent(50) {
            self.nodes[node].share(now, store, Some(&mut self.random));
        }
        let takeable = store.takeable();
        for pod in self.nodes[node].pods.values() {
            for address in &pod.addresses {
                let family = Family::of(*address);
                let is_takeable = takeable.of(family).contains(*address);
                let what = format!("history {}, step {step}", self.number);
                assert!(!is_takeable, "{what}: {address} is a pod's and surrendered");
            }
        }
        self.seen.withheld += u64::from(!self.nodes[node].withholds_nothing());
        self.deliver(node);
    }

    /// Pods that found no address try again, or give up.
    fn try_all_again(&mut self, at: usize) {
        let refused = self.nodes[at].refused.iter();
        let trying = refused.filter(|(_, refused)| !refused.gave_up);
        let trying: Vec<(u64, Refused)> = trying.map(|(name, one)| (*name, *one)).collect();
        for (container, refused) in trying {
            if self.random.percent(30) {
                self.try_again(at, container, refused.place, refused.families);
            }
            if self.random.percent(30)
                && let Some(refused) = self.nodes[at].refused.get_mut(&container)
            {
                refused.gave_up = true;
            }
        }
        self.nodes[at].forget(self.vpc.now);
    }

    fn step(&mut self, step: u32) {
        self.vpc.now += match self.random.percent(5) {
            true => 400 + self.random.below(KEPT),
            false => 1 + self.random.below(40),
        };
        if self.random.percent(15) {
            self.vpc.change(&mut self.random);
        }
        self.lie();
        for node in [0, 1] {
            // An error is no read.
            if self.random.percent(85) {
                let dies = self.random.percent(2);
                self.seen.restarts += u64::from(dies);
                self.nodes[node].read(&mut self.vpc, &mut self.random, dies);
            }
            if self.random.percent(3) {
                self.nodes[node].restart(self.vpc.now);
                self.seen.restarts += 1;
            }
            if self.random.percent(40) {
                let place = self.random.below(2) as usize;
                let ipv4 = self.random.percent(75);
                let families = Families {
                    ipv4,
                    ipv6: !ipv4 || self.random.percent(50),
                };
                self.add(node, place, families);
            }
            self.try_all_again(node);
            self.delete(node, 6);
            self.give_back(node, step);
            self.nodes[node].check(
                self.vpc.now,
                &format!("history {}, step {step}", self.number),
            );
            let of_vpc = |pod: &&node::Pod| {
                let mut all = pod.addresses.iter();
                all.any(|address| self.vpc.delivers(*address) != Some(pod.nic))
            };
            self.seen.kept += self.nodes[node].pods.values().filter(of_vpc).count() as u64;
        }
    }

    /// The service becomes honest, nobody asks for anything back, and all pods end: what is assigned is what pods can have.
    fn end(&mut self) {
        self.vpc.manners = Manners::HONEST;
        for pass in [0, DELAY.max(RETURN).max(KEPT), 0] {
            self.vpc.now += pass;
            for node in [0, 1] {
                self.delete(node, 100);
                self.stores[node].cease(self.vpc.now);
                self.nodes[node].share(self.vpc.now, &mut self.stores[node], None);
            }
        }
        for node in &self.nodes {
            assert!(node.withholds_nothing(), "history {}", self.number);
        }
        self.vpc.now += 1;
        self.lie();
        for _ in 0..(RETURN + FORGET) / 60 + 2 {
            self.vpc.now += 60;
            for node in [0, 1] {
                self.nodes[node].read(&mut self.vpc, &mut self.random, false);
            }
        }
        for nic in 0..vpc::NICS {
            let mut usable = self.nodes[nic / 2].ledger.usable(mac(nic));
            usable.sort_unstable();
            assert_eq!(usable, self.vpc.assigned(nic), "history {}", self.number);
            let held = self.nodes[nic / 2].ledger.held(mac(nic));
            assert_eq!(held, [], "history {}", self.number);
            // An agent may end in between.
            let mut gets = || self.add(nic / 2, nic % 2, Families::default());
            let is_given = usable.is_empty() || (0..9).any(|_| gets());
            assert!(is_given, "history {}: {usable:?}", self.number);
        }
    }
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.pods += other.pods;
        self.refused += other.refused;
        self.late += other.late;
        self.kept += other.kept;
        self.restarts += other.restarts;
        self.withheld += other.withheld;
        self.taken += other.taken;
        for (all, lie) in self.lies.iter_mut().zip(other.lies) {
            *all += lie;
        }
    }
}

fn play(number: u64) -> Seen {
    let mut history = History::new(number);
    for step in 0..50 {
        history.step(step);
    }
    history.end();
    Seen {
        lies: history.vpc.seen,
        ..history.seen
    }
}

/// Plays 1,000 histories, 400 in a debug build, or as many as `EBBTIDE_HISTORIES` says.
#[test]
fn whatever_the_service_says_pods_get_what_the_vpc_delivers_and_keep_what_they_have() {
    let histories: u64 = std::env::var("EBBTIDE_HISTORIES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(if cfg!(debug_assertions) { 400 } else { 1_000 });
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let mut all = Seen::default();
    thread::scope(|scope| {
        let part = |first| {
            let of_it = (first..=histories).step_by(threads as usize);
            of_it.map(play).fold(Seen::default(), |mut all, one| {
                all.add(&one);
                all
            })
        };
        let parts: Vec<_> = (1..=threads)
            .map(|first| scope.spawn(move || part(first)))
            .collect();
        for part in parts {
            match part.join() {
                Ok(seen) => all.add(&seen),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    println!("{histories} histories: {all:?}");
    let counts = [
        all.pods,
        all.refused,
        all.late,
        all.kept,
        all.restarts,
        all.withheld,
        all.taken,
    ];
    let mut counts = counts.iter().chain(&all.lies);
    assert!(counts.all(|count| *count > 0), "{all:?}");
}
