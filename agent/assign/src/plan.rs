//! What to ask the cloud for, and what to give back. Pure: of what agents tell and the cloud describes come actions.
//!
//! # Why no address is taken away that a pod has, whoever believes to be the leader
//!
//! Four facts make it so. None of them needs clocks that agree, or a Lease that two never hold.
//!
//! 1. **An agent surrenders.** It names an address in `surrendered` only while it is asked back and nobody has it. It gives
//!    it to nobody as long as it is asked back, *and for twenty minutes more*, also if the cloud does not tell the address
//!    in between, and also if it restarts.
//! 2. **Whoever sends an Unassign has just read the ConfigMap** from the API server (not from a watch), and found the
//!    address in `asked` and in `surrendered` ([`may_take`]). So at that time the twenty minutes had not begun.
//! 3. **The request is signed with the time at which this controller last verified its Lease**, which is before that
//!    reading. AWS refuses a request whose signature is more than five minutes off its own clock. If the controller's clock
//!    is ahead by up to five minutes, that is ten minutes after the reading at most. A clock that is further off signs
//!    nothing that AWS accepts.
//! 4. **Others may do anything to the wish meanwhile.** A new leader that drops it makes the twenty minutes begin, not end.
//!
//! So an Unassign that a paused, deposed or lost controller has sent is carried out within ten minutes, or never; and the
//! address rests for twenty. Assigning is not dangerous: EC2 itself keeps the limit, and what was assigned twice is given
//! back later.
//!
//! # Why it does not ask twice
//!
//! EC2 describes what a NIC has. What it describes and the agent does not tell yet is on its way, and counts as if it were
//! there, whoever asked for it. EC2's descriptions may be late themselves: so after each change nothing more is asked for
//! that NIC until its agent tells the change, or [`WAIT`] has passed; and a new leader, which does not know what the last
//! one asked for, changes nothing for [`SETTLE`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ebbtide_ipam::catalog::AddressSet;
use ebbtide_kube::node_cloud::{Asked, NodeNic, VERSION};
use ebbtide_types::Family;
use ipnet::IpNet;

use crate::ec2::{Amount, Described, Limits};

mod nic;
mod report;
mod sets;

pub use report::{Report, Unreadable, may_take};

use nic::{Demand, Wishes};

/// How long nothing more is asked for a NIC after a change that its agent does not tell.
pub const WAIT: Duration = Duration::from_secs(120);

/// How long a new leader changes nothing.
pub const SETTLE: Duration = Duration::from_secs(30);

/// How old a description may be that a change relies on.
pub const FRESH: Duration = Duration::from_secs(10);

/// How old one may be that says that nothing is to be done.
pub const KNOWN: Duration = Duration::from_secs(60);

/// How long after a change EC2 may still describe what was before it.
pub const LAG: Duration = Duration::from_secs(5);

/// The pauses of a NIC that EC2 refuses to change: they double.
const PAUSES: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(600)];

/// How long less is asked for at once where the subnet had no room for more: others may give addresses back.
pub const MODEST: Duration = Duration::from_secs(600);

/// In which pieces addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Single addresses.
    Address,
    /// Prefixes: /28 of IPv4, /80 of IPv6.
    Prefix,
}

impl By {
    /// Returns how many addresses a piece has.
    #[must_use]
    pub const fn size(self, family: Family) -> u128 {
        match (self, family) {
            (Self::Address, _) => 1,
            (Self::Prefix, Family::V4) => 1 << 4,
            (Self::Prefix, Family::V6) => 1 << 48,
        }
    }
}

/// What people want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many free pieces each NIC keeps, by family.
    pub warm: BTreeMap<Family, u64>,
    /// In which pieces addresses are asked for.
    pub by: By,
    /// How many pieces a NIC may have, beside its own address, whatever its type would allow.
    pub max_per_nic: Option<u64>,
    /// How many free pieces more than `warm` are kept, so that a pod that comes and goes makes no requests.
    pub slack: u64,
    /// For how long there must be more than these before any is given back.
    pub idle: Duration,
}

impl Settings {
    fn warm(&self, family: Family) -> u64 {
        self.warm.get(&family).copied().unwrap_or(0)
    }
}

/// What is known of a node.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Its instance (`i-…`), by the cluster's own record; `None` if that does not say.
    pub instance: Option<String>,
    /// The limits of its NICs, if they are known.
    pub limits: Option<Limits>,
    /// What its agent tells, and what it is asked; or why that cannot be read.
    pub report: Result<Report, Unreadable>,
}

/// What EC2 says of a NIC, and when it was asked.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When the request was sent.
    pub at: Duration,
    /// The NIC; `None` if EC2 does not know it.
    pub nic: Option<Described>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the cloud for more.
    Assign {
        /// The node's name.
        node: String,
        /// The NIC.
        nic: String,
        /// The family.
        family: Family,
        /// How much.
        amount: Amount,
        /// Why, for people.
        why: String,
    },
    /// Take these away from the NIC, if [`may_take`] still says so.
    Unassign {
        /// The node's name.
        node: String,
        /// The NIC.
        nic: String,
        /// The family.
        family: Family,
        /// Addresses and whole prefixes.
        blocks: Vec<IpNet>,
    },
    /// Ask the agent for these, in place of what it is asked for.
    Ask {
        /// The node's name.
        node: String,
        /// All that is asked back.
        asked: Asked,
    },
}

/// Something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The node.
    pub node: String,
    /// In one sentence.
    pub text: String,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The NICs that EC2 must describe first; then a plan is made anew.
    pub look: BTreeSet<String>,
    /// What to do. At most one change of a NIC.
    pub actions: Vec<Action>,
    /// What people should know.
    pub notes: BTreeSet<Note>,
}

/// A change of a NIC that its agent need not know yet.
#[derive(Clone, Debug)]
struct Change {
    at: Duration,
    /// What it must tell, or not tell any more; nothing if that is not known.
    blocks: Vec<IpNet>,
    given: bool,
}

#[derive(Clone, Debug, Default)]
struct NicMemory {
    change: Option<Change>,
    /// When EC2 was last asked to change it.
    changed: Option<Duration>,
    /// Since when it has more than it should keep.
    over: BTreeMap<Family, Duration>,
    /// Until when nothing is asked for, since EC2 refused.
    paused: Option<Duration>,
    refusals: u32,
    /// How many pieces are asked for at most, and until when.
    modest: BTreeMap<Family, (u32, Duration)>,
}

/// Decides, and remembers what it needs for that. One for each time that this controller is elected.
#[derive(Clone, Debug)]
pub struct Planner {
    settings: Settings,
    elected: Duration,
    settles: Duration,
    nics: BTreeMap<String, NicMemory>,
}

/// What became of a request that changes a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done: the NIC has these now.
    Given(Vec<IpNet>),
    /// Done: the NIC does not have these any more.
    Taken(Vec<IpNet>),
    /// Nobody knows whether it was done.
    Unknown,
    /// Refused.
    Refused,
    /// Refused, since the subnet has no room for so many pieces of this family. It may have room for fewer.
    NoRoom(Family, u32),
}

impl Outcome {
    /// Returns how many pieces are asked for next, after there was no room for as many.
    #[must_use]
    pub const fn next(&self) -> Option<u32> {
        match self {
            Self::NoRoom(_, count) if *count > 1 => Some(*count / 2),
            _ => None,
        }
    }
}

impl Planner {
    /// Returns one that was elected now. Times are since any fixed moment.
    #[must_use]
    pub const fn new(settings: Settings, now: Duration) -> Self {
        Self {
            settings,
            elected: now,
            settles: SETTLE,
            nics: BTreeMap::new(),
        }
    }

    /// As it is, without the time that a new leader waits: for one that changes nothing.
    #[must_use]
    pub fn settled(mut self) -> Self {
        self.settles = Duration::ZERO;
        self
    }

    /// Records what became of a request.
    pub fn record(&mut self, nic: &str, outcome: Outcome, now: Duration) {
        let memory = self.nics.entry(nic.to_owned()).or_default();
        memory.changed = Some(now);
        if let (Outcome::NoRoom(family, _), Some(fewer)) = (&outcome, outcome.next()) {
            memory.modest.insert(*family, (fewer, now + MODEST));
            return;
        }
        let (blocks, given) = match outcome {
            Outcome::Given(blocks) => (blocks, true),
            Outcome::Taken(blocks) => (blocks, false),
            Outcome::Unknown => (Vec::new(), true),
            Outcome::Refused | Outcome::NoRoom(..) => {
                let [first, longest] = PAUSES;
                let pause = first.saturating_mul(1 << memory.refusals.min(16));
                memory.refusals = memory.refusals.saturating_add(1);
                memory.paused = Some(now + pause.min(longest));
                return;
            }
        };
        (memory.refusals, memory.paused) = (0, None);
        let change = Change {
            at: now,
            blocks,
            given,
        };
        memory.change = Some(change);
    }

    /// Returns what is to be done.
    pub fn plan(
        &mut self,
        nodes: &BTreeMap<String, NodeFacts>,
        seen: &BTreeMap<String, Seen>,
        now: Duration,
    ) -> Plan {
        let mut plan = Plan::default();
        let claims = claims(nodes);
        self.nics.retain(|nic, _| claims.contains_key(nic.as_str()));
        let settled = now >= self.elected + self.settles;
        for (name, facts) in nodes {
            let report = match &facts.report {
                Ok(report) => report,
                Err(error) => {
                    plan.note(name, format!("nothing is done for this node: {error}"));
                    continue;
                }
            };
            let mut asked = Asked {
                version: VERSION,
                back: BTreeMap::new(),
            };
            for nic in &report.told.nics {
                if nic.id.is_empty() {
                    plan.note(
                        name,
                        format!("the cloud tells no name of the NIC {}", nic.link),
                    );
                    continue;
                }
                if claims.get(nic.id.as_str()).is_some_and(|by| by.len() > 1) {
                    let text = format!("{} is told by several nodes: it is left alone", nic.id);
                    plan.note(name, text);
                    // Neither are its wishes touched: one of the nodes may be the right one.
                    if let Some(old) = report.asked.back.get(&nic.id) {
                        asked.back.insert(nic.id.clone(), old.clone());
                    }
                    continue;
                }
                let memory = self.nics.entry(nic.id.clone()).or_default();
                let mut work = Work {
                    settings: &self.settings,
                    name,
                    facts,
                    report,
                    nic,
                    seen: seen.get(&nic.id),
                    memory,
                    now,
                    plan: &mut plan,
                    taken: false,
                };
                for family in Family::BOTH {
                    let wishes = work.family(nodes, family, settled);
                    if !wishes.is_empty() {
                        let back = asked.back.entry(nic.id.clone()).or_default();
                        back.insert(family, wishes.to_string());
                    }
                }
            }
            if settled && asked.back != report.asked.back {
                let node = name.clone();
                plan.actions.push(Action::Ask { node, asked });
            }
        }
        plan
    }
}

impl Plan {
    fn note(&mut self, node: &str, text: String) {
        self.notes.insert(Note {
            node: node.to_owned(),
            text,
        });
    }
}

/// Returns who tells each NIC.
fn claims(nodes: &BTreeMap<String, NodeFacts>) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut claims: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, facts) in nodes {
        for nic in facts.report.iter().flat_map(|report| &report.told.nics) {
            claims.entry(&nic.id).or_default().insert(name);
        }
    }
    claims
}

/// The work on one NIC.
struct Work<'a> {
    settings: &'a Settings,
    name: &'a str,
    facts: &'a NodeFacts,
    report: &'a Report,
    nic: &'a NodeNic,
    seen: Option<&'a Seen>,
    memory: &'a mut NicMemory,
    now: Duration,
    plan: &'a mut Plan,
    /// Whether a change of this NIC is in the plan.
    taken: bool,
}

impl Work<'_> {
    /// Plans one family, and returns what is to be asked back of it.
    fn family(
        &mut self,
        nodes: &BTreeMap<String, NodeFacts>,
        family: Family,
        settled: bool,
    ) -> AddressSet {
        let wishes = Wishes::of(self.report, self.nic, family);
        let Some(demand) = Demand::of(self.report, self.nic, family) else {
            // A set that cannot be read: everything stays as it is.
            let text = format!("what is told of {} {family} cannot be read", self.nic.id);
            self.plan.note(self.name, text);
            return wishes.asked;
        };
        let warm = u128::from(self.settings.warm(family)) * self.settings.by.size(family);
        let missing = (u128::from(demand.waiting) + warm).saturating_sub(demand.free.len());
        if settled && !self.is_busy() {
            let ready = demand.ready(&wishes.asked);
            if !ready.is_empty() {
                self.unassign(nodes, family, &ready);
            }
            if missing > 0 && !self.taken {
                self.assign(&demand, family, missing);
            }
        }
        let known = self.seen.filter(|seen| self.is_recent(seen, KNOWN));
        if !wishes.asked.is_empty() && known.is_none() && demand.is_any_untold(&wishes.asked) {
            self.plan.look.insert(self.nic.id.clone());
        }
        let described = known.and_then(|seen| seen.nic.as_ref());
        let kept = demand.kept(&wishes.asked, described, missing > 0);
        let more = self.surplus(&demand, family, missing, warm, kept.is_empty());
        kept.union(&more)
    }

    /// Whether the last change of the NIC is not told yet.
    fn is_busy(&mut self) -> bool {
        let Some(change) = &self.memory.change else {
            return false;
        };
        let told = |block: &IpNet| self.nic.blocks.iter().any(|each| each.contains(block));
        let known = !change.blocks.is_empty();
        let done = known
            && change
                .blocks
                .iter()
                .all(|block| told(block) == change.given);
        if done || self.now >= change.at + WAIT {
            self.memory.change = None;
            return false;
        }
        true
    }

    /// Whether a description is not older than `age`, and of after the last change.
    fn is_recent(&self, seen: &Seen, age: Duration) -> bool {
        let changed = self.memory.changed.map_or(Duration::ZERO, |at| at + LAG);
        self.now <= seen.at + age && (self.memory.changed.is_none() || seen.at >= changed)
    }

    /// Returns the description if it may be relied on to change the NIC, and notes what forbids that. Without one it
    /// asks for one, unless `known` says that there is nothing to do.
    fn described(&mut self, idle: impl FnOnce(&Described) -> bool) -> Option<Described> {
        let recent = |work: &Self, age| work.seen.filter(|seen| work.is_recent(seen, age)).cloned();
        if let Some(known) = recent(self, KNOWN)
            && known
                .nic
                .as_ref()
                .is_none_or(|nic| !self.is_ours(nic) || idle(nic))
        {
            return self.checked(known.nic);
        }
        match recent(self, FRESH) {
            Some(fresh) => self.checked(fresh.nic),
            None => {
                self.plan.look.insert(self.nic.id.clone());
                None
            }
        }
    }

    fn is_ours(&self, described: &Described) -> bool {
        let instance = match (&self.facts.instance, &described.instance) {
            (Some(node), Some(nic)) => node == nic,
            // Attached to nothing that the cluster knows of.
            (Some(_), None) => false,
            (None, _) => true,
        };
        instance && described.mac == Some(self.nic.mac)
    }

    /// Notes why a NIC is not touched. An agent tells which NICs its node has: a stolen token must not reach another's.
    fn checked(&mut self, described: Option<Described>) -> Option<Described> {
        let text = match described {
            None => format!("EC2 does not know {}: is `region` right?", self.nic.id),
            Some(nic) if self.is_ours(&nic) => return Some(nic),
            Some(_) => format!(
                "{} is not a NIC of this node's instance with the MAC {}, says EC2: it is left alone",
                self.nic.id, self.nic.mac
            ),
        };
        self.plan.note(self.name, text);
        None
    }

    /// Asks for more, as far as the NIC may have more.
    fn assign(&mut self, demand: &Demand, family: Family, missing: u128) {
        if self.memory.paused.is_some_and(|until| self.now < until) {
            return;
        }
        let Some(limits) = self.facts.limits else {
            let text = "the instance type of this node is not known: nothing is asked for";
            return self.plan.note(self.name, text.to_owned());
        };
        let size = self.settings.by.size(family);
        let most = self.settings.max_per_nic;
        let wanted = |nic: &Described| {
            let missing = missing.saturating_sub(demand.coming(nic));
            let own = nic.slots(family)
                - nic
                    .blocks
                    .iter()
                    .filter(|net| Family::of_net(net) == family)
                    .count() as u64;
            let limit = limits.of(family);
            let limit = most.map_or(limit, |most| limit.min(own.saturating_add(most)));
            let room = limit.saturating_sub(nic.slots(family));
            let pieces = u64::try_from(missing.div_ceil(size)).unwrap_or(u64::MAX);
            (pieces, room)
        };
        let Some(nic) = self.described(|nic| {
            let (pieces, room) = wanted(nic);
            pieces.min(room) == 0
        }) else {
            return;
        };
        let (pieces, room) = wanted(&nic);
        if pieces > room {
            let text = format!(
                "{} has {} of at most {} {family} addresses and prefixes, and {} more are wanted: use prefixes, a larger \
                 instance type, or another NIC",
                nic.id,
                nic.slots(family),
                nic.slots(family) + room,
                pieces
            );
            self.plan.note(self.name, text);
        }
        let modest = self.memory.modest.get(&family);
        let modest = modest.filter(|(_, until)| self.now < *until);
        let most = modest.map_or(u64::MAX, |(most, _)| u64::from(*most));
        let Some(count) = u32::try_from(pieces.min(room).min(most))
            .ok()
            .filter(|count| *count > 0)
        else {
            return;
        };
        let amount = match self.settings.by {
            By::Address => Amount::Addresses(count),
            By::Prefix => Amount::Prefixes(count),
        };
        self.taken = true;
        self.plan.actions.push(Action::Assign {
            node: self.name.to_owned(),
            nic: nic.id,
            family,
            amount,
            why: format!("{} free, {} pods wait", demand.free.len(), demand.waiting),
        });
    }

    /// Takes away what the agent surrendered and EC2 describes.
    fn unassign(
        &mut self,
        nodes: &BTreeMap<String, NodeFacts>,
        family: Family,
        ready: &AddressSet,
    ) {
        if self.taken || self.memory.paused.is_some_and(|until| self.now < until) {
            return;
        }
        let whole = |block: &&IpNet| sets::has_all(ready, block);
        let Some(nic) = self.described(|nic| !nic.blocks.iter().any(|block| whole(&block))) else {
            return;
        };
        let blocks: Vec<IpNet> = nic
            .blocks
            .iter()
            .filter(whole)
            .copied()
            .filter(|block| !nic.primary.iter().any(|own| block.contains(own)))
            .filter(|block| may_take(self.report, &nic.id, block))
            .filter(|block| !nic::is_held_elsewhere(nodes, self.name, block))
            .collect();
        if blocks.is_empty() {
            return;
        }
        self.taken = true;
        self.plan.actions.push(Action::Unassign {
            node: self.name.to_owned(),
            nic: nic.id,
            family,
            blocks,
        });
    }

    /// Returns what is to be asked back beside what is: what has been too much for long enough.
    fn surplus(
        &mut self,
        demand: &Demand,
        family: Family,
        missing: u128,
        warm: u128,
        none_asked: bool,
    ) -> AddressSet {
        let nothing = AddressSet::empty(family);
        let slack = u128::from(self.settings.slack) * self.settings.by.size(family);
        let over = missing == 0 && demand.waiting == 0 && demand.free.len() > warm + slack;
        if !over || !none_asked {
            self.memory.over.remove(&family);
            return nothing;
        }
        let since = *self.memory.over.entry(family).or_insert(self.now);
        if self.now < since + self.settings.idle {
            return nothing;
        }
        let surplus = demand.surplus(warm, self.settings.by);
        if !surplus.is_empty() {
            self.memory.over.remove(&family);
        }
        surplus
    }
}

#[cfg(test)]
mod history;
#[cfg(test)]
mod tests;
