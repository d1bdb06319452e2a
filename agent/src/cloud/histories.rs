//! Random histories of a metadata service that lies, with all that the agent makes of it: the ledger with its file, the
//! derived pools, and the store of addresses, beside a VPC that knows the truth.
//!
//! What holds in each, for two nodes of two NICs each, whose addresses move between all of them:
//!
//! - An address that a pod gets is the VPC's for this NIC, or has been until the documented window: the service's own delay
//!   ([`DELAY`] here; no vendor publishes a bound), and then fewer than [`WINDOW`] whole reads.
//! - No address is two pods' of a node.
//! - What a pod has it keeps, whatever the service says, until its DEL.
//! - When the service is honest again, pods can have all that is assigned.

mod vpc;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZero,
    thread,
    time::Duration,
};

use ebbtide_cloud::{
    Provider,
    ledger::{FORGET, Ledger, RETURN, WINDOW},
    saved::Saved,
};
use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Families, OpenError, Options, Owner, PoolError, Pools, Request, Reserved},
};
use ebbtide_kernel::node::{Nic, NodeFacts};
use ipnet::IpNet;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::derive::derive;
use vpc::{DELAY, LINKS, Manners, Random, Vpc, mac};

/// A pod, by the number of its container.
struct Pod {
    /// Its NIC, of all of the VPC's.
    nic: usize,
    addresses: BTreeSet<IpAddr>,
}

/// An agent, and its directory.
struct Node {
    number: usize,
    dir: TempDir,
    /// None only while it restarts.
    pools: Option<Pools>,
    saved: Saved,
    ledger: Ledger,
    catalog: Catalog,
    facts: NodeFacts,
    /// When the process began, whose clock counts from then on, by the VPC's time.
    began: u64,
    pods: BTreeMap<u64, Pod>,
}

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

fn owner(container: u64) -> Owner {
    Owner {
        network: "net".into(),
        container_id: container.to_string(),
        interface: "eth0".into(),
    }
}

fn open(dir: &TempDir) -> Pools {
    // Whoever is released is given out at once: the least that can be between two pods.
    let options = Options {
        cooldown: Duration::ZERO,
        sticky: false,
    };
    // A child that another test forks has the journal's lock as well, until it executes something.
    for _ in 0..200 {
        match Pools::open(dir.path(), options.clone()) {
            Err(OpenError::Locked { .. }) => thread::sleep(Duration::from_millis(10)),
            opened => return opened.unwrap(),
        }
    }
    panic!("the journal in {} stays locked", dir.path().display());
}

impl Node {
    fn new(number: usize) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        let link = |(place, name): (usize, &&str)| Nic {
            mac: Some(mac(2 * number + place)),
            ..Nic::named(*name, place as u32 + 2)
        };
        let facts = NodeFacts {
            nics: LINKS.iter().enumerate().map(link).collect(),
            ..NodeFacts::default()
        };
        Self {
            number,
            pools: Some(open(&dir)),
            saved: Saved::load(dir.path()).0,
            ledger: Ledger::default(),
            catalog: Catalog::default(),
            facts,
            began: 0,
            pods: BTreeMap::new(),
            dir,
        }
    }

    fn pools(&self) -> &Pools {
        self.pools.as_ref().unwrap()
    }

    fn in_use(&self) -> BTreeMap<IpAddr, u64> {
        let snapshot = self.pools().snapshot();
        let all = snapshot.pools.into_values().flatten();
        let container = |text: Option<String>| text.and_then(|text| text.parse().ok());
        all.map(|(address, of)| (address, container(of.container_id).unwrap()))
            .collect()
    }

    /// Reads, as the follower does: the ledger is on disk before anybody gets what is in it. `dies` says that the agent
    /// ends in between.
    fn read(&mut self, vpc: &mut Vpc, random: &mut Random, dies: bool) {
        let Some(view) = vpc.read(self.number, random, !dies) else {
            return;
        };
        let in_use = self.in_use();
        let uses = |block: &IpNet| in_use.keys().any(|address| block.contains(address));
        let now = vpc.now - self.began;
        let _changes = self.ledger.observe(now, &view, &uses);
        if dies {
            return self.restart(vpc.now);
        }
        self.saved.store(&self.ledger).unwrap();
        self.publish();
    }

    fn publish(&mut self) {
        let wanted = LINKS.map(str::to_owned).into();
        let name = format!("node{}", self.number);
        let derived = derive(&name, Provider::Aws, &self.ledger, &self.facts, &wanted);
        self.catalog = Catalog::default().with_derived(&derived.nics, &derived.notes);
    }

    fn restart(&mut self, now: u64) {
        self.began = now;
        drop(self.pools.take());
        self.pools = Some(open(&self.dir));
        let (saved, history) = Saved::load(self.dir.path());
        self.saved = saved;
        self.ledger = history.unwrap().unwrap_or_default();
        self.publish();
    }

    fn request<T>(
        &self,
        container: u64,
        link: &str,
        families: Families,
        then: impl FnOnce(&Pools, &Request<'_>) -> T,
    ) -> T {
        let owner = owner(container);
        let node = format!("node{}", self.number);
        let request = Request {
            metadata: Some(link),
            families,
            ..Request::new(&owner, &node, &self.catalog)
        };
        then(self.pools(), &request)
    }

    /// Adds a pod, as far as there are addresses. `dies` is when the agent ends, before they are on disk.
    fn add(
        &mut self,
        container: u64,
        place: usize,
        families: Families,
        dies: Option<u64>,
    ) -> Result<(), PoolError> {
        let grant = match self.request(container, LINKS[place], families, Pools::reserve)? {
            Reserved::New(grant) => grant,
            Reserved::Existing(existing) => panic!("{container} is new: {existing:?}"),
        };
        if let Some(now) = dies {
            drop(grant);
            self.restart(now);
            return Ok(());
        }
        let allocation = wait(grant.commit("{}".parse::<serde_json::Value>().unwrap())).unwrap();
        let assigned = allocation.assigned.iter();
        let pod = Pod {
            nic: 2 * self.number + place,
            addresses: assigned.map(|assigned| assigned.address).collect(),
        };
        self.pods.insert(container, pod);
        Ok(())
    }

    /// Returns the blocks of a NIC that the ledger remembers.
    fn known(&self, nic: usize) -> Vec<IpNet> {
        let held = self.ledger.held(mac(nic)).into_iter();
        let waiting = self.ledger.waiting(mac(nic)).into_iter();
        let mut known = self.ledger.usable(mac(nic));
        known.extend(held.map(|held| held.block));
        known.extend(waiting.map(|waiting| waiting.block));
        known
    }

    /// Checks that each pod has what it had, by itself, and that the ledger knows of it.
    fn check(&self, what: &str) {
        let mut expected = BTreeMap::new();
        for (container, pod) in &self.pods {
            for address in &pod.addresses {
                let double = expected.insert(*address, *container);
                assert_eq!(double, None, "{what}: {address} of {container}");
            }
        }
        assert_eq!(self.in_use(), expected, "{what}");
        let usable: Vec<Vec<IpNet>> = [0, 1]
            .map(|place| self.ledger.usable(mac(2 * self.number + place)))
            .to_vec();
        for pod in self.pods.values() {
            let others = &usable[1 - pod.nic % 2];
            let known = self.known(pod.nic);
            for address in &pod.addresses {
                let is_known = known.iter().any(|block| block.contains(address));
                assert!(is_known, "{what}: {address} is a pod's and forgotten");
                let other = others.iter().find(|block| block.contains(address));
                assert_eq!(other, None, "{what}: {address} is a pod's of the other NIC");
            }
        }
    }
}

/// How much was seen of what, so that a test of nothing is noticed.
#[derive(Debug, Default)]
struct Seen {
    pods: u64,
    refused: u64,
    late: u64,
    kept: u64,
    restarts: u64,
    lies: [u64; 4],
}

struct History {
    number: u64,
    random: Random,
    vpc: Vpc,
    nodes: [Node; 2],
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
            containers: 0,
            seen: Seen::default(),
        }
    }

    fn lie(&mut self) {
        let nodes = &self.nodes;
        self.vpc.lie(&mut self.random, |nic, block| {
            let ledger = &nodes[nic / 2].ledger;
            let mut held = ledger.held(mac(nic)).into_iter().map(|held| held.block);
            let mut waiting = ledger.waiting(mac(nic)).into_iter();
            held.any(|held| held == *block)
                || waiting.any(|one| one.block == *block && one.reason.seconds_left() != Some(0))
        });
    }

    /// Adds a pod, and checks what it got.
    fn add(&mut self, node: usize, place: usize, families: Families) -> bool {
        self.containers += 1;
        let container = self.containers;
        let dies = self.random.percent(3).then_some(self.vpc.now);
        let what = format!("history {}, pod {container}", self.number);
        let node = &mut self.nodes[node];
        if node.add(container, place, families, dies).is_err() {
            self.seen.refused += 1;
            return false;
        }
        let Some(pod) = node.pods.get(&container) else {
            self.seen.restarts += 1;
            return false;
        };
        for address in &pod.addresses {
            if self.vpc.delivers(*address) == Some(pod.nic) {
                continue;
            }
            self.seen.late += 1;
            let reads = self.vpc.reads_since(*address, pod.nic);
            assert!(
                reads < WINDOW,
                "{what}: the VPC drops {address} on NIC {}, for {reads} reads",
                pod.nic
            );
        }
        self.seen.pods += 1;
        true
    }

    fn delete(&mut self, node: usize, chance: u64) {
        let random = &mut self.random;
        let node = &mut self.nodes[node];
        let gone: Vec<u64> = node
            .pods
            .keys()
            .copied()
            .filter(|_| random.percent(chance))
            .collect();
        for container in gone {
            wait(node.pools().release(&owner(container))).unwrap();
            node.pods.remove(&container);
        }
    }

    fn step(&mut self, step: u32) {
        self.vpc.now += 1 + self.random.below(40);
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
            self.delete(node, 6);
            self.nodes[node].check(&format!("history {}, step {step}", self.number));
            let of_vpc = |pod: &&Pod| {
                let mut all = pod.addresses.iter();
                all.any(|address| self.vpc.delivers(*address) != Some(pod.nic))
            };
            self.seen.kept += self.nodes[node].pods.values().filter(of_vpc).count() as u64;
        }
    }

    /// The service becomes honest, and all pods end: what is assigned is what pods can have.
    fn end(&mut self) {
        self.vpc.manners = Manners::HONEST;
        for node in [0, 1] {
            self.delete(node, 100);
        }
        self.vpc.now += DELAY.max(RETURN) + 1;
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

/// Plays 1,000 histories, or as many as `EBBTIDE_HISTORIES` says.
#[test]
fn whatever_the_service_says_pods_get_what_the_vpc_delivers_and_keep_what_they_have() {
    let histories: u64 = std::env::var("EBBTIDE_HISTORIES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1_000);
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
    let counts = [all.pods, all.refused, all.late, all.kept, all.restarts];
    let mut counts = counts.iter().chain(&all.lies);
    assert!(counts.all(|count| *count > 0), "{all:?}");
}
