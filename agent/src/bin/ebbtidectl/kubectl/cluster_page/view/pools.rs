//! The pools: how full each is, and which NICs its addresses are on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ebbtide_types::glob::fits;

use super::{
    super::rows::{EndpointRow, NetworkRow, PoolRow},
    Level, PoolLine, Rows,
};

/// A pool with less than one of so many addresses free is nearly empty: as the chart's alert has it.
const NEARLY: u64 = 10;

/// Returns the NICs of each pool's networks, by the pool's name. A pool that is for any network has none.
pub(super) fn nics(rows: &Rows) -> BTreeMap<String, String> {
    let pools = rows.pools.iter().flatten();
    let of = |pool: &PoolRow| {
        let networks = rows.networks.iter().flatten();
        let masters = networks
            .filter(|network| is_for(pool, network))
            .filter(|network| !network.masters.is_empty())
            .map(|network| network.masters.join("+"));
        let masters: BTreeSet<String> = masters.collect();
        (
            pool.name.clone(),
            masters.into_iter().collect::<Vec<_>>().join(", "),
        )
    };
    pools.map(of).filter(|(_, nic)| !nic.is_empty()).collect()
}

fn is_for(pool: &PoolRow, network: &NetworkRow) -> bool {
    let names_network = pool.networks.iter().any(|told| match told.split_once('/') {
        Some((namespace, name)) => namespace == network.namespace && name == network.name,
        None => *told == network.name,
    });
    names_network || network.pools.iter().any(|told| fits(told, &pool.name))
}

/// Returns the pools, and those that endpoints name and that are not there.
pub(super) fn lines(
    rows: &Rows,
    live: &[&EndpointRow],
    nics: &BTreeMap<String, String>,
) -> Vec<PoolLine> {
    let mut held: HashMap<&str, BTreeSet<_>> = HashMap::new();
    for endpoint in live {
        for (address, pool) in endpoint.interfaces.iter().flat_map(|it| &it.addresses) {
            held.entry(pool).or_default().insert(*address);
        }
    }
    let count = |name: &str| held.get(name).map_or(0, |it| it.len() as u64);
    let declared = rows.pools.iter().flatten();
    let mut lines: Vec<PoolLine> = declared
        .map(|pool| line(pool, count(&pool.name), nics.get(&pool.name), true))
        .collect();
    let known: BTreeSet<&str> = rows
        .pools
        .iter()
        .flatten()
        .map(|it| it.name.as_str())
        .collect();
    for name in held
        .keys()
        .filter(|it| !it.is_empty() && !known.contains(**it))
    {
        let pool = PoolRow {
            name: (*name).to_owned(),
            ..PoolRow::default()
        };
        lines.push(line(&pool, count(name), None, rows.pools.is_none()));
    }
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    lines
}

fn line(pool: &PoolRow, held: u64, nic: Option<&String>, declared: bool) -> PoolLine {
    let used = held.max(pool.allocated.unwrap_or_default());
    let free = pool.total.map(|total| total.saturating_sub(used));
    PoolLine {
        name: pool.name.clone(),
        subnet: pool.subnet.clone(),
        nic: nic.cloned().unwrap_or_default(),
        total: pool.total,
        allocated: pool.allocated,
        held,
        free,
        level: level(pool, free),
        default: pool.is_default,
        disabled: pool.is_disabled,
        nodes: pool.nodes.clone(),
        networks: pool.networks.clone(),
        derived: pool.derived.clone(),
        declared,
    }
}

fn level(pool: &PoolRow, free: Option<u64>) -> Level {
    match (pool.total, free) {
        _ if pool.is_disabled => Level::Well,
        (Some(total), Some(0)) if total > 0 => Level::Bad,
        (Some(total), Some(free)) if free.saturating_mul(NEARLY) < total => Level::Warn,
        _ => Level::Well,
    }
}
