//! Chooses the source of what the node itself sends to its pods.
//!
//! By default the kernel chooses: the routes to pods name no source, as if Ebbtide were not there. That ends where a link of
//! the node has addresses that are pods' (cloud-init and ec2-net-utils put them there). For IPv6 the kernel prefers such a
//! one, since it resembles the destination most (RFC 6724, section 5, rule 8). For IPv4 it takes the link's first one
//! (`inet_select_addr`, net/ipv4/devinet.c), which is a pod's after a network manager has configured the link again. The pod
//! that it belongs to would get the replies, or nobody, as soon as it is taken off the link.

use std::net::IpAddr;

use ebbtide_types::Family;
use ipnet::IpNet;

use crate::node::{Nic, NodeFacts};

/// Returns the source of what the node sends to a pod on `master`, where it must not be left to the kernel.
pub(super) fn source_to_pod(pod: IpAddr, master: &str, node: &NodeFacts) -> Option<IpAddr> {
    let family = Family::of(pod);
    let mut not_its_own = node.not_its_own.iter();
    not_its_own
        .any(|address| Family::of(*address) == family)
        .then(|| primary(family, master, node))?
}

/// Returns the source of what the node sends to a pod whose address it has as well: it would choose the pod's, for IPv6
/// always (RFC 6724, section 5, rule 1), for IPv4 where that is on the loopback (`inet_select_addr`, net/ipv4/devinet.c).
pub(super) fn source_to_held(pod: IpAddr, master: &str, node: &NodeFacts) -> Option<IpAddr> {
    let family = Family::of(pod);
    primary(family, master, node).or_else(|| {
        // Better one that a pod may get later than the pod's own.
        let mut all = node.own_addresses().map(|(own, _)| own);
        all.find(|own| Family::of(*own) == family && *own != pod)
    })
}

/// Returns the node's primary address: on the pod's NIC, else on the link of its default route, else on any.
fn primary(family: Family, master: &str, node: &NodeFacts) -> Option<IpAddr> {
    let is_its_own = |own: &IpAddr| Family::of(*own) == family && !node.not_its_own.contains(own);
    let on = |nic: &Nic| {
        let mut all = nic.addresses.iter().map(IpNet::addr).filter(&is_its_own);
        // The kernel lists the oldest IPv4 address first, and the youngest IPv6 one (`ipv6_link_dev_addr`,
        // net/ipv6/addrconf.c). What was configured first is the NIC's, and what came later was added to it.
        match family {
            Family::V4 => all.next(),
            Family::V6 => all.next_back(),
        }
    };
    let defaults = node.defaults.iter();
    let defaults = defaults.filter(|route| Family::of_net(&route.destination) == family);
    let links = [master]
        .into_iter()
        .chain(defaults.map(|r| r.link.as_str()));
    let mut found = links.filter_map(|link| node.nic(link)).filter_map(on);
    found.next().or_else(|| {
        let mut all = node.own_addresses().map(|(own, _)| own);
        all.find(is_its_own)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::model::Route;

    fn nic(name: &str, ifindex: u32, addresses: &[&str]) -> Nic {
        Nic {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..Nic::named(name, ifindex)
        }
    }

    /// A pod is on ens6. As the kernel lists addresses: the oldest IPv4 one first, the oldest IPv6 one last.
    fn node(ens6: &[&str], not_its_own: &[&str]) -> NodeFacts {
        NodeFacts {
            nics: vec![
                nic("docker0", 2, &["172.17.0.1/16", "fd00:17::1/64"]),
                nic("ens5", 3, &["172.31.22.228/20", "fd00:16::228/64"]),
                nic("ens6", 4, ens6),
            ],
            defaults: Family::BOTH
                .map(|family| Route {
                    link: "ens5".into(),
                    destination: family.everything(),
                    via: None,
                    source: None,
                    table: 254,
                })
                .to_vec(),
            loopback: vec!["192.0.2.7/32".parse().unwrap()],
            not_its_own: not_its_own.iter().map(|a| a.parse().unwrap()).collect(),
            ..NodeFacts::default()
        }
    }

    const V4: &str = "210.22.16.4";
    const V6: &str = "fd00:21::4";
    const OWN: [&str; 2] = ["210.22.16.10/24", "fd00:21::10/64"];

    #[test]
    fn the_kernel_chooses_while_the_node_has_no_address_of_a_pods() {
        for own in [&OWN[..], &[]] {
            let node = node(own, &[]);
            for pod in [V4, V6] {
                assert_eq!(source_to_pod(pod.parse().unwrap(), "ens6", &node), None);
            }
        }
        // Nor does one of the other family change that.
        let node = node(&OWN, &["fd00:21::7"]);
        assert_eq!(source_to_pod(V4.parse().unwrap(), "ens6", &node), None);
    }

    #[test]
    fn else_it_is_the_primary_address_of_the_pods_nic() {
        let spare = ["210.22.16.7", "fd00:21::7"];
        for (ens6, expected) in [
            (&OWN[..], OWN),
            // Configured again: what was secondary is first.
            (
                &[
                    "210.22.16.7/32",
                    "210.22.16.10/24",
                    "fd00:21::10/64",
                    "fd00:21::7/128",
                ],
                OWN,
            ),
            // What somebody has added to it comes later. AWS's primary IPv6 address is a /128 as well.
            (
                &[
                    "210.22.16.10/24",
                    "210.22.16.99/32",
                    "fd00:21::99/128",
                    "fd00:21::10/128",
                ],
                ["210.22.16.10/24", "fd00:21::10/128"],
            ),
            // The NIC has none: the link of the default route, and not docker0.
            (
                &["210.22.16.7/24", "fd00:21::7/64"],
                ["172.31.22.228/20", "fd00:16::228/64"],
            ),
        ] {
            let node = node(ens6, &spare);
            for (pod, expected) in [V4, V6].into_iter().zip(expected) {
                let expected: IpNet = expected.parse().unwrap();
                for source in [source_to_pod, source_to_held] {
                    let found = source(pod.parse().unwrap(), "ens6", &node);
                    assert_eq!(found, Some(expected.addr()), "{ens6:?}");
                }
            }
        }
    }

    #[test]
    fn without_an_address_of_the_nodes_own_it_is_the_kernels_choice_or_any_but_the_pods() {
        let mut node = node(&["210.22.16.4/32", "210.22.16.7/32"], &[V4, "210.22.16.7"]);
        node.loopback.clear();
        node.nics.retain(|nic| nic.name == "ens6");
        let pod: IpAddr = V4.parse().unwrap();
        assert_eq!(source_to_pod(pod, "ens6", &node), None);
        let other = Some("210.22.16.7".parse().unwrap());
        assert_eq!(source_to_held(pod, "ens6", &node), other);
        // Another plugin's interface has no master.
        node.loopback.push("192.0.2.7/32".parse().unwrap());
        let own = Some("192.0.2.7".parse().unwrap());
        assert_eq!(source_to_pod(pod, "", &node), own);
    }
}
