//! Plans an interface beside others in its pod, Ebbtide's or another plugin's: which one has the default route, which
//! tables the routes are in, and which rules select them.
//!
//! Beside another plugin's interface all unrelated traffic stays as it was. So the default route there is not replaced;
//! the routes over the veth are only for packets from Ebbtide's addresses; and packets without a source yet look up
//! Ebbtide's tables last, and for its subnets alone.

use std::net::IpAddr;

use ebbtide_types::{
    Family,
    settings::{Settings, is_kernel_table},
};

use super::model::{Existing, NetworkSpec, PodAddress, Sandbox};
use crate::netlink::model::{Action, MAIN_TABLE, Rule, Selector};

/// Distance of a table for subnets alone from that of its interface. No pod has so many.
const SUBNETS_ONLY: u32 = 500;

/// The routing tables of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Its own table, if it does not have the pod's default route in the main one.
    pub(super) own: Option<u32>,
    /// Beside another plugin's default route: the table with its subnets alone.
    pub(super) subnets: Option<u32>,
    /// The families in which it has the default route by a rule, since the main table has another's or must not be
    /// changed.
    defaults: Vec<Family>,
}

/// The families whose default route belongs to another interface, if an interface with these addresses is beside
/// another plugin's. Empty otherwise.
pub(super) fn others_defaults(existing: &Existing, addresses: &[PodAddress]) -> Vec<Family> {
    let concerned = |family: &Family| families(addresses).any(|(own, _)| own == *family);
    if !existing.others_defaults.iter().any(concerned) {
        return Vec::new();
    }
    if existing.tables.contains(&MAIN_TABLE) {
        return Family::BOTH.into();
    }
    existing.others_defaults.clone()
}

pub(super) fn tables(
    sandbox: &Sandbox,
    existing: &Existing,
    network: &NetworkSpec,
    others_defaults: &[Family],
    settings: &Settings,
) -> Tables {
    let is_beside = !others_defaults.is_empty();
    let own = own_table(sandbox, existing, network, is_beside, settings);
    let has_default = |family: &Family| match &network.default_route {
        Some(chosen) => *chosen == sandbox.interface,
        None => !others_defaults.contains(family),
    };
    let mut defaults = Family::BOTH.to_vec();
    defaults.retain(|family| is_beside && own.is_some() && has_default(family));
    Tables {
        own,
        subnets: own
            .filter(|_| is_beside)
            .map(|own| own.saturating_add(SUBNETS_ONLY)),
        defaults,
    }
}

/// Returns the interface's own table, from which packets with its addresses are routed. An interface with the pod's
/// default route has none.
fn own_table(
    sandbox: &Sandbox,
    existing: &Existing,
    network: &NetworkSpec,
    is_beside: bool,
    settings: &Settings,
) -> Option<u32> {
    if let Some(table) = existing.own_table {
        return (table != MAIN_TABLE).then_some(table);
    }
    let has_default = !is_beside
        && match &network.default_route {
            Some(chosen) => *chosen == sandbox.interface,
            None => !existing.tables.contains(&MAIN_TABLE),
        };
    let mut candidates = settings.reply_table.saturating_add(1)..=u32::MAX;
    (!has_default)
        .then(|| {
            candidates.find(|table| !is_kernel_table(*table) && !existing.tables.contains(table))
        })
        .flatten()
}

/// The rules of a pod with other interfaces, besides those that route each address by its own interface: packets from
/// another's address look up the main table alone, and those without a source yet the subnets of all.
pub(super) fn rules(
    addresses: &[PodAddress],
    existing: &Existing,
    tables: &Tables,
    settings: &Settings,
) -> Vec<Rule> {
    let mut in_main = existing.in_main.clone();
    if tables.own.is_none() && existing.own_table.is_none() && !existing.tables.is_empty() {
        in_main.extend(addresses.iter().map(|pod| pod.address.addr()));
    }
    in_main.retain(|address| families(addresses).any(|(own, _)| own == Family::of(*address)));
    in_main.sort();
    in_main.dedup();
    let rule = |step, family, selector, table| Rule {
        family,
        priority: settings.rule_priority + step,
        selector,
        action: Action::Table(table),
    };
    let from = |own| rule(1, Family::of(own), Selector::From(own), MAIN_TABLE);
    let mut rules: Vec<Rule> = in_main.into_iter().map(from).collect();
    let Some(own) = tables.own else {
        return rules;
    };
    for (family, _) in families(addresses) {
        let but_default = |step, table| rule(step, family, Selector::AllButDefault, table);
        rules.push(but_default(2, MAIN_TABLE));
        rules.push(but_default(3, tables.subnets.unwrap_or(own)));
        if tables.defaults.contains(&family) {
            rules.push(rule(4, family, Selector::All, own));
        }
    }
    rules
}

/// Returns the families of the addresses, each with its first one.
pub(super) fn families(addresses: &[PodAddress]) -> impl Iterator<Item = (Family, IpAddr)> {
    Family::BOTH.into_iter().filter_map(|family| {
        let first = addresses
            .iter()
            .map(|a| a.address.addr())
            .find(|a| Family::of(*a) == family);
        first.map(|address| (family, address))
    })
}
