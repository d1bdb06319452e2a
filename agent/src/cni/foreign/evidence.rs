//! Evidence that an address can be a pod's on this node, without configuration. Pure functions.

use std::net::IpAddr;

use ebbtide_kernel::{
    netlink::{by_gateway::ByGateway, fib::FibResult, link::Link},
    node::Nic,
};
use ipnet::IpNet;

/// The kind of the pod's interface, seen from the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum InterfaceKind {
    /// A child of one of the node's links, in that link's networks.
    Child(u32),
    /// A pair whose other end is in the host.
    Veth {
        /// The host's end.
        peer: u32,
        /// The switch that the host's end is a port of.
        switch: Option<Switch>,
    },
    /// Hardware that was the node's (for instance a virtual function); its NIC is not known.
    Hardware,
    /// Anything else, which has no connection to the node.
    Unconnected,
}

/// A bridge, or another switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Switch {
    /// The interface index of the switch.
    pub(super) ifindex: u32,
    /// Whether it is Open vSwitch, which has its own address on another link of its own.
    pub(super) is_open: bool,
}

/// The kind of Open vSwitch's links: the one that its ports are below, and those that it makes.
pub(super) const OPEN: &str = "openvswitch";

/// Kinds of links into other namespaces of this node.
const INNER: [&str; 2] = ["netkit", "veth"];

/// Kinds of children that are in the network of the link below them.
const CHILDREN: [&str; 6] = ["ipoib", "ipvlan", "ipvtap", "macvlan", "macvtap", "vlan"];

/// The inputs of the decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckInput<'a> {
    /// The kind of the pod's interface.
    pub(super) place: &'a InterfaceKind,
    /// The node's links.
    pub(super) links: &'a [Nic],
    /// The indexes of those that are NICs.
    pub(super) nics: &'a [u32],
    /// The subnets of the pools that this node uses.
    pub(super) pools: &'a [IpNet],
    /// The subnets that the administrator lists.
    pub(super) listed: &'a [IpNet],
    /// The node's routes by gateways.
    pub(super) routers: &'a [ByGateway],
    /// Whether the address' whole network must be covered: its prefix appears in routes and rules of the host.
    pub(super) whole: bool,
}

/// Decides whether the address can be a pod's there.
///
/// # Errors
/// The reason why it cannot.
pub(super) fn check(
    address: &IpNet,
    way: FibResult,
    out: Option<&Link>,
    ground: CheckInput<'_>,
) -> Result<(), String> {
    let lies_in = |net: &IpNet| match ground.whole {
        true => net.contains(&address.trunc()),
        false => net.contains(&address.addr()),
    };
    if ground.listed.iter().any(lies_in) {
        return Ok(());
    }
    match ground.place {
        InterfaceKind::Veth { peer, switch } => {
            match leads_to(*peer, switch.as_ref(), way, out, ground) {
                true => Ok(()),
                false => Err(elsewhere(way, out)),
            }
        }
        InterfaceKind::Unconnected => {
            Err("its interface is none of a network that the node is in".to_owned())
        }
        place @ (InterfaceKind::Child(_) | InterfaceKind::Hardware) => {
            let networks = networks(place, ground);
            if !networks.iter().any(lies_in) {
                let known: Vec<String> = networks.iter().map(ToString::to_string).collect();
                let known = match known.is_empty() {
                    true => "none that is known".to_owned(),
                    false => known.join(", "),
                };
                return Err(format!(
                    "{address} is not in a network of its NIC ({known})"
                ));
            }
            let router = ground.routers.iter().find(|way| way.via == address.addr());
            router.map_or(Ok(()), |way| {
                Err(format!("it is the node's router to {}", way.destination))
            })
        }
    }
}

/// Whether the node already routes there by the pod's own pair: then Ebbtide changes nothing.
fn leads_to(
    peer: u32,
    switch: Option<&Switch>,
    way: FibResult,
    out: Option<&Link>,
    ground: CheckInput<'_>,
) -> bool {
    let FibResult::Via { ifindex, via } = way else {
        return switch.is_none() && way == FibResult::Unreachable;
    };
    let kind = out.and_then(|link| link.kind.as_deref()).unwrap_or("");
    match switch {
        _ if ifindex == peer => true,
        Some(switch) if ifindex == switch.ifindex => true,
        Some(switch) => switch.is_open && kind == OPEN && via.is_none(),
        // Plugins that switch by programs (Cilium) have one route for all pods, by a link of their own that serves
        // nothing else. A pair that is a port of nothing serves its pod alone. A plugin that makes such pairs (`ptp`)
        // routes any address by them, or leaves that to the next plugin. So an address that is reached by a gateway so
        // far looks like a pod's, and refusing it would stop nobody. A NIC's neighbours can be distinguished.
        None if ground.nics.contains(&ifindex) => via.is_some(),
        None => INNER.contains(&kind),
    }
}

fn elsewhere(way: FibResult, out: Option<&Link>) -> String {
    match (way, out) {
        (FibResult::Via { .. }, Some(link)) => format!(
            "the node routes it to {}, which is not this pod's interface",
            link.name
        ),
        _ => "the node sends nothing there".to_owned(),
    }
}

/// Returns the networks that pods of this place can be in.
fn networks(place: &InterfaceKind, ground: CheckInput<'_>) -> Vec<IpNet> {
    let is_it = |link: &&Nic| match place {
        InterfaceKind::Child(below) => link.ifindex == *below,
        _ => ground.nics.contains(&link.ifindex),
    };
    let own = ground.links.iter().filter(is_it);
    let mut all: Vec<IpNet> = own
        .flat_map(|link| link.addresses.iter().map(IpNet::trunc))
        .collect();
    // A pool's subnet belongs to the NIC with an address in it, if there is one.
    let is_another_s = |subnet: &IpNet| {
        let mut others = ground.links.iter().filter(|link| !is_it(link));
        others.any(|link| {
            link.addresses
                .iter()
                .any(|own| subnet.contains(&own.addr()))
        })
    };
    let pools = ground.pools.iter().filter(|subnet| !is_another_s(subnet));
    all.extend(pools.map(IpNet::trunc));
    all.sort_unstable();
    all.dedup();
    all
}

/// Returns the kind of an interface that is no pair, from the pod's kernel's description.
pub(super) fn kind_of(link: &Link) -> InterfaceKind {
    match (link.kind.as_deref(), link.iflink) {
        (Some(kind), Some(below)) if CHILDREN.contains(&kind) && link.iflink_in_other_netns => {
            InterfaceKind::Child(below)
        }
        // Also bonds of hardware.
        (None | Some("bond" | "team" | "ipoib"), _) => InterfaceKind::Hardware,
        _ => InterfaceKind::Unconnected,
    }
}

/// Whether a link is an end of a pair.
pub(super) fn is_veth_like(link: &Link) -> bool {
    link.kind
        .as_deref()
        .is_some_and(|kind| INNER.contains(&kind))
}

/// Returns why an address can be no pod's at all.
pub(super) fn special_purpose(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => match () {
            () if v4.octets()[0] == 0 => Some("0.0.0.0/8 is nobody's (RFC 1122, 3.2.1.3)"),
            () if v4.is_loopback() => Some("it is a loopback address"),
            () if v4.is_link_local() => {
                Some("it is link-local, as the cloud's metadata service is")
            }
            () if v4.is_multicast() => Some("it is a multicast address"),
            () if v4.is_broadcast() => Some("it is the broadcast address"),
            () => None,
        },
        IpAddr::V6(v6) => match () {
            () if v6.is_unspecified() => Some("it is unspecified"),
            () if v6.is_loopback() => Some("it is a loopback address"),
            () if v6.is_unicast_link_local() => Some("it is link-local"),
            () if v6.is_multicast() => Some("it is a multicast address"),
            () if v6.to_ipv4().is_some() => Some("it is an IPv4 address in IPv6's form"),
            () => None,
        },
    }
}

#[cfg(test)]
mod tests;
