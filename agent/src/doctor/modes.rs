//! Networks whose mode differs from that of existing ipvlan interfaces on their NIC.

use ebbtide_ipam::catalog::Catalog;
use ebbtide_kernel::{
    netlink::{
        direct::Direct,
        siblings::{Sibling, siblings},
    },
    node::NodeFacts,
};
use ebbtide_types::IpvlanMode;

use super::{Finding, Severity};

/// A network, and the NIC that it is on.
#[derive(Debug)]
pub(super) struct Wanted {
    network: String,
    master: String,
    ifindex: u32,
    mode: IpvlanMode,
}

/// Returns the networks whose NIC exists.
pub(super) fn wanted(facts: &NodeFacts, catalog: &Catalog) -> Vec<Wanted> {
    let networks = catalog.networks().iter();
    networks
        .filter_map(|network| {
            Some(Wanted {
                network: network.name.to_string(),
                master: network.master.clone(),
                ifindex: facts.nic(&network.master)?.ifindex,
                mode: network.mode,
            })
        })
        .collect()
}

/// Reports existing interfaces in another mode. Searches all namespaces, which takes a moment.
pub(super) fn of_others(wanted: &[Wanted]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for wanted in wanted {
        let found = Direct::open("in the host");
        match found.and_then(|mut host| siblings(&mut host, wanted.ifindex)) {
            Ok(siblings) => findings.extend(differing(wanted, &siblings)),
            Err(e) => tracing::warn!(
                "whose ipvlan interfaces {} has is not known: {e}",
                wanted.master
            ),
        }
    }
    findings
}

fn differing(wanted: &Wanted, siblings: &[Sibling]) -> Option<Finding> {
    let Wanted {
        network,
        master,
        mode,
        ..
    } = wanted;
    let first = siblings.iter().find(|sibling| sibling.mode != *mode)?;
    let there = first.mode;
    Some(Finding {
        severity: Severity::Serious,
        what: format!(
            "network {network} wants mode {mode} on {master}, which has {} ipvlan interface(s) in mode {there} (the \
             first: {first}): its pods are refused, as these would get its mode",
            siblings.len()
        ),
        hint: format!(
            "use mode {there} in the networks of {master}, or let these interfaces end first; if they are pods of \
             another plugin, restart them with ebbtide's network"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_mode_is_told_with_who_has_it_and_the_same_one_is_not() {
        let sibling = |mode| Sibling {
            name: "eth0".into(),
            mode,
            namespace: Some("/run/netns/old".into()),
        };
        let wanted = |mode| Wanted {
            network: "default/on-ens5".into(),
            master: "ens5".into(),
            ifindex: 2,
            mode,
        };
        for (mode, there, told) in [
            (IpvlanMode::L3, vec![sibling(IpvlanMode::L2)], true),
            (IpvlanMode::L2, vec![sibling(IpvlanMode::L2)], false),
            (IpvlanMode::L3s, vec![sibling(IpvlanMode::L3)], true),
            (IpvlanMode::L3, vec![], false),
        ] {
            let finding = differing(&wanted(mode), &there);
            assert_eq!(finding.is_some(), told, "{mode} {there:?}");
            for part in ["default/on-ens5", "ens5", "eth0 in /run/netns/old"] {
                assert!(
                    finding.as_ref().is_none_or(|f| f.what.contains(part)),
                    "{part}"
                );
            }
        }
    }
}
