//! Names in pools and networks that lead nowhere: each object is valid by itself, and pods wait all the same.

use ebbtide_ipam::catalog::{Catalog, Network, Pool, PoolSource};
use ebbtide_kernel::node::{Classification, Nic, Role};
use ebbtide_types::{Family, glob::fits};

use super::{Finding, Severity};

/// Reports pools of this node for networks that are not declared, networks that name pools which are not declared, and
/// networks whose NIC this node does not have or does not take for one.
pub(super) fn dangling(
    catalog: &Catalog,
    node_name: &str,
    links: &[(Nic, Classification)],
) -> Vec<Finding> {
    let pools = catalog.pools().iter();
    let mut findings: Vec<Finding> = pools
        .filter(|pool| pool.node_names.is_empty() || pool.node_names.iter().any(|n| n == node_name))
        .filter_map(|pool| for_no_network(catalog, pool))
        .collect();
    for network in catalog.networks() {
        findings.extend(without_pool(catalog, network));
        findings.extend(without_nic(network, links));
    }
    findings
}

fn for_no_network(catalog: &Catalog, pool: &Pool) -> Option<Finding> {
    let is_there = |wanted: &ebbtide_types::NetworkRef| {
        let mut networks = catalog.networks().iter();
        networks.any(|network| wanted.matches(&network.name, catalog.namespaces()))
    };
    let is_declared = pool.source == PoolSource::Declared;
    if !is_declared || pool.networks.is_empty() || pool.networks.iter().any(is_there) {
        return None;
    }
    let names: Vec<String> = pool.networks.iter().map(ToString::to_string).collect();
    Some(Finding {
        severity: Severity::Warning,
        what: format!(
            "pool {} is for {} (multusName), and there is no such ipvlan network: no pod of Ebbtide's gets an address of it",
            pool.name,
            names.join(", ")
        ),
        hint: format!(
            "correct multusName ({}), or declare the network",
            known(
                catalog
                    .networks()
                    .iter()
                    .map(|network| network.name.to_string())
            )
        ),
    })
}

fn without_pool(catalog: &Catalog, network: &Network) -> Vec<Finding> {
    let own = [
        (Family::V4, &network.ipv4_pools),
        (Family::V6, &network.ipv6_pools),
    ];
    let lacks = own.into_iter().filter(|(family, patterns)| {
        let mut fitting = catalog.pools().iter().filter(|pool| {
            pool.family == *family && patterns.iter().any(|pattern| fits(pattern, &pool.name))
        });
        !patterns.is_empty() && fitting.next().is_none()
    });
    lacks
        .map(|(family, patterns)| Finding {
            severity: Severity::Warning,
            what: format!(
                "network {} names the {family} pools {} (ippools), and no such {family} pool is declared: no pod gets \
                 an {family} address by it",
                network.name,
                patterns.join(", ")
            ),
            hint: format!(
                "correct ippools ({}), or declare the pool",
                known(catalog.pools().iter().map(|pool| pool.name.clone()))
            ),
        })
        .collect()
}

fn without_nic(network: &Network, links: &[(Nic, Classification)]) -> Option<Finding> {
    let Network { name, master, .. } = network;
    let Some((_, taken)) = links.iter().find(|(nic, _)| nic.name == *master) else {
        return Some(Finding {
            severity: Severity::Note,
            what: format!("the NIC {master} of network {name} is not on this node: pods that want this network fail here"),
            hint: "if this node is to have such pods, name one of its NICs (`ebbtidectl nics`) as the network's master"
                .to_owned(),
        });
    };
    (taken.role == Role::Others).then(|| Finding {
        severity: Severity::Warning,
        what: format!(
            "the master {master} of network {name} is not taken for a NIC: {}: replies to what comes in by it leave as the \
             node's routes say",
            taken.why
        ),
        hint: "name an uplink of the node as the network's master: `ebbtidectl nics` says which links are NICs, and why"
            .to_owned(),
    })
}

/// Lists what is declared.
fn known(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    match names.as_slice() {
        [] => "none is declared".to_owned(),
        some => format!("there are: {}", some.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const NETWORK: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: ipvlan-ens5, namespace: default}
spec: {cniType: ipvlan, ipvlan: {master: [ens5], ippools: {ipv4: POOLS}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: worker-a}
spec: {subnet: 172.31.0.0/20, ips: [172.31.0.20], nodeName: [n1], multusName: NETWORKS}
";

    fn catalog(pools: &str, networks: &str) -> Catalog {
        let text = NETWORK
            .replace("POOLS", pools)
            .replace("NETWORKS", networks);
        let catalog = Catalog::from_texts([(Path::new("x.yaml"), text.as_str())]);
        assert!(catalog.problems().is_empty(), "{:?}", catalog.problems());
        catalog
    }

    fn links(name: &str, role: Role) -> Vec<(Nic, Classification)> {
        let why = "it is in the VRF red".to_owned();
        vec![(Nic::named(name, 2), Classification { role, why })]
    }

    #[test]
    fn names_that_lead_nowhere_are_found() {
        let nic = links("ens5", Role::Nic);
        for (pools, networks, node, links, wanted) in [
            ("[]", "[]", "n1", &nic, None),
            ("['worker-*']", "[default/ipvlan-ens5]", "n1", &nic, None),
            ("[]", "[ipvlan-ens5]", "n1", &nic, None),
            ("[]", "[ens5, ipvlan-ens5]", "n1", &nic, None),
            ("[]", "[default/ipvlan-ens6]", "n2", &nic, None),
            (
                "[]",
                "[default/ipvlan-ens6]",
                "n1",
                &nic,
                Some("there are: default/ipvlan-ens5"),
            ),
            ("[wroker-a]", "[]", "n1", &nic, Some("there are: worker-a")),
            (
                "[]",
                "[]",
                "n1",
                &links("eth0", Role::Nic),
                Some("ens5 of network default/ipvlan-ens5 is not on this node"),
            ),
            (
                "[]",
                "[]",
                "n1",
                &links("ens5", Role::Others),
                Some("it is in the VRF red"),
            ),
        ] {
            let found = dangling(&catalog(pools, networks), node, links);
            let said: Vec<String> = found.iter().map(ToString::to_string).collect();
            match wanted {
                None => assert!(said.is_empty(), "{pools} {networks}: {said:?}"),
                Some(words) => {
                    assert_eq!(said.len(), 1, "{pools} {networks}: {said:?}");
                    assert!(said.iter().all(|line| line.contains(words)), "{said:?}");
                }
            }
        }
    }

    #[test]
    fn a_pool_of_the_other_family_is_not_the_one_that_a_network_means() {
        let text = NETWORK
            .replace("ipv4: POOLS", "ipv6: [worker-a]")
            .replace("NETWORKS", "[]");
        let catalog = Catalog::from_texts([(Path::new("x.yaml"), text.as_str())]);
        let found = dangling(&catalog, "n1", &links("ens5", Role::Nic));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found
                .iter()
                .all(|finding| finding.what.contains("IPv6 pool")),
            "{found:?}"
        );
    }
}
