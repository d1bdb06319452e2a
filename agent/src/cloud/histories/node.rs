//! A node of the histories: what an agent has of the cloud, without the rest of it.

mod pods;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use ebbtide_cloud::{
    Kind, Provider, View,
    ledger::{Ledger, UNANSWERED},
    saved::Saved,
};
use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Families, OpenError, Options, Owner, Pools, Withheld},
};
use ebbtide_kernel::node::{Nic, NodeFacts};
use ebbtide_kube::cloud_map::Wish;
use ebbtide_types::Family;
use ipnet::IpNet;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    controller::Store,
    vpc::{LINKS, Random, Vpc, mac},
};
use crate::cloud::{Cloud, Sets, Sharing, derive::derive, waiting::WaitingPods};

/// For how long a pod counts as one that waits, which does not come again.
const WAITS: u64 = 90;

/// A pod, by the number of its container.
pub(super) struct Pod {
    /// Its NIC, of all of the VPC's.
    pub(super) nic: usize,
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// A pod that found no address.
#[derive(Clone, Copy)]
pub(super) struct Refused {
    pub(super) place: usize,
    pub(super) families: Families,
    lacking: Option<Family>,
    at: u64,
    pub(super) gave_up: bool,
}

/// An agent, and its directory.
pub(super) struct Node {
    number: usize,
    dir: TempDir,
    /// None only while it restarts.
    pools: Option<Pools>,
    saved: Saved,
    pub(super) ledger: Ledger,
    catalog: Catalog,
    facts: NodeFacts,
    /// When the process began, whose clock counts from then on, by the VPC's time.
    began: u64,
    pub(super) pods: BTreeMap<u64, Pod>,
    /// In how many reads on end each kind was not answered.
    gaps: BTreeMap<(usize, Kind), u8>,
    cloud: Cloud,
    /// None only while it restarts.
    sharing: Option<Sharing>,
    /// What the agent knows of what is asked back.
    heard: Wish,
    /// What it told as surrendered, and knows to be asked back ever since.
    promised: Sets,
    waiting: WaitingPods,
    zero: Instant,
    pub(super) refused: BTreeMap<u64, Refused>,
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

/// Returns what an agent knows that starts with this directory: who is asked for what.
fn sharing_of(dir: &TempDir) -> (Cloud, Option<Sharing>) {
    let cloud = Cloud::default();
    cloud.state().provider = Some(Ok(Provider::Aws));
    for link in LINKS {
        cloud.want(link);
    }
    cloud.restore_asked_back(dir.path());
    let sharing = cloud.take_sharing();
    (cloud, sharing)
}

impl Node {
    pub(super) fn new(number: usize) -> Self {
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
        let (cloud, sharing) = sharing_of(&dir);
        Self {
            number,
            pools: Some(open(&dir)),
            saved: Saved::load(dir.path()).0,
            ledger: Ledger::default(),
            catalog: Catalog::default(),
            facts,
            began: 0,
            pods: BTreeMap::new(),
            gaps: BTreeMap::new(),
            cloud,
            sharing,
            heard: Wish::Back(BTreeMap::new()),
            promised: Sets::default(),
            waiting: WaitingPods::default(),
            zero: Instant::now(),
            refused: BTreeMap::new(),
            dir,
        }
    }

    fn name(&self) -> String {
        format!("node{}", self.number)
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

    /// Whether a pod has an address of the block by this NIC.
    pub(super) fn uses(&self, nic: usize, block: &IpNet) -> bool {
        let mut pods = self.pods.values().filter(|pod| pod.nic == nic);
        pods.any(|pod| pod.addresses.iter().any(|address| block.contains(address)))
    }

    /// Reads, as the follower does: the ledger is on disk before anybody gets what is in it. `dies` says that the agent
    /// ends in between.
    pub(super) fn read(&mut self, vpc: &mut Vpc, random: &mut Random, dies: bool) {
        // A read takes a moment, in which things change.
        let now = vpc.now - self.began;
        let uses = |nic, block: &IpNet| self.uses(nic, block);
        let Some(view) = vpc.read(self.number, random, !dies, uses) else {
            return;
        };
        let in_use = self.in_use();
        let uses = |block: &IpNet| in_use.keys().any(|address| block.contains(address));
        let before = self.ledger.clone();
        let _changes = self.ledger.observe(now, &view, &uses);
        if dies {
            return self.begin(vpc.now);
        }
        self.check_gaps(&view, &before);
        self.saved.store(&self.ledger).unwrap();
        self.publish();
    }

    /// Checks that a kind without an answer is no news, for a while.
    fn check_gaps(&mut self, view: &View, before: &Ledger) {
        for place in 0..LINKS.len() {
            let nic = 2 * self.number + place;
            let told = view.nics.iter().find(|told| told.mac == mac(nic));
            for kind in Kind::ALL {
                let gaps = self.gaps.entry((nic, kind)).or_default();
                let is_gap = told.is_some_and(|told| !told.blocks.contains_key(&kind));
                *gaps = if is_gap { *gaps + 1 } else { 0 };
                if !(1..UNANSWERED).contains(gaps) {
                    continue;
                }
                let after = self.ledger.usable(mac(nic));
                let had = before.usable(mac(nic)).into_iter();
                for block in had.filter(|block| is_of(kind, block)) {
                    let has = after.iter().any(|own| own.contains(&block));
                    assert!(
                        has,
                        "{block} was not answered for {gaps} reads, and is held"
                    );
                }
            }
        }
    }

    fn publish(&mut self) {
        let wanted = LINKS.map(str::to_owned).into();
        let derived = derive(
            &self.name(),
            Provider::Aws,
            &self.ledger,
            &self.facts,
            &wanted,
        );
        self.catalog = Catalog::default().with_derived(&derived.nics, &derived.notes);
        self.cloud.state().ledger = self.ledger.clone();
    }

    /// Restarts the agent, and checks that it knows what it knew.
    pub(super) fn restart(&mut self, now: u64) {
        let known = |ledger: &Ledger| {
            let held = |nic| {
                let held = ledger.held(mac(nic)).into_iter();
                held.map(|held| held.block).collect::<Vec<_>>()
            };
            let nics = 2 * self.number..2 * self.number + LINKS.len();
            nics.map(|nic| (ledger.usable(mac(nic)), held(nic)))
                .collect::<Vec<_>>()
        };
        let before = known(&self.ledger);
        let (_, history) = Saved::load(self.dir.path());
        let after = known(&history.unwrap().unwrap_or_default());
        assert_eq!(before, after, "what is usable, and what is held");
        self.begin(now);
    }

    fn begin(&mut self, now: u64) {
        self.began = now;
        drop(self.pools.take());
        self.pools = Some(open(&self.dir));
        let (saved, history) = Saved::load(self.dir.path());
        self.saved = saved;
        self.ledger = history.unwrap().unwrap_or_default();
        (self.cloud, self.sharing) = sharing_of(&self.dir);
        (self.waiting, self.refused) = Default::default();
        self.publish();
        self.withhold();
    }

    fn withhold(&self) {
        let asked_back = self.cloud.withheld();
        let withheld = Withheld::new([]).with_asked_back(asked_back.iter().cloned());
        self.pools().withhold(withheld);
    }

    /// Whether nothing is withheld from pods.
    pub(super) fn withholds_nothing(&self) -> bool {
        self.cloud.withheld().is_empty()
    }

    /// Does a round of telling the cluster. Without `random` all goes well; else the agent may be late, or end in between.
    pub(super) fn share(&mut self, now: u64, store: &mut Store, random: Option<&mut Random>) {
        let (is_late, fate) = random.map_or((false, u64::MAX), |random| {
            (random.percent(20), random.below(60))
        });
        if !is_late && !store.is_deaf {
            self.heard = store.wish();
        }
        if let Wish::Back(back) = &self.heard {
            let mut asked = Sets::default();
            back.values().flatten().for_each(|set| asked.add(set));
            self.promised = self.promised.common(&asked);
        }
        let mut sharing = self.sharing.take().unwrap();
        let clock = now - self.began;
        self.cloud.ask_back(
            &mut sharing,
            clock,
            self.heard.clone(),
            &self.facts,
            &self.catalog,
        );
        self.withhold();
        if fate == 0 {
            return self.begin(now);
        }
        wait(sharing.save()).unwrap();
        if fate == 1 {
            return self.begin(now);
        }
        let report = self.cloud.report_of(
            &sharing,
            &self.name(),
            &self.facts,
            &self.catalog,
            self.pools(),
        );
        if let Some(report) = report {
            let surrendered = sharing.telling(&report);
            if fate == 2 {
                return self.begin(now);
            }
            // It may be lost on its way, as may the answer.
            let arrives = !(3..8).contains(&fate) && !store.is_mute;
            if arrives {
                store.tell(now, surrendered.clone());
                self.promised = self.promised.union(&surrendered);
            }
            if fate == 8 {
                store.is_mute = true;
                return self.begin(now);
            }
            // Where there is trouble, more follows.
            store.is_mute |= (8..14).contains(&fate);
            if arrives && !(8..14).contains(&fate) {
                self.cloud.has_told(&mut sharing, clock, surrendered);
            }
        }
        self.sharing = Some(sharing);
    }
}

/// Whether a block is one of those that are told as this kind.
fn is_of(kind: Kind, block: &IpNet) -> bool {
    let is_address = matches!(kind, Kind::V4Addresses | Kind::V6Addresses);
    kind.family() == Family::of_net(block)
        && is_address == (block.prefix_len() == block.max_prefix_len())
}
