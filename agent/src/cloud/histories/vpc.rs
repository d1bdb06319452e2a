//! A VPC that assigns and moves addresses, and its metadata service, which is late and lies.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_cloud::{
    CloudNic, Kind, View,
    ledger::{FORGET, RETURN, SETTLE},
};
use ebbtide_types::Mac;
use ipnet::IpNet;

/// The NICs of the nodes, two of each: the first two are the first node's.
pub(super) const NICS: usize = 4;
/// The NICs of a node.
pub(super) const LINKS: [&str; 2] = ["ens5", "ens6"];
/// How long the service is behind the VPC at most, in seconds.
pub(super) const DELAY: u64 = 120;

/// What moves between the NICs: addresses, prefixes, and addresses of the first prefix.
const BLOCKS: [(Kind, &str); 11] = [
    (Kind::V4Addresses, "10.0.9.10/32"),
    (Kind::V4Addresses, "10.0.9.11/32"),
    (Kind::V4Addresses, "10.0.9.12/32"),
    (Kind::V4Addresses, "10.0.9.13/32"),
    (Kind::V4Addresses, "10.0.9.33/32"),
    (Kind::V4Addresses, "10.0.9.34/32"),
    (Kind::V4Prefixes, "10.0.9.32/28"),
    (Kind::V4Prefixes, "10.0.9.64/28"),
    (Kind::V6Addresses, "fd00::10/128"),
    (Kind::V6Addresses, "fd00::11/128"),
    (Kind::V6Prefixes, "fd00:0:0:0:1::/80"),
];

/// xorshift64: histories are the same on every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) const fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(super) const fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What somebody who forgets nothing too early has seen of a block at a NIC.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Memory {
    #[default]
    Never,
    /// It was told, the last time then.
    Told(u64),
    /// A read was without it since it was told last, which was then.
    Gone(u64),
}

/// One block at one NIC.
#[derive(Default)]
struct Truth {
    is_assigned: bool,
    /// When the VPC took it away.
    dropped: u64,
    is_told: bool,
    /// When the service will notice the VPC's last change.
    noticed: Option<u64>,
    /// Until when it is told as a ghost.
    ghost: Option<u64>,
    /// Until when it is told for a moment, without a reason.
    flash: Option<u64>,
    /// Whether the latest read told it: then another one would tell it on end.
    is_told_last: bool,
    /// Whether it was told for moments alone since a read was without it.
    is_flashing: bool,
    memory: Memory,
    /// The node's whole reads since the service had to know that it is gone. Not assigned ever: as many as there are.
    reads_since: u8,
    /// Whether the service has said, since it was assigned last, that it is gone.
    is_said_gone: bool,
}

impl Truth {
    fn lose(&mut self, now: u64, noticed: u64) {
        self.is_assigned = false;
        self.noticed = Some(noticed);
        self.dropped = now;
        self.reads_since = 0;
    }

    const fn is_quiet(&self) -> bool {
        !self.is_told && !self.is_assigned && self.noticed.is_none()
    }
}

/// How a service lies in one history.
pub(super) struct Manners {
    /// A NIC is missing in a read, in percent.
    pub(super) missing_nic: u64,
    /// A kind is not answered, in percent.
    pub(super) unanswered: u64,
    /// A kind's list is empty for once, in percent.
    pub(super) empty: u64,
    /// Something changes between the lists of two NICs, in percent.
    pub(super) torn: u64,
    /// A ghost is told, in percent of the quiet blocks at each step.
    pub(super) ghost: u64,
    /// Something is told for a moment, in a thousandth of the quiet blocks at each step.
    pub(super) flash: u64,
}

impl Manners {
    pub(super) const HONEST: Self = Self {
        missing_nic: 0,
        unanswered: 0,
        empty: 0,
        torn: 0,
        ghost: 0,
        flash: 0,
    };

    pub(super) const fn random(random: &mut Random) -> Self {
        Self {
            missing_nic: random.below(6),
            unanswered: match random.percent(25) {
                true => 75,
                false => random.below(25),
            },
            empty: random.below(6),
            torn: random.below(30),
            ghost: random.below(8),
            flash: random.below(8),
        }
    }
}

/// Whether no other block has addresses of this one: then it is this one that pods have theirs of.
fn is_alone(blocks: &[(Kind, IpNet)], net: &IpNet) -> bool {
    let common = blocks
        .iter()
        .filter(|(_, own)| own.contains(net) || net.contains(own));
    common.count() == 1
}

/// The VPC and its service.
pub(super) struct Vpc {
    /// [`BLOCKS`], parsed.
    blocks: Vec<(Kind, IpNet)>,
    truths: BTreeMap<(usize, usize), Truth>,
    pub(super) now: u64,
    pub(super) manners: Manners,
    /// Ghosts, unanswered kinds, empty lists, torn reads, flashes.
    pub(super) seen: [u64; 5],
}

/// Returns the MAC of a NIC.
pub(super) const fn mac(nic: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, nic as u8 + 1])
}

impl Vpc {
    pub(super) fn new(random: &mut Random) -> Self {
        let all = (0..BLOCKS.len()).flat_map(|block| (0..NICS).map(move |nic| (block, nic)));
        let never = || Truth {
            reads_since: u8::MAX,
            is_said_gone: true,
            ..Truth::default()
        };
        let parsed = |(kind, text): &(Kind, &str)| (*kind, text.parse().unwrap());
        Self {
            blocks: BLOCKS.iter().map(parsed).collect(),
            truths: all.map(|at| (at, never())).collect(),
            now: 1_000,
            manners: Manners::random(random),
            seen: [0; 5],
        }
    }

    /// Assigns a block to a NIC, which another one loses with all that it has in common with it, or to none.
    pub(super) fn change(&mut self, random: &mut Random) {
        let block = random.below(BLOCKS.len() as u64) as usize;
        let target = random.below(NICS as u64 + 1) as usize;
        let net = self.blocks[block].1;
        for ((other, nic), truth) in &mut self.truths {
            let own = self.blocks[*other].1;
            let should = *other == block && *nic == target;
            let is_touched = own.contains(&net) || net.contains(&own);
            if !is_touched || truth.is_assigned == should {
                continue;
            }
            let noticed = self.now + random.below(DELAY + 1);
            if should {
                (truth.is_assigned, truth.is_said_gone) = (true, false);
                truth.noticed = Some(noticed);
            } else {
                truth.lose(self.now, noticed);
            }
        }
    }

    /// Takes a block from a NIC, as the cloud controller does. Returns whether the NIC had it.
    pub(super) fn unassign(&mut self, nic: usize, block: usize, random: &mut Random) -> bool {
        let now = self.now;
        let had = self.truths.get_mut(&(block, nic));
        let Some(truth) = had.filter(|truth| truth.is_assigned) else {
            return false;
        };
        truth.lose(now, now + random.below(DELAY + 1));
        true
    }

    /// Returns the blocks, by their numbers.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (usize, IpNet)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.map(|(number, (_, block))| (number, *block))
    }

    /// Lets the service notice what the VPC changed, and end its lies.
    fn notice(&mut self) {
        for truth in self.truths.values_mut() {
            if truth.noticed.is_some_and(|at| at <= self.now) {
                truth.noticed = None;
                truth.is_told = truth.is_assigned;
                truth.ghost = None;
            }
            if truth.ghost.is_some_and(|until| until <= self.now) {
                truth.ghost = None;
                truth.is_told = truth.is_assigned;
            }
            truth.flash = truth.flash.filter(|until| *until > self.now);
        }
    }

    /// Lets the service notice, tell ghosts of what was seen gone and has to be remembered, and tell other things for a
    /// moment. `uses` says whether a pod has an address of a block by this NIC.
    ///
    /// A ghost of what need not be remembered, or that is told for longer than [`RETURN`], is beyond what anybody can know.
    pub(super) fn lie(&mut self, random: &mut Random, uses: impl Fn(usize, &IpNet) -> bool) {
        self.notice();
        for ((block, nic), truth) in &mut self.truths {
            if !truth.is_quiet() {
                truth.is_flashing = false;
                continue;
            }
            // As long as pods use it, too.
            let is_remembered = match truth.memory {
                Memory::Gone(told) => {
                    let net = &self.blocks[*block].1;
                    let used = || is_alone(&self.blocks, net) && uses(*nic, net);
                    self.now < told + FORGET || used()
                }
                Memory::Never | Memory::Told(_) => false,
            };
            if is_remembered && random.percent(self.manners.ghost) {
                truth.ghost = Some(self.now + 1 + random.below(RETURN - 1));
                truth.is_told = true;
                self.seen[0] += 1;
            } else if (truth.is_flashing || !matches!(truth.memory, Memory::Told(_)))
                && !truth.is_told_last
                && truth.flash.is_none()
                && random.below(1000) < self.manners.flash
            {
                // Less than it takes to be believed.
                truth.flash = Some(self.now + 1 + random.below(SETTLE - 1));
                truth.is_flashing = true;
                self.seen[4] += 1;
            }
        }
    }

    /// Returns what the service tells a node, the lists of its NICs one after the other; none for an empty answer. A read
    /// that an agent does not live to remember is none that counts.
    ///
    /// What is gone for long enough, and not used, may be forgotten then.
    pub(super) fn read(
        &mut self,
        node: usize,
        random: &mut Random,
        counts: bool,
        uses: impl Fn(usize, &IpNet) -> bool,
    ) -> Option<View> {
        let mut view = View::default();
        for nic in [2 * node, 2 * node + 1] {
            if random.percent(self.manners.missing_nic) {
                continue;
            }
            view.nics.push(self.list(nic, random));
            if random.percent(self.manners.torn) {
                self.now += random.below(3);
                self.change(random);
                self.notice();
                self.seen[3] += 1;
            }
        }
        if view.nics.is_empty() {
            return None;
        }
        for ((block, nic), truth) in &mut self.truths {
            if nic / 2 != node || !counts {
                continue;
            }
            let (kind, net) = self.blocks[*block];
            let told = view.nics.iter().find(|told| told.mac == mac(*nic));
            let list = told.map(|told| told.blocks.get(&kind));
            let is_there = match list {
                None => Some(false),
                Some(None) => None,
                Some(Some(list)) => Some(list.contains(&net)),
            };
            match (is_there, truth.memory) {
                (Some(true), _) => truth.memory = Memory::Told(self.now),
                (Some(false), Memory::Told(at)) => truth.memory = Memory::Gone(at),
                (_, Memory::Gone(at)) if self.now >= at + FORGET && !uses(*nic, &net) => {
                    truth.memory = Memory::Never;
                    if truth.ghost.take().is_some() {
                        truth.is_told = truth.is_assigned;
                    }
                }
                _ => {}
            }
            truth.is_told_last = is_there == Some(true);
            if is_there == Some(false) {
                // Of what was never told, nobody can say that it is gone.
                truth.is_said_gone |= !truth.is_assigned && truth.memory != Memory::Never;
            }
            if !truth.is_assigned && self.now > truth.dropped + DELAY {
                truth.reads_since = truth.reads_since.saturating_add(1);
            }
        }
        Some(view)
    }

    fn list(&mut self, nic: usize, random: &mut Random) -> CloudNic {
        let mut blocks: BTreeMap<Kind, Vec<IpNet>> = BTreeMap::new();
        for kind in Kind::ALL {
            if random.percent(self.manners.unanswered) {
                self.seen[1] += 1;
                continue;
            }
            let list = blocks.entry(kind).or_default();
            if random.percent(self.manners.empty) {
                self.seen[2] += 1;
                continue;
            }
            let of_nic = |((block, own), truth): (&(usize, usize), &Truth)| {
                let (of_kind, net) = self.blocks[*block];
                let is_told = truth.is_told || truth.flash.is_some_and(|until| until > self.now);
                (*own == nic && of_kind == kind && is_told).then_some(net)
            };
            list.extend(self.truths.iter().filter_map(of_nic));
        }
        let text = |text: String| text.parse().unwrap();
        CloudNic {
            mac: mac(nic),
            id: format!("eni-{nic}"),
            primary: vec![text(format!("10.0.1.{}", nic + 4))],
            blocks,
            subnets: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()],
            gateways: vec![text("10.0.0.1".into()), text("fd00::1".into())],
        }
    }

    /// Returns the NIC that the VPC delivers an address to.
    pub(super) fn delivers(&self, address: IpAddr) -> Option<usize> {
        let mut all = self.truths.iter();
        all.find(|((block, _), truth)| {
            truth.is_assigned && self.blocks[*block].1.contains(&address)
        })
        .map(|((_, nic), _)| *nic)
    }

    /// Returns the fewest whole reads of the node since the service had to know that the NIC lost the address.
    pub(super) fn reads_since(&self, address: IpAddr, nic: usize) -> u8 {
        let all = self.truths.iter();
        let of_nic =
            all.filter(|((block, own), _)| *own == nic && self.blocks[*block].1.contains(&address));
        of_nic
            .map(|(_, truth)| truth.reads_since)
            .min()
            .unwrap_or(u8::MAX)
    }

    /// Whether the service has said of all that the NIC had with this address that it is gone.
    pub(super) fn is_said_gone(&self, address: IpAddr, nic: usize) -> bool {
        let mut all = self.truths.iter();
        all.all(|((block, own), truth)| {
            *own != nic || !self.blocks[*block].1.contains(&address) || truth.is_said_gone
        })
    }

    /// Returns the addresses' blocks that a NIC has.
    pub(super) fn assigned(&self, nic: usize) -> Vec<IpNet> {
        let all = self.truths.iter();
        let of_nic = all.filter(|((_, own), truth)| *own == nic && truth.is_assigned);
        let mut blocks: Vec<IpNet> = of_nic
            .map(|((block, _), _)| self.blocks[*block].1)
            .collect();
        blocks.sort_unstable();
        blocks
    }
}
