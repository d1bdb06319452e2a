//! A ledger of what a cloud has told of each NIC: what pods may have now, what only they that have it keep, and what
//! has to prove itself first.
//!
//! A metadata service is late, and it lies: removed addresses are told for minutes, or again after a while, and
//! categories are missing for one answer. All known harm came from acting at once on what it said. So nothing is taken
//! from a pod here, and little is believed that was told once.

mod change;
mod entry;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_types::{Family, Mac};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{CloudNic, Kind, View};

pub use change::{Change, Held, Reason, Waiting};
use entry::{Entry, Obstacle, State};

/// How long a new block is told before it is usable, in seconds, and in [`READS`] reads.
pub const SETTLE: u64 = 5;
/// In how many reads on end a block is told before it is usable.
pub const READS: u32 = 2;
/// How long a block that was withdrawn is told on end before it is usable again, in seconds.
pub const RETURN: u64 = 300;
/// How long a withdrawn block is remembered that nobody uses, in seconds.
pub const FORGET: u64 = 600;
/// The number of whole reads on end without an answer for a kind after which its blocks count as withdrawn.
pub const UNANSWERED: u8 = 3;
/// The documented window: a block that the service has stopped telling is usable for less than this number of whole
/// reads. It is the first one, unless the service did not answer for the kind.
///
/// To this comes how long the service itself tells what is gone; no vendor publishes a bound. A service that begins
/// again to tell a block is not believed for [`RETURN`] seconds, while the block is remembered ([`FORGET`]).
pub const WINDOW: u8 = UNANSWERED;

/// What was told of all NICs, by their MACs, and what follows from it.
///
/// A pure state machine: [`Ledger::observe`] is given each whole view, and nothing where a read failed. It is saved
/// without its counts of time: what waits begins to wait anew after a restart.
///
/// # Examples
///
/// ```
/// use ebbtide_cloud::{CloudNic, Kind, View, ledger::Ledger};
///
/// let told = |blocks: &[&str]| View {
///     nics: vec![CloudNic {
///         mac: "02:00:00:00:00:01".to_owned().try_into().unwrap(),
///         id: "eni-1".into(),
///         primary: vec!["10.0.0.4".parse().unwrap()],
///         blocks: [(Kind::V4Addresses, blocks.iter().map(|b| b.parse().unwrap()).collect())].into(),
///         subnets: vec!["10.0.0.0/24".parse().unwrap()],
///         gateways: vec!["10.0.0.1".parse().unwrap()],
///     }],
/// };
/// let both = told(&["10.0.0.5/32", "10.0.0.6/32"]);
/// let mac = both.nics[0].mac;
/// let mut ledger = Ledger::default();
/// ledger.observe(0, &both, &|_| false);
/// assert_eq!(ledger.usable(mac), []);
/// let waiting = ledger.waiting(mac)[0].to_string();
/// assert_eq!(waiting, "10.0.0.5/32: new; usable when it has been told twice, 5 s from now at the earliest");
/// ledger.observe(30, &both, &|_| false);
/// assert_eq!(ledger.usable(mac).len(), 2);
///
/// // A pod has 10.0.0.6. It keeps it, and nobody else gets it.
/// let pod: std::net::IpAddr = "10.0.0.6".parse()?;
/// ledger.observe(60, &told(&["10.0.0.5/32"]), &|block| block.contains(&pod));
/// assert_eq!(ledger.usable(mac), ["10.0.0.5/32".parse()?]);
/// assert_eq!(ledger.held(mac).len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ledger {
    nics: BTreeMap<Mac, Nic>,
    /// The time of the latest whole read of this process.
    #[serde(skip)]
    last: Option<u64>,
}

/// A NIC as it was told last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nic {
    /// The cloud's name of it; empty where there is none.
    pub id: String,
    /// Its primary addresses.
    pub primary: Vec<IpAddr>,
    /// The prefixes of its subnets.
    pub subnets: Vec<IpNet>,
    /// Its gateways, as far as they are told.
    pub gateways: Vec<IpAddr>,
    /// Whether the latest whole read was without it.
    pub is_gone: bool,
    /// For how many whole reads on end a kind was not answered that has blocks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    unanswered: BTreeMap<Kind, u8>,
    blocks: BTreeMap<Kind, BTreeMap<IpNet, Entry>>,
}

impl Nic {
    fn entries(&self) -> impl Iterator<Item = (Kind, IpNet, &Entry)> {
        let kinds = self.blocks.iter();
        kinds.flat_map(|(kind, blocks)| blocks.iter().map(|(block, entry)| (*kind, *block, entry)))
    }

    fn entry_mut(&mut self, kind: Kind, block: &IpNet) -> Option<&mut Entry> {
        self.blocks.get_mut(&kind)?.get_mut(block)
    }
}

impl Ledger {
    /// Takes a whole view into account, and returns what changed.
    ///
    /// `now` counts seconds by any clock, best a monotonic one: only the differences between reads of one process are
    /// looked at, and a step back is no time at all. `in_use` says whether a pod has an address in a block. A view
    /// without NICs is no news, and a read that failed must not be passed.
    pub fn observe(
        &mut self,
        now: u64,
        view: &View,
        in_use: &impl Fn(&IpNet) -> bool,
    ) -> Vec<Change> {
        if view.nics.is_empty() {
            return Vec::new();
        }
        let passed = self.last.map_or(0, |last| now.saturating_sub(last));
        self.last = Some(now);
        let mut changes = self.update_nics(view);
        self.compare(view, passed, &mut changes);
        self.promote(in_use, &mut changes);
        self.forget(in_use, &mut changes);
        changes
    }

    /// Takes over what is told of the NICs themselves, which counts at once.
    fn update_nics(&mut self, view: &View) -> Vec<Change> {
        let mut changes = Vec::new();
        for told in &view.nics {
            let is_new = self.nics.get(&told.mac).is_none_or(|nic| nic.is_gone);
            let nic = self.nics.entry(told.mac).or_default();
            nic.id.clone_from(&told.id);
            nic.primary.clone_from(&told.primary);
            nic.subnets.clone_from(&told.subnets);
            nic.gateways.clone_from(&told.gateways);
            nic.is_gone = false;
            if is_new {
                changes.push(Change::NicNew {
                    mac: told.mac,
                    id: told.id.clone(),
                });
            }
        }
        for (mac, nic) in &mut self.nics {
            let is_told = view.nics.iter().any(|told| told.mac == *mac);
            if !is_told && !nic.is_gone {
                nic.is_gone = true;
                changes.push(Change::NicGone {
                    mac: *mac,
                    id: nic.id.clone(),
                });
            }
        }
        changes
    }

    /// Compares the lists of all NICs with what was told before.
    fn compare(&mut self, view: &View, passed: u64, changes: &mut Vec<Change>) {
        let primary: BTreeSet<IpAddr> = view
            .nics
            .iter()
            .flat_map(|nic| nic.primary.iter().copied())
            .collect();
        for (mac, nic) in &mut self.nics {
            let told = view.nics.iter().filter(|told| told.mac == *mac);
            let told: Vec<&CloudNic> = told.collect();
            for kind in Kind::ALL {
                let Some(list) = nic.answer(kind, &told, &primary) else {
                    let entries = nic.blocks.get_mut(&kind).into_iter().flatten();
                    entries.for_each(|(_, entry)| entry.begin_anew());
                    continue;
                };
                let entries = nic.blocks.entry(kind).or_default();
                for (block, entry) in entries.iter_mut() {
                    if list.contains(block) {
                        entry.told(passed);
                    } else if entry.absent(passed) {
                        changes.push(Change::Held {
                            mac: *mac,
                            id: nic.id.clone(),
                            block: *block,
                        });
                    }
                }
                for block in list {
                    entries.entry(block).or_insert_with(Entry::new);
                }
            }
        }
    }

    /// Makes usable what has been told for long enough, and by one NIC alone.
    fn promote(&mut self, in_use: &impl Fn(&IpNet) -> bool, changes: &mut Vec<Change>) {
        let waiting: Vec<(Mac, Kind, IpNet)> = self.all(|entry| entry.state.is_waiting());
        for (mac, kind, block) in waiting {
            let obstacle = self.obstacle(mac, &block, in_use);
            let is_ours = in_use(&block) && !self.is_known_otherwise(mac, &block);
            let Some(nic) = self.nics.get_mut(&mac) else {
                continue;
            };
            let id = nic.id.clone();
            let Some(entry) = nic.entry_mut(kind, &block) else {
                continue;
            };
            entry.obstacle = obstacle;
            if obstacle.is_some() {
                entry.begin_anew();
                continue;
            }
            let returned = entry.state == State::Returning;
            if !entry.has_proved_itself() && (returned || !is_ours) {
                continue;
            }
            entry.become_usable();
            changes.push(match returned {
                true => Change::Returned { mac, id, block },
                false => Change::Usable { mac, id, block },
            });
            self.supersede(mac, &block);
        }
    }

    /// Whether something else is remembered that has addresses of the block: pods that have some may have them by that.
    fn is_known_otherwise(&self, mac: Mac, block: &IpNet) -> bool {
        let entries = self.nics.iter().flat_map(|(other, nic)| {
            let entries = nic.entries();
            entries.map(move |(_, own, _)| (*other, own))
        });
        let mut others = entries.filter(|(other, own)| (*other, own) != (mac, block));
        others.any(|(_, own)| common(block, &own).is_some())
    }

    /// Returns what keeps a told block from being usable on this NIC: another one's claim to an address of it.
    fn obstacle(
        &self,
        mac: Mac,
        block: &IpNet,
        in_use: &impl Fn(&IpNet) -> bool,
    ) -> Option<Obstacle> {
        let others = self.nics.iter().filter(|(other, _)| **other != mac);
        let mut used = None;
        for (other, nic) in others {
            for (_, own, entry) in nic.entries() {
                let Some(common) = common(block, &own) else {
                    continue;
                };
                if entry.state != State::Withdrawn {
                    return Some(Obstacle::AlsoOn(*other));
                }
                // Where it never was usable, no pod has it from there.
                let may_be_there = entry.was_usable && !entry.is_superseded;
                if may_be_there && in_use(&common) {
                    used = Some(Obstacle::UsedOn(*other));
                }
            }
        }
        used
    }

    /// Remembers for the withdrawn blocks of other NICs that pods which have addresses of this one have them by `mac`.
    fn supersede(&mut self, mac: Mac, block: &IpNet) {
        let others = self.nics.iter_mut().filter(|(other, _)| **other != mac);
        for entries in others.flat_map(|(_, nic)| nic.blocks.values_mut()) {
            for (own, entry) in entries.iter_mut() {
                entry.is_superseded |= block.contains(own);
            }
        }
    }

    fn forget(&mut self, in_use: &impl Fn(&IpNet) -> bool, changes: &mut Vec<Change>) {
        for (mac, nic) in &mut self.nics {
            let id = &nic.id;
            for entries in nic.blocks.values_mut() {
                entries.retain(|block, entry| {
                    let stays = !entry.is_over() || !entry.is_superseded && in_use(block);
                    if !stays {
                        changes.push(Change::Forgotten {
                            mac: *mac,
                            id: id.clone(),
                            block: *block,
                        });
                    }
                    stays
                });
            }
            nic.blocks.retain(|_, entries| !entries.is_empty());
        }
        self.nics
            .retain(|_, nic| !nic.is_gone || !nic.blocks.is_empty());
    }

    fn all(&self, chosen: impl Fn(&Entry) -> bool) -> Vec<(Mac, Kind, IpNet)> {
        let mut all = Vec::new();
        for (mac, nic) in &self.nics {
            let entries = nic.entries().filter(|(_, _, entry)| chosen(entry));
            all.extend(entries.map(|(kind, block, _)| (*mac, kind, block)));
        }
        all
    }
}

impl Nic {
    /// Returns the blocks of a kind that were told; none where that is no news. `told` is empty for a NIC that is gone.
    fn answer(
        &mut self,
        kind: Kind,
        told: &[&CloudNic],
        primary: &BTreeSet<IpAddr>,
    ) -> Option<BTreeSet<IpNet>> {
        let lists: Vec<&Vec<IpNet>> = told
            .iter()
            .filter_map(|nic| nic.blocks.get(&kind))
            .collect();
        if lists.is_empty() && !told.is_empty() {
            let known = self.blocks.get(&kind).into_iter().flatten();
            let mut known = known.filter(|(_, entry)| entry.state != State::Withdrawn);
            if known.next().is_some() {
                let reads = self.unanswered.entry(kind).or_default();
                *reads = reads.saturating_add(1);
                if *reads < UNANSWERED {
                    return None;
                }
            }
        }
        self.unanswered.remove(&kind);
        let blocks = lists.into_iter().flatten().map(IpNet::trunc);
        // A primary address is the node's, whatever else it is called.
        let blocks = blocks.filter(|block| {
            Family::of_net(block) == kind.family()
                && !(is_single(block) && primary.contains(&block.addr()))
        });
        Some(blocks.collect())
    }
}

impl Ledger {
    /// Returns the NICs, those included that are gone and still have blocks that are remembered.
    pub fn nics(&self) -> impl Iterator<Item = (Mac, &Nic)> {
        self.nics.iter().map(|(mac, nic)| (*mac, nic))
    }

    /// Returns a NIC as it was told last.
    #[must_use]
    pub fn nic(&self, mac: Mac) -> Option<&Nic> {
        self.nics.get(&mac)
    }

    /// Returns the blocks that new pods may have addresses of, ascending. None is inside another one.
    #[must_use]
    pub fn usable(&self, mac: Mac) -> Vec<IpNet> {
        let entries = self.nics.get(&mac).into_iter().flat_map(Nic::entries);
        let usable = entries.filter(|(_, _, entry)| entry.state == State::Usable);
        let all: BTreeSet<IpNet> = usable.map(|(_, block, _)| block).collect();
        let is_inside = |block: &IpNet| {
            let mut others = all.iter().filter(|other| *other != block);
            others.any(|other| other.contains(block))
        };
        all.iter()
            .filter(|block| !is_inside(block))
            .copied()
            .collect()
    }

    /// Returns the blocks that were usable and are not told now: pods keep addresses of them, nobody else gets one.
    #[must_use]
    pub fn held(&self, mac: Mac) -> Vec<Held> {
        let entries = self.nics.get(&mac).into_iter().flat_map(Nic::entries);
        let held =
            entries.filter(|(_, _, entry)| entry.state == State::Withdrawn && entry.was_usable);
        held.map(|(_, block, entry)| Held {
            block,
            absent_for: entry.absent_for,
        })
        .collect()
    }

    /// Returns the blocks that are told and not usable yet, each with the reason.
    #[must_use]
    pub fn waiting(&self, mac: Mac) -> Vec<Waiting> {
        let entries = self.nics.get(&mac).into_iter().flat_map(Nic::entries);
        let waiting = entries.filter(|(_, _, entry)| entry.state.is_waiting());
        waiting
            .map(|(_, block, entry)| Waiting {
                block,
                reason: entry.reason(),
            })
            .collect()
    }

    /// Returns why these contents cannot be a ledger's, if they cannot.
    pub(crate) fn fault(&self) -> Option<String> {
        for (mac, nic) in &self.nics {
            for (kind, block, entry) in nic.entries() {
                if Family::of_net(&block) != kind.family() || block != block.trunc() {
                    return Some(format!("{block} of {mac} is in a list of another kind"));
                }
                let is_usable = entry.state == State::Usable;
                let others = self.nics.iter().filter(|(other, _)| *other > mac);
                for (other, nic) in others.filter(|_| is_usable) {
                    let mut twice = nic.entries().filter(|(_, own, entry)| {
                        entry.state == State::Usable && common(&block, own).is_some()
                    });
                    if twice.next().is_some() {
                        return Some(format!("{block} is usable on {mac} and on {other}"));
                    }
                }
            }
        }
        None
    }
}

/// Returns what two blocks have in common: the smaller one, or nothing.
fn common(a: &IpNet, b: &IpNet) -> Option<IpNet> {
    match () {
        () if a.contains(b) => Some(*b),
        () if b.contains(a) => Some(*a),
        () => None,
    }
}

fn is_single(block: &IpNet) -> bool {
    block.prefix_len() == block.max_prefix_len()
}

#[cfg(test)]
pub(crate) use tests::example;

#[cfg(test)]
mod tests;
