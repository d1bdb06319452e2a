//! Which addresses the VPC has assigned to which NIC, now and at any time before.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::sync::watch;

use crate::plan::{Family, Nic, Plan};

/// The assignments, and who waits for their changes.
#[derive(Debug)]
pub(crate) struct Assigned {
    spans: Mutex<Vec<Span>>,
    changed: watch::Sender<()>,
}

/// A block of addresses, and the time in which a NIC had it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// The NIC's node.
    pub(crate) node: String,
    /// The NIC's name.
    pub(crate) nic: String,
    /// The addresses.
    pub(crate) block: IpNet,
    /// The moment of the assignment; `None` if the VPC was built with it.
    from: Option<Instant>,
    /// The moment of the withdrawal, if it was withdrawn.
    until: Option<Instant>,
}

/// How late somebody is told of changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Late {
    /// Of assignments.
    pub(crate) lag: Duration,
    /// Of withdrawals.
    pub(crate) ghost: Duration,
}

impl Span {
    fn new(nic: &Nic, block: IpNet, from: Option<Instant>) -> Self {
        Self {
            node: nic.node.clone(),
            nic: nic.name.clone(),
            block,
            from,
            until: None,
        }
    }

    fn is_of(&self, nic: &Nic) -> bool {
        self.node == nic.node && self.nic == nic.name
    }

    /// Whether somebody who is told late believes at this moment that the NIC has it.
    fn is_told(&self, at: Instant, late: Late) -> bool {
        self.from.is_none_or(|from| from + late.lag <= at)
            && self.until.is_none_or(|until| at < until + late.ghost)
    }
}

impl Assigned {
    /// Returns what a plan begins with: the secondary addresses.
    pub(crate) fn of(plan: &Plan) -> Self {
        let spans = plan.nics().flat_map(|nic| {
            Family::BOTH.into_iter().flat_map(|family| {
                let secondary = &nic.subnet(family).secondary;
                secondary
                    .iter()
                    .map(|address| Span::new(nic, IpNet::from(*address), None))
            })
        });
        Self {
            spans: Mutex::new(spans.collect()),
            changed: watch::Sender::default(),
        }
    }

    /// Locks the assignments for a change.
    pub(crate) fn change(&self) -> Change<'_> {
        Change {
            spans: self.spans.lock().unwrap_or_else(PoisonError::into_inner),
            changed: &self.changed,
        }
    }

    /// Returns the blocks of a NIC as one believes who is told late, each once.
    pub(crate) fn told(&self, nic: &Nic, at: Instant, late: Late) -> Vec<IpNet> {
        let mut told = Vec::new();
        for span in &*self.change().spans {
            if span.is_of(nic) && span.is_told(at, late) && !told.contains(&span.block) {
                told.push(span.block);
            }
        }
        told
    }

    /// Returns the next moment at which somebody who is told late may believe something else.
    pub(crate) fn next_change(&self, after: Instant, late: Late) -> Option<Instant> {
        let change = self.change();
        let moments = change.spans.iter().flat_map(|span| {
            let (from, until) = (
                span.from.map(|from| from + late.lag),
                span.until.map(|until| until + late.ghost),
            );
            from.into_iter().chain(until)
        });
        moments.filter(|moment| *moment > after).min()
    }

    /// Returns the node that has an address now, besides the primary ones.
    pub(crate) fn node_of(&self, address: IpAddr) -> Option<String> {
        let change = self.change();
        let mut current = change.spans.iter().filter(|span| span.until.is_none());
        current
            .find(|span| span.block.contains(&address))
            .map(|span| span.node.clone())
    }

    /// Returns a receiver that is woken by changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Wakes who waits for changes.
    pub(crate) fn wake(&self) {
        self.changed.send_replace(());
    }
}

/// The assignments, locked.
pub(crate) struct Change<'a> {
    spans: MutexGuard<'a, Vec<Span>>,
    changed: &'a watch::Sender<()>,
}

impl Change<'_> {
    /// Returns the assignment in force that has an address in common with a block.
    pub(crate) fn overlapping(&self, block: IpNet) -> Option<&Span> {
        self.spans.iter().find(|span| {
            span.until.is_none() && (span.block.contains(&block) || block.contains(&span.block))
        })
    }

    /// Notes an assignment.
    pub(crate) fn add(&mut self, nic: &Nic, block: IpNet) {
        self.spans.push(Span::new(nic, block, Some(Instant::now())));
        self.changed.send_replace(());
    }

    /// Notes the withdrawal of exactly this block. Returns whether the NIC had it.
    pub(crate) fn end(&mut self, nic: &Nic, block: IpNet) -> bool {
        let mut current = self.spans.iter_mut();
        let found =
            current.find(|span| span.until.is_none() && span.is_of(nic) && span.block == block);
        if let Some(span) = found {
            span.until = Some(Instant::now());
            self.changed.send_replace(());
            return true;
        }
        false
    }

    /// Whether a NIC has exactly this block.
    pub(crate) fn has(&self, nic: &Nic, block: IpNet) -> bool {
        self.spans
            .iter()
            .any(|span| span.until.is_none() && span.is_of(nic) && span.block == block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_late_believes_in_what_is_gone_and_not_in_what_is_new() {
        let plan = Plan::default();
        let nic = plan.nics().next().unwrap();
        let assigned = Assigned::of(&plan);
        let prompt = Late::default();
        let late = Late {
            lag: Duration::from_secs(5),
            ghost: Duration::from_secs(9),
        };
        let old = IpNet::from(nic.v4.secondary[0]);
        let new: IpNet = "172.31.17.0/28".parse().unwrap();
        let before = Instant::now();
        assert_eq!(assigned.told(nic, before, late).len(), 10);
        assert_eq!(assigned.next_change(before, late), None);

        let mut change = assigned.change();
        assert!(change.end(nic, old));
        assert!(!change.end(nic, old), "it is gone");
        change.add(nic, new);
        drop(change);
        let now = Instant::now();
        let told = |at, late| {
            let blocks = assigned.told(nic, at, late);
            (blocks.contains(&old), blocks.contains(&new))
        };
        assert_eq!(told(now, prompt), (false, true));
        assert_eq!(told(now, late), (true, false));
        assert_eq!(told(now + Duration::from_secs(7), late), (true, true));
        assert_eq!(told(now + Duration::from_secs(10), late), (false, true));
        let next = assigned.next_change(now, late).unwrap();
        assert!(next <= now + late.lag && next > now);
        assert_eq!(
            assigned.node_of("172.31.17.15".parse().unwrap()).unwrap(),
            "master"
        );
        assert_eq!(assigned.node_of(old.addr()), None);
    }
}
