//! Sums over pods of what the programs count for each.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::{
    datapath::{self, Datapath, PROGRAMS},
    podnet::PodNet,
};
use ebbtide_layout::{Counters, Spoofed};

use super::snapshot::InPods;

/// What was counted for one interface; of a pod whose interfaces share a number the dropped ones are of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) programs: [Counters; PROGRAMS.len()],
    pub(super) spoofed: Spoofed,
    pub(super) to_metadata: Spoofed,
}

impl Counted {
    fn read(datapath: &Datapath, net: &PodNet) -> Result<Self, datapath::Error> {
        let mut counted = Self {
            programs: datapath.counters(&net.ips())?,
            ..Self::default()
        };
        if net.shared_veth.is_none() {
            counted.spoofed = datapath.spoofed(net.number())?;
            counted.to_metadata = datapath.to_metadata(net.number())?;
        }
        Ok(counted)
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let programs = self.programs.into_iter();
        let dropped = [self.spoofed, self.to_metadata].into_iter();
        programs
            .flat_map(|c| {
                [
                    c.seen,
                    c.marked,
                    c.learned,
                    c.redirected,
                    c.passed,
                    c.dropped,
                ]
            })
            .chain(dropped.flat_map(|d| [d.by_nic, d.by_veth]))
    }

    /// Returns what was counted since `before`: everything if a number is smaller now, since the counters are new then.
    fn since(&self, before: &Self) -> Self {
        if self
            .numbers()
            .zip(before.numbers())
            .any(|(now, then)| now < then)
        {
            return *self;
        }
        let less = |now: &Counters, then: &Counters| Counters {
            seen: now.seen - then.seen,
            marked: now.marked - then.marked,
            learned: now.learned - then.learned,
            redirected: now.redirected - then.redirected,
            passed: now.passed - then.passed,
            dropped: now.dropped - then.dropped,
        };
        let dropped = |now: Spoofed, then: Spoofed| Spoofed {
            by_nic: now.by_nic - then.by_nic,
            by_veth: now.by_veth - then.by_veth,
        };
        Self {
            programs: std::array::from_fn(|at| less(&self.programs[at], &before.programs[at])),
            spoofed: dropped(self.spoofed, before.spoofed),
            to_metadata: dropped(self.to_metadata, before.to_metadata),
        }
    }
}

/// What the programs counted for pods since the agent's start. It never decreases: what a pod that is gone had is part of
/// it. All clones share it.
///
/// Counters outlive the agent, as they are in pinned maps, and end with their pod. So the sum of those that are there is no
/// counter; and what an agent before this one told of must not be told again as new.
#[derive(Clone, Debug, Default)]
pub struct PodTotals(Arc<Mutex<Totals>>);

#[derive(Debug, Default)]
pub(super) struct Totals {
    last: HashMap<Owner, Counted>,
    sum: InPods,
}

impl Totals {
    /// Takes what is counted for an interface now as known: only what comes after it is added.
    pub(super) fn begin(&mut self, owner: Owner, now: Counted) {
        self.last.insert(owner, now);
    }

    /// Adds what was counted since the last look.
    pub(super) fn look(&mut self, owner: &Owner, nic: &str, now: Counted) {
        let new = match self.last.get(owner) {
            Some(before) => now.since(before),
            None => now,
        };
        self.last.insert(owner.clone(), now);
        let of_nic = self.sum.programs.entry(nic.to_owned()).or_default();
        for (sum, part) in of_nic.iter_mut().zip(&new.programs) {
            sum.add(part);
        }
        for (sum, part) in [
            (&mut self.sum.spoofed, new.spoofed),
            (&mut self.sum.to_metadata, new.to_metadata),
        ] {
            sum.by_nic += part.by_nic;
            sum.by_veth += part.by_veth;
        }
    }

    /// Forgets interfaces that are gone; what they had stays in the sum.
    pub(super) fn keep(&mut self, is_there: impl Fn(&Owner) -> bool) {
        self.last.retain(|owner, _| is_there(owner));
    }

    pub(super) fn sum(&self) -> InPods {
        self.sum.clone()
    }
}

impl PodTotals {
    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is counted for these interfaces, which are an older agent's, as known.
    pub fn begin(&self, datapath: &Datapath, interfaces: &[(Owner, Arc<PodNet>)]) {
        let mut totals = self.totals();
        for (owner, net) in interfaces {
            if let Ok(now) = Counted::read(datapath, net) {
                totals.begin(owner.clone(), now);
            }
        }
    }

    /// Looks at an interface for the last time, before its counters are removed.
    pub fn end(&self, datapath: &Datapath, owner: &Owner, net: &PodNet) {
        // Locked before the maps are read: what was read earlier must not be added later.
        let mut totals = self.totals();
        if let Ok(now) = Counted::read(datapath, net) {
            totals.look(owner, nic(net), now);
        }
    }

    /// Looks at all interfaces, and returns the sums.
    ///
    /// # Errors
    /// If the kernel refuses to read a map.
    pub fn read(
        &self,
        datapath: &Datapath,
        interfaces: &[(Owner, Arc<PodNet>)],
    ) -> Result<InPods, datapath::Error> {
        for (owner, net) in interfaces {
            // Locked for each alone, as a DEL may wait; and before the maps are read, as in `end`.
            let mut totals = self.totals();
            let now = Counted::read(datapath, net)?;
            totals.look(owner, nic(net), now);
        }
        let there: HashSet<&Owner> = interfaces.iter().map(|(owner, _)| owner).collect();
        let mut totals = self.totals();
        totals.keep(|owner| there.contains(owner));
        Ok(totals.sum())
    }
}

/// Returns the NIC that an interface's counters are told with; empty for one that has none.
fn nic(net: &PodNet) -> &str {
    net.master().unwrap_or_default()
}

/// What the programs in pods counted, by the NIC of the pod's interface.
pub(super) type ByNic = BTreeMap<String, [Counters; PROGRAMS.len()]>;
