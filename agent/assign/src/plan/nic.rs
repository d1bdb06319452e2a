//! What a NIC has, and what of it is too much or too little. Pure.

use std::collections::BTreeMap;

use ebbtide_ipam::catalog::AddressSet;
use ebbtide_kube::node_cloud::{NodeNic, NodePool};
use ebbtide_types::Family;
use ipnet::IpNet;

use super::{By, NodeFacts, Report, sets};
use crate::ec2::Described;

/// What an agent is asked to give back of a NIC.
pub(super) struct Wishes {
    pub(super) asked: AddressSet,
}

impl Wishes {
    /// Reads them. What cannot be read counts as nothing: then it is written anew.
    pub(super) fn of(report: &Report, nic: &NodeNic, family: Family) -> Self {
        let back = report.asked.back.get(&nic.id);
        let text = back.and_then(|back| back.get(&family));
        let asked = text.and_then(|text| sets::read(text, family));
        Self {
            asked: asked.unwrap_or_else(|| AddressSet::empty(family)),
        }
    }
}

/// One family of a NIC, as its agent tells it.
pub(super) struct Demand {
    family: Family,
    /// The pods that wait.
    pub(super) waiting: u64,
    /// What the next pods can have.
    pub(super) free: AddressSet,
    used: AddressSet,
    surrendered: AddressSet,
    ranges: AddressSet,
    blocks: Vec<IpNet>,
}

impl Demand {
    /// Returns it, or `None` if a set cannot be read.
    pub(super) fn of(report: &Report, nic: &NodeNic, family: Family) -> Option<Self> {
        let pools: Vec<&NodePool> = nic
            .pools
            .iter()
            .filter(|pool| pool.family == family)
            .collect();
        let all = |get: fn(&NodePool) -> &String| -> Option<AddressSet> {
            let sets: Option<Vec<AddressSet>> = pools
                .iter()
                .map(|pool| sets::read(get(pool), family))
                .collect();
            Some(AddressSet::union_of(family, &sets?))
        };
        let (ranges, used) = (all(|pool| &pool.ranges)?, all(|pool| &pool.used)?);
        let (resting, held) = (all(|pool| &pool.resting)?, all(|pool| &pool.held)?);
        let surrendered = all(|pool| &pool.surrendered)?;
        let asked = Wishes::of(report, nic, family).asked;
        let not_free = AddressSet::union_of(family, [&used, &resting, &held, &surrendered, &asked]);
        let of_family = |block: &&IpNet| Family::of_net(block) == family;
        Some(Self {
            family,
            waiting: nic.waiting.get(&family).copied().unwrap_or(0),
            free: ranges.without(&not_free),
            used,
            surrendered,
            ranges,
            blocks: nic
                .blocks
                .iter()
                .filter(of_family)
                .map(IpNet::trunc)
                .collect(),
        })
    }

    /// Returns the number of addresses that EC2 describes and the agent does not tell.
    pub(super) fn coming(&self, described: &Described) -> u128 {
        let untold = |block: &&IpNet| !self.blocks.iter().any(|told| told.contains(*block));
        let of_family = described
            .blocks
            .iter()
            .filter(|block| Family::of_net(block) == self.family);
        let sizes = of_family
            .filter(untold)
            .map(|block| AddressSet::of_net(block).len());
        sizes.fold(0, u128::saturating_add)
    }

    /// Returns what is surrendered and still asked back.
    pub(super) fn ready(&self, asked: &AddressSet) -> AddressSet {
        asked.without(&asked.without(&self.surrendered))
    }

    /// Whether the agent tells any of these no more. It may still name as surrendered what is gone.
    pub(super) fn is_any_untold(&self, asked: &AddressSet) -> bool {
        !asked.without(&self.told()).is_empty()
    }

    /// Returns what the agent tells that the NIC has, or a pod. What it only holds, since the cloud tells it no more, is not
    /// among it: that is so for ten minutes after it was taken.
    fn told(&self) -> AddressSet {
        let blocks = self.blocks.iter().map(AddressSet::of_net);
        let blocks = AddressSet::union_of(self.family, &blocks.collect::<Vec<_>>());
        AddressSet::union_of(self.family, [&self.ranges, &self.used, &blocks])
    }

    /// Returns which wishes stay. Dropping one is always safe, since the agent then keeps the address for twenty minutes.
    ///
    /// - A block that a pod has got in between is dropped: that is no surplus.
    /// - What is not surrendered is dropped when addresses are `scarce`.
    /// - What neither the agent tells nor EC2 describes is gone.
    pub(super) fn kept(
        &self,
        asked: &AddressSet,
        described: Option<&Described>,
        scarce: bool,
    ) -> AddressSet {
        let mut dropped = Vec::new();
        for block in &self.blocks {
            let whole = AddressSet::of_net(block);
            let surrendered = sets::has_all(&self.surrendered, block);
            if sets::has_any(&self.used, block) || (scarce && !surrendered) {
                dropped.push(whole);
            }
        }
        if let Some(nic) = described {
            let still = nic
                .blocks
                .iter()
                .filter(|block| Family::of_net(block) == self.family);
            let still: Vec<AddressSet> = still.map(AddressSet::of_net).collect();
            let still = AddressSet::union_of(self.family, &still);
            dropped.push(asked.without(&self.told()).without(&still));
        }
        asked.without(&AddressSet::union_of(self.family, &dropped))
    }

    /// Returns whole free blocks beyond the `warm` addresses: the highest ones, and first those of the kind that is not
    /// asked for any more.
    pub(super) fn surplus(&self, warm: u128, by: By) -> AddressSet {
        let whole = |block: &&IpNet| sets::has_all(&self.free, block);
        let mut blocks: Vec<&IpNet> = self.blocks.iter().filter(whole).collect();
        let is_single = |block: &IpNet| block.prefix_len() == block.max_prefix_len();
        blocks.sort_by_key(|block| (is_single(block) == (by == By::Address), **block));
        // The other kind first; within a kind, the highest first.
        let other = blocks.partition_point(|block| is_single(block) != (by == By::Address));
        let (others, ours) = blocks.split_at(other);
        let mut left = self.free.len();
        let mut surplus = Vec::new();
        for block in others.iter().rev().chain(ours.iter().rev()) {
            let size = AddressSet::of_net(block).len();
            if left.saturating_sub(size) >= warm && left >= size {
                left -= size;
                surplus.push(AddressSet::of_net(block));
            }
        }
        AddressSet::union_of(self.family, &surplus)
    }
}

/// Whether another node's agent tells that it has any of a block: two NICs cannot have it, so one of them is mistaken.
pub(super) fn is_held_elsewhere(
    nodes: &BTreeMap<String, NodeFacts>,
    except: &str,
    block: &IpNet,
) -> bool {
    let family = Family::of_net(block);
    let others = nodes.iter().filter(|(name, _)| name.as_str() != except);
    let pools = others
        .flat_map(|(_, facts)| &facts.report)
        .flat_map(|report| &report.told.nics)
        .flat_map(|nic| &nic.pools)
        .filter(|pool| pool.family == family);
    pools
        .flat_map(|pool| [&pool.used, &pool.resting, &pool.held])
        .any(|text| sets::read(text, family).is_none_or(|set| sets::has_any(&set, block)))
}
