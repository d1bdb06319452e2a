//! A VRF with two NICs of its own and a host at each: requests by one are answered in the VRF, or forwarded by the
//! other.

use anyhow::Result;
use ebbtide_vpc::family::Family::V4;

use super::{
    cell::By,
    site::{Asking, POD_PORT, Site, address, batch},
};

/// The port of a server that listens in every VRF.
const PORT: u16 = 9191;

/// Builds the VRF. Returns what this kernel lacks.
pub(super) fn set_up(site: &mut Site) -> Result<Option<String>> {
    let node = site.node.clone();
    let lines = ["link add blue type vrf table 700", "link set blue up"].map(String::from);
    if let Err(error) = batch(&node, V4, &lines) {
        return Ok(Some(format!("VRF: {error:#}")));
    }
    let mut hosts = Vec::new();
    for (number, nic) in (1..).zip(["ens7", "ens8"]) {
        let host = site.namespace(&format!("lan-{number}"))?;
        site.wire((&node, nic), (&host, "e0"), 1500)?;
        site.tell(
            &node,
            V4,
            [
                format!("link set {nic} master blue"),
                // The same network also exists outside of the VRF.
                format!("address add 10.10.{number}.1/24 dev {nic}"),
            ],
        );
        site.tell(
            &host,
            V4,
            [
                format!("address add 10.10.{number}.2/24 dev e0"),
                format!("route add default via 10.10.{number}.1"),
            ],
        );
        site.accept(V4, [&format!("-i {nic}"), &format!("-o {nic}")]);
        site.serve(&host, address(&format!("10.10.{number}.2"))?, POD_PORT);
        hosts.push(host);
    }
    site.accept(V4, ["-i blue", "-o blue"]);
    node.sysctls(&[("net/ipv4/tcp_l3mdev_accept", "1")])?;
    site.serve_any(&node, V4, PORT);
    let group = "VRF";
    for (number, host) in (1..).zip(&hosts) {
        let own = address(&format!("10.10.{number}.1"))?;
        let name = format!("lan {number} → node");
        site.ask(
            &Asking::new(group, name, host, (own, PORT)),
            &[By::Tcp, By::Icmp],
        );
        let other = address(&format!("10.10.{}.2", 3 - number))?;
        let name = format!("lan {number} → the other one");
        site.ask(&Asking::new(group, name, host, (other, POD_PORT)), &By::ALL);
        let there = address(&format!("10.10.{number}.2"))?;
        let asking = Asking::new(
            group,
            format!("node → lan {number}"),
            &node,
            (there, POD_PORT),
        );
        site.ask(&asking.by_device("blue"), &By::WITH_PORTS);
    }
    Ok(None)
}
