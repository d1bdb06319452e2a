//! Reverts changes by a pod to its own interface that take packets from others.
//!
//! An ipvlan child gets all packets for its addresses: those that come in by the NIC, and those that its siblings send.
//! The kernel prevents the same address on two children of one NIC and nothing else, and the mode is the NIC's and so
//! applies to all. A pod with CAP_NET_ADMIN may set both.

use std::net::IpAddr;

use ebbtide_types::IpvlanMode;

use super::{Error, PodNet, has_alias};
use crate::{
    netlink::{Batch, direct::Direct, link::LinkAddress, netns::Evidence},
    node::is_link_local,
};

/// The changes that were reverted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reverted {
    /// Addresses, each with the link that had it.
    pub addresses: Vec<(IpAddr, String)>,
    /// The mode that the interface had.
    pub mode: Option<IpvlanMode>,
}

/// Whether an address must not be on an ipvlan link in a pod. `own`: the addresses in the interface's record, if the
/// link is Ebbtide's; `taken`: the node's addresses and the routers'.
///
/// A link-local one is valid on the link only. It conflicts only if it is taken.
fn is_foreign(address: IpAddr, own: Option<&[IpAddr]>, taken: &[IpAddr]) -> bool {
    match own {
        Some(own) if own.contains(&address) => false,
        Some(_) if !is_link_local(&address) => true,
        // Another plugin's link, or the pod's own: any address that is not taken is allowed.
        _ => taken.contains(&address),
    }
}

/// Reverts what the pod of `net` has changed on its interface, and on its other ipvlan links. `taken` are addresses
/// that no pod has.
///
/// # Errors
/// If the pod's namespace no longer exists, or the kernel refuses a request.
pub async fn revert(net: &PodNet, taken: Vec<IpAddr>) -> Result<Reverted, Error> {
    let Evidence::Present(netns) = net.namespace()? else {
        return Err(Error::NamespaceGone(net.netns.clone()));
    };
    let net = net.clone();
    netns.inside(move || in_pod(&net, &taken)).await
}

fn in_pod(net: &PodNet, taken: &[IpAddr]) -> Result<Reverted, Error> {
    let mut pod = Direct::open(format!("in {}", net.netns.display()))?;
    let mut reverted = Reverted::default();
    let Some(wanted) = net.ipvlan.as_ref().map(|ipvlan| ipvlan.mode) else {
        return Ok(reverted);
    };
    let links = pod.all_links()?;
    let addresses = pod.addresses()?;
    let mut batch = Batch::default();
    let own = net.ips();
    for link in &links {
        let Some(mode) = link.ipvlan_mode else {
            continue;
        };
        let is_ours = link.name == net.interface;
        // Another of the pod's interfaces has a record of its own.
        if !is_ours && has_alias(link) {
            continue;
        }
        let own = is_ours.then_some(own.as_slice());
        let on_link = |found: &&LinkAddress| found.ifindex == link.ifindex;
        for found in addresses.iter().filter(on_link) {
            let address = found.address.addr();
            if is_foreign(address, own, taken) {
                batch.delete_address(found, &link.name);
                reverted.addresses.push((address, link.name.clone()));
            }
        }
        if is_ours && mode != wanted {
            batch.set_mode(link, wanted);
            reverted.mode = Some(mode);
        }
    }
    if reverted != Reverted::default() {
        pod.run(batch)?;
    }
    Ok(reverted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_strange_on_our_link_if_the_record_lacks_it_and_elsewhere_if_it_is_taken() {
        let parsed = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let taken = parsed(&["10.0.0.1", "10.0.0.2", "fe80::2"]);
        let own = parsed(&["10.0.0.40", "fd00::40"]);
        for (address, is_ours, expected) in [
            ("10.0.0.40", true, false),
            ("fd00::40", true, false),
            // The gateway's, another pod's, one outside.
            ("10.0.0.1", true, true),
            ("10.0.0.41", true, true),
            ("8.8.8.8", true, true),
            ("2001:db8::1", true, true),
            ("fe80::40", true, false),
            ("fe80::2", true, true),
            ("10.0.0.41", false, false),
            ("10.0.0.2", false, true),
            ("fe80::2", false, true),
        ] {
            let own = is_ours.then_some(own.as_slice());
            let found = is_foreign(address.parse().unwrap(), own, &taken);
            assert_eq!(found, expected, "{address}, ours: {is_ours}");
        }
    }
}
