//! Classifies each link of the node by what it is and which routes use it, never by its name.
//!
//! A NIC is an uplink to the network: a default route uses it, or pods have their addresses there. Only there does the
//! agent have programs, rules and tables. A container engine's bridge, an overlay's device and a port of a bridge are
//! none.

use std::{collections::BTreeSet, net::IpAddr};

use ebbtide_types::{Family, settings::LinkNames};
use ipnet::IpNet;

use super::{Nic, NodeFacts};
use crate::netlink::model::MAIN_TABLE;

/// The role of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An uplink. Replies leave by the one that their request came in on.
    Nic,
    /// No uplink, but its addresses are the node's: pods reach them by their veth.
    Node,
    /// A foreign link, which is ignored.
    Others,
}

/// The role of a link, and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classification {
    /// The role.
    pub role: Role,
    /// The reason, for people.
    pub why: String,
}

impl Classification {
    fn new(role: Role, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { role, why }
    }
}

/// What determines a node's NICs besides the kernel's facts.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Masters of the pods' interfaces, and those named by networks.
    pub masters: BTreeSet<String>,
    /// The subnets of the pools that this node uses.
    pub subnets: Vec<IpNet>,
}

/// Tunnels that carry other networks' packets in packets of this one. What comes out of a tunnel does not belong to the
/// node's network, and a reply to it returns into the tunnel.
const TUNNELS: [&str; 19] = [
    "amt",
    "bareudp",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "gtp",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "l2tpeth",
    "pfcp",
    "sit",
    "vti",
    "vti6",
    "vxlan",
    "xfrm",
];

/// VPNs: links to networks of their own that have the node as a member.
const VPNS: [&str; 5] = ["ovpn", "ppp", "tun", "wireguard", "wwan"];

/// Links that share another one's wire, with addresses of their own: uplinks only by configuration.
const CHILDREN: [&str; 4] = ["ipvlan", "ipvtap", "macvlan", "macvtap"];

/// Links into namespaces and machines of this node. A foreign table with a route over one is for a container.
const INNER: [&str; 2] = ["netkit", "veth"];

/// Whether links of this kind lead to other networks than this one: tunnels and VPNs.
pub(super) fn is_tunnel_or_vpn(kind: &str) -> bool {
    TUNNELS.contains(&kind) || VPNS.contains(&kind)
}

/// Links without a network behind them.
const NOWHERE: [&str; 6] = ["ifb", "netdevsim", "nlmon", "vcan", "vrf", "vsockmon"];

/// Returns the role of `nic`, and the reason.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::node::{Known, Nic, NodeFacts, Role, classify};
/// use ebbtide_types::{Mac, settings::LinkNames};
///
/// # let node = NodeFacts {
/// #     nics: vec![Nic {
/// #         mac: Some(Mac([2, 0, 0, 0, 0, 5])),
/// #         mtu: 9001,
/// #         addresses: vec!["10.0.0.228/24".parse()?],
/// #         ..Nic::named("ens5", 2)
/// #     }],
/// #     ..NodeFacts::default()
/// # };
/// // `node` has one link, ens5, with the address 10.0.0.228/24 and no default route.
/// let nic = &node.nics[0];
/// let mut known = Known::default();
/// assert_eq!(classify(nic, &node, &known, &LinkNames::default()).role, Role::Node);
///
/// // A pool of its subnet makes it a NIC.
/// known.subnets.push("10.0.0.0/24".parse()?);
/// let taken = classify(nic, &node, &known, &LinkNames::default());
/// assert_eq!(taken.role, Role::Nic);
/// assert_eq!(taken.why, "its address is in a pool's 10.0.0.0/24");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn classify(nic: &Nic, facts: &NodeFacts, known: &Known, names: &LinkNames) -> Classification {
    let taken = |role, why: &str| Classification::new(role, why);
    if names.excludes(&nic.name) {
        return taken(Role::Others, "nics.exclude names it");
    }
    let kind = nic.kind.as_deref().unwrap_or("");
    if let Some(other) = nic.port_of {
        let above = facts.nics.iter().find(|above| above.ifindex == other);
        let name = above.map_or("another link", |above| above.name.as_str());
        let why = match above.and_then(|above| above.kind.as_deref()) {
            Some("vrf") => format!("it is in the VRF {name}, which has tables of its own"),
            _ => format!("it is a port of {name}"),
        };
        return Classification::new(Role::Others, why);
    }
    let carries = nic.up && nic.mac.is_some() && !NOWHERE.contains(&kind);
    if carries && names.includes(&nic.name) {
        return taken(Role::Nic, "nics.include names it");
    }
    if carries && known.masters.contains(&nic.name) {
        return taken(Role::Nic, "a network names it as its master");
    }
    if NOWHERE.contains(&kind) || TUNNELS.contains(&kind) {
        let why = format!("a link of kind {kind} is not an uplink");
        return Classification::new(Role::Others, why);
    }
    if nic.addresses.is_empty() {
        return taken(Role::Others, "it has no address");
    }
    if VPNS.contains(&kind) || nic.mac.is_none() {
        return taken(Role::Node, "a link to a network of its own");
    }
    match kind {
        "dummy" if nic.up => return taken(Role::Node, "a dummy that is up"),
        // As kube-proxy keeps Services' addresses in IPVS mode.
        "dummy" => return taken(Role::Others, "a dummy that is down"),
        _ => {}
    }
    // Its packets pass the NIC below once more, and are that NIC's on the wire.
    let below = facts
        .nics
        .iter()
        .find(|below| nic.iflink == Some(below.ifindex));
    if CHILDREN.contains(&kind)
        && let Some(below) = below
    {
        let why = format!("it shares the wire of {}", below.name);
        return Classification::new(Role::Node, why);
    }
    let leads = |tables: &dyn Fn(u32) -> bool| {
        let mut routes = facts.defaults.iter();
        carries && routes.any(|route| route.link == nic.name && tables(route.table))
    };
    if leads(&|table| table == MAIN_TABLE) {
        return taken(Role::Nic, "it has a default route");
    }
    if kind == "bridge" && !has_uplink(nic, facts) {
        return taken(Role::Others, "a bridge without an uplink port");
    }
    if !INNER.contains(&kind) && leads(&|_| true) {
        return taken(Role::Nic, "it has a default route");
    }
    if INNER.contains(&kind) && nic.addresses.iter().all(is_one_address) {
        return taken(Role::Others, "one end of a veth pair, without a subnet");
    }
    let mut subnets = known.subnets.iter();
    let shares = |subnet: &&IpNet| nic.addresses.iter().any(|own| subnet.contains(&own.addr()));
    if carries && let Some(subnet) = subnets.find(shares) {
        return Classification::new(Role::Nic, format!("its address is in a pool's {subnet}"));
    }
    match nic.up {
        true => taken(Role::Node, "neither a pool nor a default route is on it"),
        false => taken(Role::Node, "it is down"),
    }
}

/// Whether a link is a NIC, with the programs of one, once a pod's interface has it as its master.
#[must_use]
pub fn is_nic_as_master(link: &str, facts: &NodeFacts, names: &LinkNames) -> bool {
    let known = Known {
        masters: [link.to_owned()].into(),
        ..Known::default()
    };
    let nic = facts.nic(link);
    nic.is_some_and(|nic| classify(nic, facts, &known, names).role == Role::Nic)
}

/// Returns the role of each link of the node.
#[must_use]
pub fn classify_all(
    facts: &NodeFacts,
    known: &Known,
    names: &LinkNames,
) -> Vec<(Nic, Classification)> {
    let nics = facts.nics.iter();
    nics.map(|nic| (nic.clone(), classify(nic, facts, known, names)))
        .collect()
}

/// Whether a port of the bridge is an uplink: no end of a pair, no virtual machine's tap, no tunnel.
fn has_uplink(bridge: &Nic, facts: &NodeFacts) -> bool {
    let mut ports = facts
        .nics
        .iter()
        .filter(|port| port.port_of == Some(bridge.ifindex));
    ports.any(|port| {
        let kind = port.kind.as_deref().unwrap_or("");
        let inner = kind == "dummy" || INNER.contains(&kind) || VPNS.contains(&kind);
        !inner && !TUNNELS.contains(&kind) && !NOWHERE.contains(&kind)
    })
}

fn is_one_address(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

impl NodeFacts {
    /// Whether the node may have several NICs, whatever pools and networks will say: only then must it be told to a pod by
    /// which one a request came.
    #[must_use]
    pub fn may_have_several_nics(&self, names: &LinkNames) -> bool {
        let any_pool = Known {
            subnets: Family::BOTH.map(Family::everything).to_vec(),
            ..Known::default()
        };
        let may_be = |nic: &&Nic| {
            let is_hardware = nic.kind.is_none() && nic.port_of.is_none() && nic.mac.is_some();
            is_hardware && nic.up || classify(nic, self, &any_pool, names).role == Role::Nic
        };
        self.nics.iter().filter(may_be).nth(1).is_some()
    }

    /// Returns the node's own addresses, of both families, in the order of its links.
    #[must_use]
    pub fn addresses(&self, names: &LinkNames) -> Vec<IpAddr> {
        let known = Known::default();
        let own = self
            .nics
            .iter()
            .filter(|nic| classify(nic, self, &known, names).role != Role::Others)
            .flat_map(|nic| nic.addresses.iter().map(IpNet::addr));
        let mut all: Vec<IpAddr> = own.collect();
        for address in self.loopback.iter().map(IpNet::addr) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_types::{Family, Mac};

    use super::*;
    use crate::netlink::model::Route;

    fn nic(name: &str, ifindex: u32, kind: &str, addresses: &[&str]) -> Nic {
        Nic {
            mac: Some(Mac([2; 6])),
            kind: (!kind.is_empty()).then(|| kind.to_owned()),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..Nic::named(name, ifindex)
        }
    }

    fn default_over(link: &str, table: u32) -> Route {
        Route {
            link: link.into(),
            destination: Family::V4.everything(),
            via: Some([10, 70, 16, 1].into()),
            source: None,
            table,
        }
    }

    fn node() -> NodeFacts {
        let port = |of, nic: Nic| Nic {
            port_of: Some(of),
            ..nic
        };
        let no_mac = |nic: Nic| Nic { mac: None, ..nic };
        let down = |nic: Nic| Nic { up: false, ..nic };
        let upon = |below, nic: Nic| Nic {
            iflink: Some(below),
            ..nic
        };
        NodeFacts {
            nics: vec![
                nic("ens5", 2, "", &["10.70.16.10/20", "2001:db8::10/64"]),
                nic("ens6", 3, "", &["10.71.8.10/24"]),
                nic("ens7", 4, "", &["192.168.50.10/24"]),
                nic("ens8", 5, "", &[]),
                nic("bond0.12", 6, "vlan", &["10.72.0.10/24"]),
                port(20, nic("ens9", 7, "", &[])),
                port(21, nic("ens10", 8, "", &["10.73.0.10/24"])),
                nic("br-4e1f0c", 10, "bridge", &["172.18.0.1/16"]),
                nic("whatever", 11, "bridge", &["10.89.0.1/24"]),
                port(11, nic("veth1a2b", 12, "veth", &[])),
                port(11, nic("vnet0", 13, "tun", &[])),
                nic("lan", 20, "bridge", &["10.74.0.10/24"]),
                nic("red", 21, "vrf", &[]),
                nic("flannel.1", 30, "vxlan", &["10.244.0.0/32"]),
                no_mac(nic("tunl0", 31, "ipip", &["10.244.1.0/32"])),
                no_mac(nic("wg0", 32, "wireguard", &["10.99.0.1/24"])),
                nic("tap0", 33, "tun", &["10.98.0.1/24"]),
                nic("cali12", 34, "veth", &["169.254.7.1/32", "10.1.1.1/32"]),
                nic("eth7", 35, "veth", &["172.30.0.4/16"]),
                nic("dummy0", 36, "dummy", &["192.0.2.7/32"]),
                nic("vips", 40, "dummy", &["10.71.8.99/32"]),
                down(nic("kube-ipvs0", 37, "dummy", &["10.96.0.1/32"])),
                nic("storage", 38, "bridge", &["192.168.60.10/24"]),
                port(38, nic("ens11", 39, "", &[])),
                upon(3, nic("vrrp.51", 41, "macvlan", &["10.71.8.100/32"])),
                upon(2, nic("shim", 42, "ipvlan", &["10.70.16.77/32"])),
                upon(2, nic("ens5.9", 43, "vlan", &["10.75.0.10/24"])),
                // Its NIC belongs to the namespace that this node is a container of.
                upon(77, nic("eth0", 44, "macvlan", &["10.76.0.10/24"])),
                nic("vpn0", 45, "veth", &["192.168.99.1/24"]),
                nic("uplink", 46, "veth", &["192.168.98.1/24"]),
            ],
            defaults: vec![
                default_over("ens5", MAIN_TABLE),
                default_over("lan", 102),
                default_over("tap0", MAIN_TABLE),
                // Foreign rules look up routes to containers, and out by addresses of their own.
                default_over("br-4e1f0c", 200),
                default_over("vpn0", 201),
                default_over("shim", 202),
                default_over("ens5.9", 203),
                default_over("eth0", 204),
                default_over("uplink", MAIN_TABLE),
            ],
            loopback: vec!["198.51.100.1/32".parse().unwrap()],
            local: Vec::new(),
            not_its_own: Vec::new(),
            no_ipv6: false,
        }
    }

    #[test]
    fn one_uplink_is_one_nic_whatever_else_the_node_has() {
        let only = |nics: Vec<Nic>| NodeFacts {
            nics,
            defaults: vec![default_over("ens5", MAIN_TABLE)],
            ..NodeFacts::default()
        };
        let ens5 = || nic("ens5", 2, "", &["10.70.16.10/20"]);
        let port = |of, nic: Nic| Nic {
            port_of: Some(of),
            ..nic
        };
        let down = |nic: Nic| Nic { up: false, ..nic };
        for (others, several) in [
            (vec![], false),
            (vec![nic("docker0", 3, "bridge", &["172.17.0.1/16"])], false),
            (vec![nic("cali1", 3, "veth", &[])], false),
            (vec![nic("eni1", 3, "veth", &["10.70.16.50/32"])], false),
            (
                vec![nic("flannel.1", 3, "vxlan", &["10.244.0.0/32"])],
                false,
            ),
            (vec![nic("wg0", 3, "wireguard", &["10.9.0.1/24"])], false),
            (vec![down(nic("ens6", 3, "", &[]))], false),
            (vec![nic("ens6", 3, "", &["10.71.8.10/24"])], true),
            // A network may name it, and pods may have all its addresses.
            (vec![nic("ens6", 3, "", &[])], true),
            (vec![nic("bond0.12", 3, "vlan", &["10.72.0.10/24"])], true),
            (
                vec![
                    nic("br0", 3, "bridge", &["10.73.0.10/24"]),
                    port(3, nic("ens6", 4, "", &[])),
                ],
                true,
            ),
        ] {
            let names: Vec<String> = others.iter().map(|nic| nic.name.clone()).collect();
            let node = only([vec![ens5()], others].concat());
            let found = node.may_have_several_nics(&LinkNames::default());
            assert_eq!(found, several, "{names:?}");
        }
    }

    #[test]
    fn a_link_is_what_it_is_and_what_leads_over_it_whatever_its_name() {
        let facts = node();
        let known = Known {
            masters: ["ens8".to_owned()].into(),
            subnets: vec!["10.71.8.0/24".parse().unwrap()],
        };
        let names = LinkNames::default();
        for (name, role, why) in [
            ("ens5", Role::Nic, "default route"),
            ("ens6", Role::Nic, "pool"),
            ("ens7", Role::Node, "neither"),
            ("ens8", Role::Nic, "master"),
            ("bond0.12", Role::Node, "neither"),
            ("ens9", Role::Others, "port of lan"),
            ("ens10", Role::Others, "VRF red"),
            ("br-4e1f0c", Role::Others, "uplink port"),
            ("whatever", Role::Others, "uplink port"),
            ("lan", Role::Nic, "default route"),
            ("red", Role::Others, "kind vrf"),
            ("flannel.1", Role::Others, "kind vxlan"),
            ("tunl0", Role::Others, "kind ipip"),
            ("wg0", Role::Node, "of its own"),
            ("tap0", Role::Node, "of its own"),
            ("cali12", Role::Others, "pair"),
            ("eth7", Role::Node, "neither"),
            ("dummy0", Role::Node, "up"),
            ("vips", Role::Node, "up"),
            ("kube-ipvs0", Role::Others, "down"),
            ("storage", Role::Node, "neither"),
            ("vrrp.51", Role::Node, "wire of ens6"),
            ("shim", Role::Node, "wire of ens5"),
            ("ens5.9", Role::Nic, "default route"),
            ("eth0", Role::Nic, "default route"),
            ("vpn0", Role::Node, "neither"),
            ("uplink", Role::Nic, "default route"),
        ] {
            let taken = classify(facts.nic(name).unwrap(), &facts, &known, &names);
            assert_eq!(taken.role, role, "{name}: {}", taken.why);
            assert!(taken.why.contains(why), "{name}: {}", taken.why);
        }
    }

    #[test]
    fn the_administrator_has_the_last_word() {
        let facts = node();
        let names = LinkNames {
            include: vec!["br-*".into(), "ens7".into(), "ens5".into()],
            exclude: vec!["ens5".into(), "ens6*".into()],
            ..LinkNames::default()
        };
        for (name, role) in [
            ("br-4e1f0c", Role::Nic),
            ("ens7", Role::Nic),
            ("ens5", Role::Others),
            ("ens6", Role::Others),
        ] {
            let taken = classify(facts.nic(name).unwrap(), &facts, &Known::default(), &names);
            assert_eq!(taken.role, role, "{name}: {}", taken.why);
        }
    }

    #[test]
    fn the_nodes_addresses_are_those_of_nics_dummies_vpns_and_the_loopback() {
        let own: Vec<String> = node()
            .addresses(&LinkNames::default())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            own,
            [
                "10.70.16.10",
                "2001:db8::10",
                "10.71.8.10",
                "192.168.50.10",
                "10.72.0.10",
                "10.74.0.10",
                "10.99.0.1",
                "10.98.0.1",
                "172.30.0.4",
                "192.0.2.7",
                "10.71.8.99",
                "192.168.60.10",
                "10.71.8.100",
                "10.70.16.77",
                "10.75.0.10",
                "10.76.0.10",
                "192.168.99.1",
                "192.168.98.1",
                "198.51.100.1"
            ]
        );
    }
}
