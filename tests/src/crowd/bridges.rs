//! Bridges of container engines and virtual machines: containers that send requests to the node, the world and each
//! other, and published ports.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::Result;
use ebbtide_vpc::{family::Family::V4, netns::Netns, plan::Plan};

use super::{
    cell::By,
    site::{Asking, HOST_PORT, POD_MTU, POD_PORT, Site, address},
};

/// The bridges: their names as their makers choose them, and the first three bytes of their networks. Such names cannot
/// be listed completely.
const BRIDGES: [(&str, &str); 8] = [
    ("docker0", "172.17.0"),
    ("br-0a1b2c3d4e5f", "172.18.0"),
    ("podman1", "10.89.0"),
    ("nerdctl0", "10.4.0"),
    ("br0", "192.168.77"),
    ("virbr0", "192.168.122"),
    ("lxdbr0", "10.66.0"),
    ("zwischendeck", "10.99.0"),
];
/// A VPN client that only the second bridge's container has a route to, by a foreign rule.
const BEHIND_A_VPN: &str = "203.0.113.9";
/// The published port of the first bridge's container.
const PUBLISHED: u16 = 18_000;

/// Builds the bridges and adds their cells.
pub(super) fn set_up(site: &mut Site) -> Result<()> {
    let node = site.node.clone();
    let mut containers = Vec::new();
    for (number, (bridge, network)) in (0..).zip(BRIDGES) {
        let container = site.namespace(&format!("on-{bridge}"))?;
        let port = format!("vc{number}");
        site.wire((&node, &port), (&container, "e0"), POD_MTU)?;
        site.tell(
            &node,
            V4,
            [
                format!("link add name {bridge} type bridge"),
                format!("address add {network}.1/24 dev {bridge}"),
                format!("link set {port} master {bridge}"),
                format!("link set {bridge} up"),
            ],
        );
        site.tell(
            &container,
            V4,
            [
                format!("address add {network}.2/24 dev e0"),
                format!("route add default via {network}.1"),
            ],
        );
        let own = address(&format!("{network}.2"))?;
        site.serve(&container, own, POD_PORT);
        rules(site, bridge, network, PUBLISHED + number);
        containers.push((bridge, container, own, PUBLISHED + number));
    }
    without_address(site)?;
    let (bridge, client, through, _) = &containers[1];
    site.tell(
        &node,
        V4,
        [
            format!("route add default via {through} dev {bridge} table 520"),
            format!("rule add pref 32220 to {BEHIND_A_VPN}/32 lookup 520"),
        ],
    );
    let line = format!("address add {BEHIND_A_VPN}/32 dev lo");
    site.tell(client, V4, [line]);
    let behind = (address(BEHIND_A_VPN)?, POD_PORT);
    site.serve(client, behind.0, behind.1);
    let asking = Asking::new(bridge, "node → behind a container's VPN", &node, behind);
    site.ask(&asking, &By::ALL);
    for (bridge, container, own, port) in &containers {
        ask(site, bridge, container, *own, *port);
        let (_, _, first, _) = containers[0];
        if *own != first {
            let asking = Asking::new(
                bridge,
                "container → docker0's",
                container,
                (first, POD_PORT),
            );
            site.ask(&asking, &By::WITH_PORTS);
        }
    }
    Ok(())
}

/// Adds the firewall rules that an engine has for one of its bridges.
fn rules(site: &mut Site, bridge: &str, network: &str, port: u16) {
    let nat = &mut site.firewall(V4).nat;
    let _ = writeln!(
        nat,
        "-A POSTROUTING -s {network}.0/24 ! -o {bridge} -j MASQUERADE"
    );
    for protocol in ["tcp", "udp"] {
        for chain in ["PREROUTING", "OUTPUT"] {
            let _ = writeln!(
                nat,
                "-A {chain} -p {protocol} -m addrtype --dst-type LOCAL -m {protocol} --dport {port} \
                 -j DNAT --to-destination {network}.2:{POD_PORT}"
            );
        }
    }
    // Published ports, and everything that containers start.
    let published = format!("! -i {bridge} -o {bridge} -m conntrack --ctstate DNAT");
    site.accept(V4, [&format!("-i {bridge}"), &published]);
}

/// Adds a bridge that is only a switch: it has a port and no address.
fn without_address(site: &mut Site) -> Result<()> {
    let node = site.node.clone();
    let [one, other] = [site.namespace("switched-1")?, site.namespace("switched-2")?];
    for (number, end) in (1..).zip([&one, &other]) {
        site.wire((&node, &format!("sw{number}")), (end, "e0"), POD_MTU)?;
        site.tell(
            end,
            V4,
            [format!("address add 192.168.9.{number}/24 dev e0")],
        );
        site.serve(end, address(&format!("192.168.9.{number}"))?, POD_PORT);
    }
    site.tell(
        &node,
        V4,
        [
            "link add name br-switch type bridge",
            "link set sw1 master br-switch",
            "link set sw2 master br-switch",
            "link set br-switch up",
        ],
    );
    // For kernels where br_netfilter passes bridged frames to the firewall.
    site.accept(V4, ["-i br-switch", "-o br-switch"]);
    let asking = Asking::new(
        "br-switch",
        "one port → the other",
        &one,
        (address("192.168.9.2")?, POD_PORT),
    );
    site.ask(&asking, &By::ALL);
    Ok(())
}

fn ask(site: &mut Site, bridge: &str, container: &Netns, own: IpAddr, port: u16) {
    let (node, far) = (site.node.clone(), site.far.clone());
    let web = Plan::web_server(V4);
    for nic in ["ens5", "ens6"] {
        let to = site.near_address(nic, V4);
        let asks = [
            (
                Asking::new(
                    bridge,
                    format!("container → node, {nic}"),
                    container,
                    (to, HOST_PORT),
                ),
                &By::ALL[..],
            ),
            (
                Asking::new(
                    bridge,
                    format!("far host → port published at {nic}"),
                    &far,
                    (to, port),
                ),
                &By::WITH_PORTS,
            ),
            (
                Asking::new(
                    bridge,
                    format!("node → port published at {nic}"),
                    &node,
                    (to, port),
                ),
                &By::WITH_PORTS,
            ),
        ];
        for (asking, by) in asks {
            site.ask(&asking, by);
        }
    }
    let asking = Asking::new(bridge, "container → outside", container, (web, HOST_PORT));
    site.ask(&asking, &By::ALL);
    let asking = Asking::new(bridge, "node → container", &node, (own, POD_PORT));
    site.ask(&asking, &By::ALL);
}
