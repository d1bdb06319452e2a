//! A third NIC, to a storage network that no router knows. Other software uses it for addresses of other NICs, and has
//! a child interface on it with an address that moves between nodes.

use anyhow::Result;
use ebbtide_vpc::family::Family::V4;

use super::{
    cell::By,
    site::{Asking, HOST_PORT, POD_PORT, Site, address},
};

/// The NIC.
const NIC: &str = "data0";
/// The storage network, and a network behind a host there.
const NETWORK: &str = "10.88.0";
const BEHIND: &str = "10.88.9.9";
/// keepalived's `use_vmac`: a macvlan of the NIC, with the address that moves.
const CHILD: &str = "vrrp.51";
const VIP: &str = "10.88.0.100";

/// Builds the network and adds its cells.
pub(super) fn set_up(site: &mut Site) -> Result<()> {
    let node = site.node.clone();
    let storage = site.namespace("storage")?;
    site.wire((&node, NIC), (&storage, "e0"), 1500)?;
    // As keepalived sets it: only the link that has an address answers for it.
    node.sysctls(&[("net/ipv4/conf/data0/arp_ignore", "1")])?;
    let ways = [
        format!("address add {NETWORK}.10/24 dev {NIC}"),
        format!("route add {BEHIND}/32 via {NETWORK}.9 dev {NIC}"),
        // A DHCP client makes such a route for each NIC.
        format!("route add default via {NETWORK}.1 dev {NIC} metric 3000"),
        format!(
            "link add link {NIC} name {CHILD} address 00:00:5e:00:01:33 type macvlan mode private"
        ),
        format!("address add {VIP}/32 dev {CHILD}"),
        format!("link set {CHILD} up"),
        format!("route add default via {NETWORK}.9 dev {CHILD} onlink table 510"),
        // Before the main table, whose route to the storage network is by the NIC: a strict reverse path filter uses
        // that, too.
        format!("rule add pref 31900 from {VIP} lookup 510"),
    ];
    site.tell(&node, V4, ways);
    let mut theirs = vec![
        format!("address add {NETWORK}.9/24 dev e0"),
        format!("address add {BEHIND}/32 dev lo"),
    ];
    for nic in ["ens5", "ens6"] {
        let own = site.near_address(nic, V4);
        theirs.push(format!("route add {own}/32 via {NETWORK}.10"));
    }
    site.tell(&storage, V4, theirs);
    let ends = [address(&format!("{NETWORK}.9"))?, address(BEHIND)?];
    for end in ends {
        site.serve(&storage, end, POD_PORT);
    }
    for nic in ["ens5", "ens6"] {
        let own = site.near_address(nic, V4);
        for end in ends {
            let name = format!("{end} → the address of {nic}, by {NIC}");
            let asking = Asking::new("storage", name, &storage, (own, HOST_PORT)).from(end);
            site.ask(&asking, &By::ALL);
            let name = format!("the node, from the address of {nic} → {end}, by {NIC}");
            let asking = Asking::new("storage", name, &node, (end, POD_PORT)).from(own);
            site.ask(&asking, &By::ALL);
        }
    }
    let vip = address(VIP)?;
    site.serve(&node, vip, HOST_PORT);
    let asking = Asking::new("storage", "host → VIP", &storage, (vip, HOST_PORT)).from(ends[0]);
    site.ask(&asking, &By::ALL);
    let asking = Asking::new("storage", "VIP → host", &node, (ends[1], POD_PORT)).from(vip);
    site.ask(&asking, &By::ALL);
    Ok(())
}
