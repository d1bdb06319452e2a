//! Enables answers to ARP requests and neighbour solicitations for the pod's addresses, on networks that send them.

use std::net::IpAddr;

use ebbtide_types::{IpvlanMode, Mac};

use super::{Error, PodNet};
use crate::{
    datapath::Datapath,
    netlink::{Netlink, multicast},
};

/// Whether the node has to answer: an l2 child answers itself.
pub(super) const fn node_responds(wanted: bool, mode: IpvlanMode) -> bool {
    wanted && !matches!(mode, IpvlanMode::L2)
}

/// Returns the solicited-node group of an IPv6 address (RFC 4291, 2.7.1; RFC 2464, 7).
fn solicited(address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => {
            let [.., x, y, z] = v6.octets();
            Some(Mac([0x33, 0x33, 0xff, x, y, z]))
        }
    }
}

/// Makes the NIC of `net` answer for its addresses, if its network needs that.
///
/// A NIC receives only groups that it has joined. The group stays joined when the pod is removed: another address may
/// share it, and the pool will assign this one again.
pub(super) async fn enable_responder(
    net: &PodNet,
    host: &Netlink,
    datapath: &Datapath,
) -> Result<(), Error> {
    let Some(master) = net.master().filter(|_| net.answered) else {
        return Ok(());
    };
    let Some(nic) = host.link(master).await? else {
        return Ok(());
    };
    let Some(mac) = nic.mac else {
        return Ok(());
    };
    let addresses = net.ips();
    for group in addresses.iter().filter_map(|address| solicited(*address)) {
        multicast::join(&nic.name, group)?;
    }
    datapath.responder.insert(&addresses, nic.ifindex, mac)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_has_a_group_and_an_ipv4_address_none() {
        for (address, group) in [
            ("fd00:16::1:2:3", Some("33:33:ff:02:00:03")),
            ("2001:db8::abcd:ef01", Some("33:33:ff:cd:ef:01")),
            ("172.31.16.4", None),
        ] {
            let found = solicited(address.parse().unwrap()).map(String::from);
            assert_eq!(found.as_deref(), group, "{address}");
        }
    }

    #[test]
    fn an_l2_child_answers_itself() {
        for (wanted, mode, expected) in [
            (true, IpvlanMode::L3, true),
            (true, IpvlanMode::L3s, true),
            (true, IpvlanMode::L2, false),
            (false, IpvlanMode::L3, false),
        ] {
            assert_eq!(node_responds(wanted, mode), expected, "{wanted} {mode}");
        }
    }
}
