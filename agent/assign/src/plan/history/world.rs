//! What the histories happen in: EC2, agents, and what the API server keeps. Models, not the real ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ebbtide_ipam::catalog::AddressSet;
use ebbtide_kube::node_cloud::{Asked, NodeCloud, NodeNic, NodePool, VERSION};
use ebbtide_types::{Family, Mac};
use ipnet::IpNet;

use crate::{
    ec2::{Amount, Described},
    plan::{By, Report, sets},
};

/// The most addresses and prefixes of a NIC, its own address included.
pub(super) const LIMIT: u64 = 6;

/// How late EC2's own descriptions are at most, in seconds.
const LATE: u64 = 5;

/// How late the metadata service is at most.
const METADATA: u64 = 60;

/// How long a released address rests.
const REST: u64 = 30;

/// How long an agent keeps what it surrendered after it is not asked for it any more.
const KEEP: u64 = 1200;

pub(super) fn name(number: usize) -> String {
    format!("node-{number}")
}

pub(super) fn number(name: &str) -> usize {
    name.trim_start_matches("node-").parse().unwrap()
}

pub(super) fn instance(number: usize) -> String {
    format!("i-{number}")
}

fn eni(number: usize) -> String {
    format!("eni-{number}")
}

fn mac(number: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])
}

/// Numbers by chance, the same for the same seed.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }

    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// EC2: who has what, and since when.
pub(super) struct Ec2 {
    nics: Vec<Vec<(u64, Described)>>,
    /// What there is to give: few, so that the same are given again.
    pieces: Vec<IpNet>,
}

impl Ec2 {
    pub(super) fn new(by: By, nodes: usize) -> Self {
        let first = u32::from(Ipv4Addr::new(10, 0, 0, 0));
        let (size, length) = match by {
            By::Address => (1, 32),
            By::Prefix => (16, 28),
        };
        let piece = |each: u32| {
            IpNet::new(Ipv4Addr::from(first + (each + 1) * size).into(), length).unwrap()
        };
        let nic = |number: usize| Described {
            id: eni(number),
            mac: Some(mac(number)),
            instance: Some(instance(number)),
            primary: BTreeSet::from([IpAddr::from([10, 1, 0, u8::try_from(number).unwrap()])]),
            blocks: BTreeSet::new(),
        };
        Self {
            nics: (0..nodes).map(|number| vec![(0, nic(number))]).collect(),
            pieces: (0..14).map(piece).collect(),
        }
    }

    pub(super) fn had(&self, number: usize) -> &Described {
        &self.nics[number].last().unwrap().1
    }

    fn had_at(&self, number: usize, at: u64) -> &Described {
        let history = &self.nics[number];
        let last = history.iter().rev().find(|(since, _)| *since <= at);
        &last.unwrap_or(&history[0]).1
    }

    pub(super) fn describe(
        &self,
        id: &str,
        now: u64,
        chance: &mut Chance,
        wild: bool,
    ) -> Option<Described> {
        let number = id.trim_start_matches("eni-").parse().ok()?;
        let late = if wild { chance.below(LATE) } else { 0 };
        Some(self.had_at(number, now.saturating_sub(late)).clone())
    }

    pub(super) fn assign(
        &mut self,
        number: usize,
        amount: Amount,
        now: u64,
        chance: &mut Chance,
    ) -> Option<Vec<IpNet>> {
        let (Amount::Addresses(count) | Amount::Prefixes(count)) = amount;
        let mut nic = self.had(number).clone();
        if nic.slots(Family::V4) + u64::from(count) > LIMIT {
            return None;
        }
        let mut given = Vec::new();
        for _ in 0..count {
            let taken = |piece: &IpNet| {
                nic.blocks.contains(piece)
                    || (0..self.nics.len()).any(|nic| self.had(nic).blocks.contains(piece))
            };
            let free: Vec<IpNet> = self
                .pieces
                .iter()
                .filter(|piece| !taken(piece))
                .copied()
                .collect();
            let piece = free[usize::try_from(chance.below(free.len() as u64)).unwrap()];
            nic.blocks.insert(piece);
            given.push(piece);
        }
        self.nics[number].push((now, nic));
        Some(given)
    }

    pub(super) fn unassign(&mut self, number: usize, blocks: &[IpNet], now: u64) {
        let mut nic = self.had(number).clone();
        nic.blocks.retain(|block| !blocks.contains(block));
        self.nics[number].push((now, nic));
    }
}

/// What the API server keeps of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) told: Option<NodeCloud>,
    pub(super) asked: Asked,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            told: None,
            asked: Asked {
                version: VERSION,
                back: BTreeMap::new(),
            },
        }
    }
}

impl Store {
    pub(super) fn report(&self) -> Option<Report> {
        Some(Report {
            told: self.told.clone()?,
            asked: self.asked.clone(),
        })
    }
}

/// An agent, as the format of its words promises.
pub(super) struct Node {
    number: usize,
    /// What the metadata told, and from when on it is of.
    blocks: BTreeSet<IpNet>,
    as_of: u64,
    used: BTreeSet<IpAddr>,
    resting: BTreeMap<IpAddr, u64>,
    /// What it gives to nobody: for ever, or until.
    kept: BTreeMap<IpAddr, Option<u64>>,
    pub(super) waiting: u64,
}

impl Node {
    pub(super) const fn new(number: usize) -> Self {
        Self {
            number,
            blocks: BTreeSet::new(),
            as_of: 0,
            used: BTreeSet::new(),
            resting: BTreeMap::new(),
            kept: BTreeMap::new(),
            waiting: 0,
        }
    }

    pub(super) fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.used.iter().copied()
    }

    /// Asks the metadata service.
    pub(super) fn learn(&mut self, ec2: &Ec2, now: u64, chance: &mut Chance, wild: bool) {
        let late = if wild { chance.below(METADATA) } else { 10 };
        // It may be late; it does not go back.
        self.as_of = self.as_of.max(now.saturating_sub(late));
        self.blocks = ec2.had_at(self.number, self.as_of).blocks.clone();
    }

    /// Lets pods come and go.
    pub(super) fn pods(&mut self, now: u64, chance: &mut Chance) {
        let busy = (now / 1500).is_multiple_of(2);
        if self.waiting < 3 && chance.one_in(if busy { 3 } else { 12 }) {
            self.waiting += 1;
        }
        if chance.one_in(if busy { 12 } else { 3 }) {
            let number = chance.below(self.used.len().max(1) as u64);
            let gone = self
                .used
                .iter()
                .nth(usize::try_from(number).unwrap())
                .copied();
            if let Some(address) = gone {
                self.used.remove(&address);
                self.resting.insert(address, now + REST);
            }
        }
    }

    fn ranges(&self) -> Vec<IpAddr> {
        self.blocks
            .iter()
            .flat_map(IpNet::subnets_as_hosts)
            .collect()
    }

    /// Gives addresses to pods that wait.
    pub(super) fn serve(&mut self, now: u64) {
        self.resting.retain(|_, until| *until > now);
        self.kept
            .retain(|_, until| until.is_none_or(|until| until > now));
        while self.waiting > 0 {
            let free = self.ranges().into_iter().find(|address| {
                !self.used.contains(address)
                    && !self.resting.contains_key(address)
                    && !self.kept.contains_key(address)
            });
            let Some(address) = free else {
                return;
            };
            self.used.insert(address);
            self.waiting -= 1;
        }
    }

    /// Sees what it is asked for.
    pub(super) fn hear(&mut self, asked: &Asked, now: u64) {
        let back = asked.back.get(&eni(self.number));
        let text = back.and_then(|back| back.get(&Family::V4));
        let asked = sets::read(text.map_or("", String::as_str), Family::V4).unwrap();
        for (address, until) in &mut self.kept {
            *until = match asked.contains(*address) {
                true => None,
                false => until.or(Some(now + KEEP)),
            };
        }
        for (first, last) in asked.ranges() {
            let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else {
                continue;
            };
            for address in u32::from(first)..=u32::from(last) {
                let address = IpAddr::from(Ipv4Addr::from(address));
                if !self.used.contains(&address) && !self.resting.contains_key(&address) {
                    self.kept.insert(address, None);
                }
            }
        }
    }

    /// Says what it has.
    pub(super) fn tell(&self, now: u64) -> NodeCloud {
        let text = |addresses: &mut dyn Iterator<Item = IpAddr>| {
            AddressSet::of(Family::V4, addresses).to_string()
        };
        let _ = now;
        let kept = self.kept.keys().copied();
        let pool = NodePool {
            name: "p".into(),
            networks: Vec::new(),
            family: Family::V4,
            subnet: "10.0.0.0/16".parse().unwrap(),
            gateway: None,
            ranges: text(&mut self.ranges().into_iter()),
            used: text(&mut self.used.iter().copied()),
            resting: text(&mut self.resting.keys().copied()),
            held: String::new(),
            surrendered: text(&mut kept.filter(|address| !self.used.contains(address))),
        };
        NodeCloud {
            version: VERSION,
            node: name(self.number),
            cloud: "aws".into(),
            nics: vec![NodeNic {
                id: eni(self.number),
                mac: mac(self.number),
                link: "ens5".into(),
                waiting: BTreeMap::from([(Family::V4, self.waiting)]),
                blocks: self.blocks.iter().copied().collect(),
                pools: vec![pool],
            }],
        }
    }

    pub(super) fn assert_nobody_has(&self, blocks: &[IpNet], now: u64) {
        let resting = self.resting.keys();
        for address in self.used.iter().chain(resting) {
            let taken = blocks.iter().find(|block| block.contains(address));
            assert_eq!(taken, None, "{now} s: {address} of {}", name(self.number));
        }
    }
}

/// The addresses of a small block, all of them.
trait Hosts {
    fn subnets_as_hosts(&self) -> Vec<IpAddr>;
}

impl Hosts for IpNet {
    fn subnets_as_hosts(&self) -> Vec<IpAddr> {
        let set = AddressSet::of_net(self);
        (0..set.len()).filter_map(|index| set.get(index)).collect()
    }
}
