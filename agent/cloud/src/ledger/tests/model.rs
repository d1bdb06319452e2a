//! Random histories of a service that lies, against what the VPC knows.

use std::collections::BTreeMap;

use super::*;

const NICS: u8 = 3;
/// The blocks that move around: addresses, a prefix, and an address of the prefix.
const BLOCKS: [(Kind, &str); 6] = [
    (Kind::V4Addresses, "10.0.9.10"),
    (Kind::V4Addresses, "10.0.9.11"),
    (Kind::V4Prefixes, "10.0.9.32/28"),
    (Kind::V4Addresses, "10.0.9.33"),
    (Kind::V6Addresses, "fd00::10"),
    (Kind::V6Prefixes, "fd00:1::/80"),
];
/// How long the service is behind the VPC at most, in seconds.
const DELAY: u64 = 120;

/// xorshift64: histories are the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// One block on one NIC.
#[derive(Default)]
struct Truth {
    is_assigned: bool,
    /// When the VPC took it away.
    dropped: u64,
    is_told: bool,
    /// When the service will notice.
    noticed: Option<u64>,
    /// Until when a ghost of it is told.
    ghost: Option<u64>,
    /// Whether a read was without it since it was told last.
    was_absent: bool,
    /// The whole reads since the service has noticed at the latest that it is gone.
    reads_since: u8,
}

struct World {
    /// [`BLOCKS`], parsed.
    known: Vec<(Kind, IpNet)>,
    random: Random,
    now: u64,
    /// What the ledger takes for the time, less `now`.
    skew: i64,
    blocks: BTreeMap<(usize, u8), Truth>,
    ledger: Ledger,
    saved: Ledger,
    pods: Vec<(u8, IpAddr)>,
    /// How much was seen of everything, so that a test of nothing is noticed.
    seen: [u64; 6],
}

impl World {
    fn new(seed: u64) -> Self {
        let all = (0..BLOCKS.len()).flat_map(|block| (1..=NICS).map(move |nic| (block, nic)));
        Self {
            known: BLOCKS
                .iter()
                .map(|(kind, text)| (*kind, net(text)))
                .collect(),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 1_000,
            skew: 0,
            blocks: all.map(|at| (at, Truth::default())).collect(),
            ledger: Ledger::default(),
            saved: Ledger::default(),
            pods: Vec::new(),
            seen: [0; 6],
        }
    }

    /// The VPC assigns, takes away and moves.
    fn change(&mut self) {
        let block = self.random.below(BLOCKS.len() as u64) as usize;
        let target = self.random.below(u64::from(NICS) + 1) as u8;
        for nic in 1..=NICS {
            let delay = self.random.below(DELAY + 1);
            let truth = self.blocks.get_mut(&(block, nic)).unwrap();
            let should = nic == target;
            if truth.is_assigned && !should {
                truth.dropped = self.now;
                truth.reads_since = 0;
            }
            if truth.is_assigned != should {
                truth.is_assigned = should;
                truth.noticed = Some(self.now + delay);
            }
        }
    }

    /// Time passes for the service, which notices, and has ghosts of what the ledger has seen gone.
    fn lie(&mut self) {
        for ((block, nic), truth) in &mut self.blocks {
            if truth.noticed.is_some_and(|at| at <= self.now) {
                truth.noticed = None;
                truth.is_told = truth.is_assigned;
                truth.ghost = None;
            }
            if truth.ghost.is_some_and(|until| until <= self.now) {
                truth.ghost = None;
                truth.is_told = truth.is_assigned;
            }
            let (kind, net) = self.known[*block];
            let nic = self.ledger.nic(mac(*nic));
            let entry = nic.and_then(|nic| nic.blocks.get(&kind)?.get(&net));
            // Ghosts of what was forgotten before they were told are beyond the window.
            if truth.ghost.is_some() && entry.is_none() {
                truth.ghost = None;
                truth.is_told = truth.is_assigned;
            }
            let is_remembered = entry.is_some_and(|entry| entry.state == State::Withdrawn);
            let is_quiet = !truth.is_told && !truth.is_assigned && truth.noticed.is_none();
            if is_quiet && truth.was_absent && is_remembered && self.random.percent(5) {
                truth.ghost = Some(self.now + 1 + self.random.below(RETURN - 1));
                truth.is_told = true;
                truth.was_absent = false;
                self.seen[0] += 1;
            }
        }
    }

    fn read(&mut self) {
        let mut nics = Vec::new();
        for number in 1..=NICS {
            // The list of NICs is without one, once in a while.
            if self.random.percent(2) {
                continue;
            }
            let mut told = CloudNic {
                blocks: Kind::ALL
                    .into_iter()
                    .map(|kind| (kind, Vec::new()))
                    .collect(),
                ..nic(number, "")
            };
            for ((block, own), truth) in &self.blocks {
                let (kind, net) = self.known[*block];
                if *own == number && truth.is_told {
                    told.blocks.get_mut(&kind).unwrap().push(net);
                }
            }
            for kind in Kind::ALL {
                if self.random.percent(10) {
                    told.blocks.remove(&kind);
                    self.seen[1] += 1;
                }
            }
            nics.push(told);
        }
        if nics.is_empty() {
            return;
        }
        for ((block, number), truth) in &mut self.blocks {
            let answered = nics.iter().find(|nic| nic.mac == mac(*number));
            let is_absent = answered.is_none_or(|nic| {
                let (kind, net) = &self.known[*block];
                let list = nic.blocks.get(kind);
                list.is_some_and(|list| !list.contains(net))
            });
            truth.was_absent |= is_absent;
            if !truth.is_assigned && self.now > truth.dropped + DELAY {
                truth.reads_since = truth.reads_since.saturating_add(1);
            }
        }
        let pods = &self.pods;
        let in_use = |block: &IpNet| pods.iter().any(|(_, pod)| block.contains(pod));
        let now = self.now.saturating_add_signed(self.skew);
        let changes = self.ledger.observe(now, &view(nics), &in_use);
        for change in &changes {
            match change {
                Change::Usable { .. } => self.seen[2] += 1,
                Change::Returned { .. } => self.seen[3] += 1,
                Change::Held { .. } => self.seen[4] += 1,
                Change::Forgotten { .. } => self.seen[5] += 1,
                _ => {}
            }
        }
        self.saved.clone_from(&self.ledger);
    }

    fn check(&self, what: impl std::fmt::Display) {
        let mut usable: Vec<(u8, IpNet)> = Vec::new();
        for number in 1..=NICS {
            for block in self.ledger.usable(mac(number)) {
                let place = self.known.iter().position(|(_, net)| *net == block);
                let truth = &self.blocks[&(place.unwrap(), number)];
                assert!(
                    truth.is_assigned || truth.reads_since < WINDOW,
                    "{what}: {block} of {number} is usable, dropped {} s and {} reads ago",
                    self.now - truth.dropped,
                    truth.reads_since
                );
                let double = usable
                    .iter()
                    .find(|(other, own)| *other != number && common(own, &block).is_some());
                assert_eq!(double, None, "{what}: {block} of {number}");
                usable.push((number, block));
            }
        }
        for (number, pod) in &self.pods {
            let nic = self.ledger.nic(mac(*number));
            let mut entries = nic.into_iter().flat_map(Nic::entries);
            assert!(
                entries.any(|(_, block, _)| block.contains(pod)),
                "{what}: {pod} of {number} is forgotten"
            );
        }
        assert_eq!(self.ledger.fault(), None, "{what}");
    }

    /// Pods get addresses of what is usable, and end.
    fn pods(&mut self) {
        if !self.pods.is_empty() && self.random.percent(20) {
            let place = self.random.below(self.pods.len() as u64) as usize;
            self.pods.swap_remove(place);
        }
        let number = 1 + self.random.below(u64::from(NICS)) as u8;
        let usable = self.ledger.usable(mac(number));
        if usable.is_empty() || self.random.percent(70) {
            return;
        }
        let block = usable[self.random.below(usable.len() as u64) as usize];
        let address = match block {
            IpNet::V4(block) => block
                .hosts()
                .nth(self.random.below(2) as usize)
                .or(Some(block.addr()))
                .map(IpAddr::V4),
            IpNet::V6(block) => Some(IpAddr::V6(block.addr())),
        };
        let address = address.unwrap();
        if self.pods.iter().all(|(_, pod)| *pod != address) {
            self.pods.push((number, address));
        }
    }

    fn step(&mut self, what: impl std::fmt::Display + Copy) {
        self.now += 1 + self.random.below(60);
        if self.random.percent(15) {
            self.change();
        }
        self.lie();
        // An error, or several for a long time, is no read.
        if self.random.percent(85) {
            self.read();
            self.check(what);
        }
        self.pods();
        if self.random.percent(3) {
            self.skew -= i64::try_from(self.random.below(self.now)).unwrap();
            self.skew = self.skew.max(-i64::try_from(self.now).unwrap());
        }
        if self.random.percent(3) {
            let text = serde_json::to_string(&self.saved).unwrap();
            self.ledger = serde_json::from_str(&text).unwrap();
            self.check(what);
        }
    }
}

#[test]
fn a_service_that_lies_gives_no_pod_an_address_that_the_vpc_drops() {
    let histories: u64 = std::env::var("EBBTIDE_HISTORIES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1_000);
    let mut seen = [0; 6];
    for seed in 1..=histories {
        let mut world = World::new(seed);
        for step in 0..120 {
            world.step(format_args!("history {seed}, step {step}"));
        }
        for (all, one) in seen.iter_mut().zip(world.seen) {
            *all += one;
        }
    }
    println!("ghosts, gaps, usable, returned, held, forgotten: {seen:?}");
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}
