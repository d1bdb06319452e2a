//! Findings about pools: addresses that the node itself has, and missing or unusable gateways.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_ipam::catalog::Pool;
use ebbtide_kernel::{netlink::local_routes::LocalRoute, node::NodeFacts};
use ebbtide_types::Family;

use super::{
    Finding, Severity,
    culprit::{self, Culprits},
};

/// Returns the pools that this node may assign addresses from.
fn of_node<'a>(pools: &'a [Pool], node: &str) -> impl Iterator<Item = &'a Pool> {
    let here = move |pool: &&Pool| {
        let names = &pool.node_names;
        !pool.disabled && (names.is_empty() || names.iter().any(|name| name == node))
    };
    pools.iter().filter(here)
}

/// What the node takes for its own, and what comes of it.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    pub(super) facts: &'a NodeFacts,
    /// Routes of others in the table `local`.
    pub(super) routes: &'a [LocalRoute],
    /// Pods' addresses that the kernel delivers to the node, since no rule in front of `local` finds the pod.
    pub(super) lost: &'a BTreeSet<IpAddr>,
    /// The pods' addresses, with the pods.
    pub(super) pods: &'a BTreeMap<IpAddr, String>,
    pub(super) culprits: &'a Culprits,
}

/// Reports addresses in a pool's ranges that the node has on a link: cloud-init, ec2-net-utils and their kin assign
/// every address that the cloud provides to the NIC. `pod_of` returns the pod that an address is kept for.
pub(super) fn addresses(
    taken: &Taken<'_>,
    pools: &[Pool],
    node: &str,
    pod_of: impl Fn(IpAddr) -> Option<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pool in of_node(pools, node) {
        let own = taken.facts.own_addresses();
        for (address, link) in own.filter(|(address, _)| pool.ranges.contains(*address)) {
            let hint = format!(
                "`ip address del {address} dev {link}`, and: {}; or put it into excludeIPs if it is the node's",
                taken.culprits.of(&address.to_string(), link)
            );
            let has = taken.pods.get(&address).cloned();
            findings.push(match has.or_else(|| pod_of(address)) {
                Some(pod) if taken.lost.contains(&address) => Finding {
                    severity: Severity::Serious,
                    what: format!(
                        "{address}, which pod {pod} has of pool {}, is an address of this node's own on {link}: the \
                         node takes what is sent to the pod",
                        pool.name
                    ),
                    hint,
                },
                Some(pod) => Finding {
                    severity: Severity::Warning,
                    what: format!(
                        "{address}, which pod {pod} has of pool {}, is an address of this node's own on {link}, too: a \
                         rule in front of the table `local` leads to the pod, but programs of the node may choose the \
                         address as their source",
                        pool.name
                    ),
                    hint,
                },
                None => Finding {
                    severity: Severity::Warning,
                    what: format!(
                        "{address} of pool {} is not given to pods: the node has it on {link}",
                        pool.name
                    ),
                    hint,
                },
            });
        }
    }
    findings
}

/// Reports routes of others in the table `local` that take pods' addresses. Where the rule in front of that table leads
/// to the pods, there is no harm.
pub(super) fn local_routes(taken: &Taken<'_>) -> Vec<Finding> {
    let of = |route: &LocalRoute| {
        let within = |(address, _): &(&IpAddr, &String)| route.net.contains(*address);
        let pods: Vec<_> = taken.pods.iter().filter(within).collect();
        let is_lost = |(address, _): &&(&IpAddr, &String)| taken.lost.contains(*address);
        let (address, pod) = pods.iter().find(is_lost).or(pods.first())?;
        let what = format!(
            "a route in the table `local` makes {} this node's own, in which {} address(es) are pods' (pod {pod}: {address})",
            route.net,
            pods.len()
        );
        Some(match pods.iter().any(|pod| is_lost(&pod)) {
            true => Finding {
                severity: Severity::Serious,
                what: format!(
                    "{what}: the node takes what it sends to them, and does not answer them"
                ),
                hint: culprit::of_route(route),
            },
            false => Finding {
                severity: Severity::Note,
                what: format!("{what}: a rule in front of that table leads to the pods"),
                hint: format!(
                    "nothing has to be done; if the rule is to go: {}",
                    culprit::of_route(route)
                ),
            },
        })
    };
    taken.routes.iter().filter_map(of).collect()
}

/// Reports pools whose pods cannot leave their subnet.
pub(super) fn missing_gateways(facts: &NodeFacts, pools: &[Pool], node: &str) -> Vec<Finding> {
    of_node(pools, node)
        .filter_map(|pool| without_gateway(pool).or_else(|| by_the_node(facts, pool)))
        .collect()
}

fn without_gateway(pool: &Pool) -> Option<Finding> {
    let subnet = pool.subnet;
    pool.gateway.is_none().then(|| Finding {
        severity: Severity::Warning,
        what: format!("pool {} has no gateway", pool.name),
        hint: match (pool.derived_of(), pool.family) {
            (None, _) => format!(
                "its pods reach nothing outside of {subnet}; if that is not meant, set `gateway`"
            ),
            // Where the node forwards, the kernel takes a router's announcement only with 2
            // (Documentation/networking/ip-sysctl.rst).
            (Some(link), Family::V6) => format!(
                "its pods reach nothing outside of {subnet}: the cloud does not tell its IPv6 routers, and the node has no \
                 IPv6 default route by {link}; let it take their announcements (`sysctl net.ipv6.conf.{link}.accept_ra=2`), \
                 or declare a SpiderIPPool with `gateway`"
            ),
            (Some(link), Family::V4) => format!(
                "its pods reach nothing outside of {subnet}: neither the cloud nor the node's routes tell a gateway by \
                 {link}; declare a SpiderIPPool with `gateway`"
            ),
        },
    })
}

/// Reports a gateway that is this node's own address: an ipvlan interface sends to the network, not to the NIC below
/// it.
fn by_the_node(facts: &NodeFacts, pool: &Pool) -> Option<Finding> {
    let gateway = pool.gateway?;
    let (_, link) = facts.own_addresses().find(|(own, _)| *own == gateway)?;
    Some(Finding {
        severity: Severity::Warning,
        what: format!(
            "the gateway {gateway} of pool {} is an address of this node's own on {link}: pods on this node do not reach \
             it, and nothing outside of {}",
            pool.name, pool.subnet
        ),
        hint: "name another router as `gateway`, or nodes in the pool's `nodeName` that are not the router"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ebbtide_ipam::catalog::{Catalog, DerivedNic};
    use ebbtide_kernel::node::Nic;

    use super::*;

    #[test]
    fn where_no_router_is_known_of_a_nic_it_is_said_how_the_node_learns_one() {
        for (family, own, block, said) in [
            (
                Family::V4,
                "10.0.1.4",
                "10.0.1.5/32",
                "declare a SpiderIPPool",
            ),
            (Family::V6, "fd01::4", "fd01::5/128", "ens6.accept_ra=2"),
        ] {
            let nic = DerivedNic {
                node: "node1".into(),
                link: "ens6".into(),
                family,
                blocks: vec![block.parse().unwrap()],
                primary: vec![own.parse().unwrap()],
                gateway: None,
                subnets: vec!["10.0.1.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()],
                source: "AWS eni-6".into(),
            };
            let catalog = Catalog::default().with_derived(&[nic], &[]);
            let found = missing_gateways(&NodeFacts::default(), catalog.pools(), "node1");
            let [finding] = found.as_slice() else {
                panic!("{found:?}")
            };
            assert!(finding.hint.contains(said), "{finding}");
        }
    }

    fn pools(more: &str) -> Vec<Pool> {
        let text = format!(
            "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {{name: p}}\n\
             spec: {{subnet: 172.31.16.0/20, ips: [172.31.16.4-172.31.16.8], {more}}}\n"
        );
        Catalog::from_texts([(Path::new("p.yaml"), text.as_str())])
            .pools()
            .to_vec()
    }

    #[test]
    fn an_address_that_is_a_pods_and_the_nodes_is_found_and_a_missing_gateway() {
        let nic = |addresses: &[&str]| NodeFacts {
            nics: vec![Nic {
                mtu: 9001,
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                ..Nic::named("ens5", 3)
            }],
            ..NodeFacts::default()
        };
        let gateway = "gateway: 172.31.16.1";
        let cases = [
            (gateway.to_owned(), nic(&["172.31.22.228/20"]), None),
            (
                gateway.to_owned(),
                nic(&["172.31.22.228/20", "172.31.16.5/20"]),
                Some((
                    Severity::Warning,
                    "172.31.16.5 of pool p is not given to pods: the node has it on ens5",
                )),
            ),
            (
                gateway.to_owned(),
                nic(&["172.31.16.6/32"]),
                Some((
                    Severity::Serious,
                    "172.31.16.6, which pod shop/web has of pool p, is an address of this node's own on ens5",
                )),
            ),
            (
                format!("{gateway}, nodeName: [other]"),
                nic(&["172.31.16.5/20"]),
                None,
            ),
            (
                format!("{gateway}, disable: true"),
                nic(&["172.31.16.5/20"]),
                None,
            ),
            (
                "default: true".to_owned(),
                nic(&["172.31.22.228/20"]),
                Some((Severity::Warning, "pool p has no gateway")),
            ),
            (
                gateway.to_owned(),
                nic(&["172.31.16.1/20"]),
                Some((
                    Severity::Warning,
                    "the gateway 172.31.16.1 of pool p is an address of this node's own on ens5",
                )),
            ),
        ];
        for (more, facts, expected) in cases {
            let pools = pools(&more);
            assert_eq!(pools.len(), 1, "{more}");
            let pod_of = |address: IpAddr| {
                (address == IpAddr::from([172, 31, 16, 6])).then(|| "shop/web".to_owned())
            };
            let taken = Taken {
                facts: &facts,
                routes: &[],
                lost: &BTreeSet::from([[172, 31, 16, 6].into()]),
                pods: &BTreeMap::new(),
                culprits: &Culprits::default(),
            };
            let mut found = addresses(&taken, &pools, "master", pod_of);
            found.extend(missing_gateways(&facts, &pools, "master"));
            match (expected, &found[..]) {
                (None, []) => {}
                (Some((severity, what)), [one]) => {
                    assert_eq!(one.severity, severity, "{one}");
                    assert!(one.what.contains(what), "{one}");
                }
                _ => panic!("{more}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_the_node_takes_is_serious_only_where_the_pod_loses_it() {
        let pod: IpAddr = [172, 31, 16, 6].into();
        let facts = NodeFacts {
            nics: vec![Nic {
                addresses: vec!["172.31.16.6/32".parse().unwrap()],
                ..Nic::named("ens5", 3)
            }],
            ..NodeFacts::default()
        };
        let route = |net: &str, protocol| LocalRoute {
            net: net.parse().unwrap(),
            protocol,
        };
        let routes = [route("172.31.16.0/24", 66), route("10.0.0.0/8", 3)];
        for (lost, on_link, by_route) in [
            (BTreeSet::new(), Severity::Warning, Severity::Note),
            (BTreeSet::from([pod]), Severity::Serious, Severity::Serious),
        ] {
            let taken = Taken {
                facts: &facts,
                routes: &routes,
                lost: &lost,
                pods: &BTreeMap::from([(pod, "shop/web".to_owned())]),
                culprits: &Culprits::default(),
            };
            let found = addresses(&taken, &pools("gateway: 172.31.16.1"), "master", |_| None);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].severity, on_link, "{}", found[0]);
            assert!(found[0].what.contains("pod shop/web"), "{}", found[0]);
            let found = local_routes(&taken);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].severity, by_route, "{}", found[0]);
            assert!(found[0].hint.contains("google-guest-agent"), "{}", found[0]);
        }
    }
}
