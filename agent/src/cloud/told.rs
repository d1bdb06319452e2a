//! What the agent tells the cluster of its node's addresses from the cloud. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_cloud::{Provider, ledger::Ledger};
use ebbtide_ipam::{
    catalog::{AddressSet, Catalog, Pool},
    pool::Standing,
};
use ebbtide_kernel::node::NodeFacts;
use ebbtide_kube::node_cloud::{NodeCloud, NodeNic, NodePool, VERSION};
use ebbtide_types::{Family, Mac, settings::CloudSetting};
use ipnet::IpNet;

use super::{
    derive::{link_of, told as told_of},
    sets::Sets,
};

/// What is known of the cloud and of the node.
pub(crate) struct Known<'a> {
    pub(crate) node: &'a str,
    /// The cloud, if there is one.
    pub(crate) provider: Option<Provider>,
    pub(crate) ledger: &'a Ledger,
    pub(crate) facts: &'a NodeFacts,
    pub(crate) catalog: &'a Catalog,
    /// The links whose metadata networks or pods want.
    pub(crate) wanted: &'a BTreeSet<String>,
    /// What is asked back.
    pub(crate) asked: &'a Sets,
    /// What was asked back, and is kept.
    pub(crate) kept: &'a Sets,
}

/// Returns the report. `standing` says what of some addresses is not free, and `waiting` how many pods wait for an address
/// of a link, where those count for the family that it is given to whom any is good.
pub(crate) fn told(
    known: &Known<'_>,
    standing: impl Fn(&AddressSet) -> Standing,
    waiting: impl Fn(&str, Family) -> BTreeMap<Family, u64>,
) -> NodeCloud {
    let setting = known.provider.map_or(CloudSetting::None, Into::into);
    let nics = known.wanted.iter().filter(|_| known.provider.is_some());
    let nics = nics.filter_map(|link| {
        let (mac, nic) = told_of(known.facts, known.ledger, link)?;
        let has_v4 = nic.primary.is_empty() || nic.primary.iter().any(std::net::IpAddr::is_ipv4);
        let first = if has_v4 { Family::V4 } else { Family::V6 };
        let mut blocks: BTreeSet<IpNet> = known.ledger.usable(mac).into_iter().collect();
        let not_believed = known.ledger.waiting(mac).into_iter().map(|one| one.block);
        blocks.extend(not_believed);
        Some(NodeNic {
            id: nic.id.clone(),
            mac,
            link: link.clone(),
            waiting: waiting(link, first),
            blocks: blocks.into_iter().collect(),
            pools: pools(known, link, mac, &standing),
        })
    });
    NodeCloud {
        version: VERSION,
        node: known.node.to_owned(),
        cloud: setting.to_string(),
        nics: nics.collect(),
    }
}

fn pools(
    known: &Known<'_>,
    link: &str,
    mac: Mac,
    standing: &impl Fn(&AddressSet) -> Standing,
) -> Vec<NodePool> {
    let pools = known.catalog.pools().iter();
    let pools: Vec<&Pool> = pools
        .filter(|pool| pool.derived_of() == Some(link))
        .collect();
    let held = known.ledger.held(mac).into_iter().map(|held| held.block);
    let held = by_pool(&pools, held);
    let waiting = known.ledger.waiting(mac).into_iter().map(|one| one.block);
    let waiting = by_pool(&pools, waiting);
    let of = |sets: &BTreeMap<&str, AddressSet>, pool: &Pool| {
        let set = sets.get(pool.name.as_str()).cloned();
        set.unwrap_or_else(|| AddressSet::empty(pool.family))
    };
    let pools = pools.iter().map(|pool| {
        let not_believed = of(&waiting, pool).without(&pool.ranges);
        let held = of(&held, pool).without(&pool.ranges).without(&not_believed);
        let all = AddressSet::union_of(pool.family, [&pool.ranges, &not_believed, &held]);
        let Standing { used, resting } = standing(&all);
        let kept = known.kept.of(pool.family).common(&pool.ranges);
        let resting = AddressSet::union_of(pool.family, [&resting, &not_believed, &kept])
            .without(&used)
            .without(&held);
        let asked = known.asked.of(pool.family).common(&pool.ranges);
        let surrendered = asked.without(&used).without(&resting);
        NodePool {
            name: pool.name.clone(),
            networks: pool.networks.iter().map(ToString::to_string).collect(),
            family: pool.family,
            subnet: pool.subnet,
            gateway: pool.gateway,
            ranges: pool.ranges.to_string(),
            used: used.to_string(),
            resting: resting.to_string(),
            held: held.to_string(),
            surrendered: surrendered.to_string(),
        }
    });
    pools.collect()
}

/// Returns the addresses of blocks by the pools that they are, or were, of: those whose subnet they are in, else the NIC's
/// first one of the family.
fn by_pool<'a>(
    pools: &[&'a Pool],
    blocks: impl Iterator<Item = IpNet>,
) -> BTreeMap<&'a str, AddressSet> {
    let mut sets: BTreeMap<&str, AddressSet> = BTreeMap::new();
    for block in blocks {
        let family = Family::of_net(&block);
        let of_family = || pools.iter().filter(|pool| pool.family == family);
        let around = of_family().find(|pool| pool.subnet.contains(&block));
        let Some(pool) = around.or_else(|| of_family().next()) else {
            continue;
        };
        let set = sets
            .entry(pool.name.as_str())
            .or_insert_with(|| AddressSet::empty(family));
        *set = set.union(&AddressSet::of_net(&block));
    }
    sets
}

/// Returns what a report names as surrendered. Its sets were made of such.
pub(crate) fn surrendered(report: &NodeCloud) -> Sets {
    let mut sets = Sets::default();
    for pool in report.nics.iter().flat_map(|nic| &nic.pools) {
        if let Ok(set) = AddressSet::parse_list(&pool.surrendered, pool.family) {
            sets.add(&set);
        }
    }
    sets
}

/// Returns what is asked back in all, and what of it are addresses of the NIC's derived pools of which it is asked.
pub(crate) fn wished(
    back: &BTreeMap<String, Vec<AddressSet>>,
    ledger: &Ledger,
    facts: &NodeFacts,
    catalog: &Catalog,
) -> (Sets, Sets) {
    let (mut wish, mut offered) = (Sets::default(), Sets::default());
    for (id, sets) in back {
        let mut nics = ledger.nics().filter(|(_, nic)| nic.id == *id);
        let link = nics
            .next()
            .and_then(|(mac, _)| link_of(facts, mac))
            .map(|link| link.name.as_str());
        for set in sets {
            wish.add(set);
            let pools = catalog.pools().iter();
            let own = pools.filter(|pool| {
                pool.family == set.family() && link.is_some() && pool.derived_of() == link
            });
            own.for_each(|pool| offered.add(&pool.ranges.common(set)));
        }
    }
    (wish, offered)
}

#[cfg(test)]
mod tests;
