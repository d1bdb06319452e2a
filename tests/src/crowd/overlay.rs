//! An overlay network as other plugins make it: pods on the node and on a far host, with a tunnel of each kind over
//! each NIC.
//!
//! Each tunnel has networks of its own, so one pod at each place serves all tunnels: its source or destination address
//! tells which tunnel a packet takes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    family::Family::{self, V4, V6},
    netns::Netns,
    plan::Plan,
};

use super::{
    Wishes,
    cell::By,
    kinds::{Far, KINDS, Kind, Link},
    site::{Asking, HOST_PORT, POD_MTU, POD_PORT, Site, batch},
};

/// The node's bridge for pods, named as flannel's.
const BRIDGE: &str = "cni0";
/// The node's end of the pod without a bridge, named as Calico's.
const CALI: &str = "cali0a1b2c3d4e5";
/// The NICs that the tunnels use.
const NICS: [&str; 2] = ["ens5", "ens6"];
/// The keys for ESP.
const CRYPTO: &str = "enc cbc(aes) 0x000102030405060708090a0b0c0d0e0f \
                      auth hmac(sha1) 0x000102030405060708090a0b0c0d0e0f10111213";

/// The side of a tunnel that an inner address is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Near,
    Far,
}

/// The owner of an inner address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The node itself, on the tunnel.
    Node = 1,
    /// The pod on a bridge; the far side has only this one.
    Pod = 2,
    /// The node's pod without a bridge.
    Cali = 3,
}

/// A tunnel that was built.
#[derive(Clone, Debug)]
pub(super) struct Tunnel {
    /// Its number, which is part of its addresses.
    pub(super) number: u8,
    /// Its kind and NIC, for people.
    pub(super) title: String,
    /// The families that it carries.
    pub(super) inner: &'static [Family],
    /// Whether it accepts packets of the far pod to other destinations than the overlay's pods.
    pub(super) takes_all: bool,
}

/// The overlay's pods.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    /// The pod on the node's bridge.
    pub(super) pod: Netns,
    /// The node's pod without a bridge.
    pub(super) cali: Netns,
    /// The pod on the far host.
    pub(super) far: Netns,
    /// All tunnels.
    pub(super) tunnels: Vec<Tunnel>,
}

impl Overlay {
    /// Returns the tunnels that carry packets of this family.
    pub(super) fn carrying(&self, family: Family) -> impl Iterator<Item = &Tunnel> {
        let all = self.tunnels.iter();
        all.filter(move |tunnel| tunnel.inner.contains(&family))
    }

    /// Returns the number of the first tunnel for IPv4.
    pub(super) fn first(&self) -> u8 {
        self.carrying(V4).next().map_or(1, |tunnel| tunnel.number)
    }
}

/// Returns an inner address of a tunnel.
pub(super) fn inner(family: Family, side: Side, tunnel: u8, who: Who) -> IpAddr {
    let second = match side {
        Side::Near => 210,
        Side::Far => 211,
    };
    match family {
        V4 => Ipv4Addr::new(10, second, tunnel, who as u8).into(),
        // The decimal digits are used as hexadecimal ones, for readability.
        V6 => Ipv6Addr::new(
            0xfd00,
            u16::from(second) + 0x13e,
            0,
            0,
            0,
            0,
            tunnel.into(),
            who as u16,
        )
        .into(),
    }
}

/// Returns the network of a tunnel's inner addresses on one side.
fn network(family: Family, side: Side, tunnel: u8) -> String {
    match (family, inner(family, side, tunnel, Who::Node)) {
        (V4, IpAddr::V4(one)) => {
            let [a, b, c, _] = one.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        (_, one) => format!(
            "{}/112",
            one.to_string().trim_end_matches('1').to_owned() + "0"
        ),
    }
}

/// Builds the overlay. Returns also what this kernel lacks.
pub(super) fn set_up(site: &mut Site, wishes: Wishes) -> Result<(Overlay, Vec<String>)> {
    let (kinds, missing) = kinds(site, wishes)?;
    let mut overlay = pods(site)?;
    prepare(site)?;
    for kind in kinds {
        for nic in NICS {
            let number = u8::try_from(overlay.tunnels.len() + 1).context("too many tunnels")?;
            let tunnel = Tunnel {
                number,
                title: format!("{}, {nic}", kind.name),
                inner: kind.inner,
                takes_all: kind.link != Link::Policy,
            };
            connect(site, &overlay, kind, nic, number)
                .with_context(|| format!("making {}", tunnel.title))?;
            overlay.tunnels.push(tunnel);
        }
    }
    ensure!(
        overlay.tunnels.len() >= 4,
        "hardly any kind of tunnel: {missing:?}"
    );
    for tunnel in overlay.tunnels.clone() {
        for family in tunnel.inner {
            serve(site, &overlay, &tunnel, *family)?;
            ask(site, &overlay, &tunnel, *family);
        }
    }
    ask_node(site, &overlay);
    Ok((overlay, missing))
}

/// Returns the kinds that this kernel has, which are tried in a namespace of their own, and messages about the others.
fn kinds(site: &mut Site, wishes: Wishes) -> Result<(Vec<&'static Kind>, Vec<String>)> {
    const LACKING: [&str; 5] = [
        "Requested type not found",
        "Unknown device type",
        "not supported",
        // `ip` looks up the generic netlink family of FOU and L2TP first.
        "No such file or directory",
        // The kernel's answer to encapsulations that are not compiled in (net/ipv4/ip_tunnel.c,
        // CONFIG_NET_FOU_IP_TUNNELS).
        "encap",
    ];
    let trial = site.namespace("trial")?;
    let peer = site.namespace("trial-peer")?;
    site.wire((&trial, "ens5"), (&peer, "ens5"), 1500)?;
    batch(&trial, V4, &["address add 192.0.2.1/24 dev ens5".into()])?;
    batch(
        &trial,
        V6,
        &["address add 2001:db8::1/64 dev ens5 nodad".into()],
    )?;
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for (number, kind) in (1..).zip(&KINDS) {
        if wishes.few_kinds && !kind.is_common {
            continue;
        }
        let [local, remote] = match kind.outer {
            V4 => ["192.0.2.1", "192.0.2.2"],
            V6 => ["2001:db8::1", "2001:db8::2"],
        };
        let ends = [local.parse()?, remote.parse()?];
        match batch(&trial, V4, &lines(kind, "ens5", number, ends, Side::Near)) {
            Ok(()) => there.push(kind),
            Err(error) => {
                let error = format!("{error:#}");
                ensure!(
                    LACKING.iter().any(|words| error.contains(words)),
                    "{}: {error}",
                    kind.name
                );
                missing.push(format!("{}: {error}", kind.name));
            }
        }
    }
    Ok((there, missing))
}

/// Returns the lines that make one end.
fn lines(kind: &Kind, nic: &str, number: u8, ends: [IpAddr; 2], side: Side) -> Vec<String> {
    let [local, remote] = ends.map(|address| address.to_string());
    let spi = |side| {
        format!(
            "0x{:x}",
            0x1000 + 2 * u32::from(number) + u32::from(side == Side::Far)
        )
    };
    let (other, family) = match side {
        Side::Near => (Side::Far, kind.inner[0]),
        Side::Far => (Side::Near, kind.inner[0]),
    };
    let replaced = [
        ("{dev}", format!("{}{number}", kind.stem)),
        ("{nic}", nic.to_owned()),
        ("{local}", local),
        ("{remote}", remote),
        ("{port}", (14_000 + u16::from(number)).to_string()),
        ("{out}", spi(side)),
        ("{in}", spi(other)),
        ("{ours}", network(family, side, number)),
        ("{theirs}", network(family, other, number)),
        ("{crypto}", CRYPTO.to_owned()),
        ("{n}", number.to_string()),
    ];
    let expand = |line: &&str| {
        let text = (*line).to_owned();
        let each = replaced.iter();
        each.fold(text, |text, (name, value)| text.replace(name, value))
    };
    kind.lines.iter().map(expand).collect()
}

/// Creates and connects the three pods.
fn pods(site: &mut Site) -> Result<Overlay> {
    let (node, far_host) = (site.node.clone(), site.far.clone());
    let pod = site.namespace("overlay-pod")?;
    let cali = site.namespace("calico-pod")?;
    let far = site.namespace("far-overlay-pod")?;
    site.wire((&node, "veth1a2b3c4d"), (&pod, "e0"), POD_MTU)?;
    site.wire((&node, CALI), (&cali, "e0"), POD_MTU)?;
    site.wire((&far_host, "vethfar"), (&far, "e0"), POD_MTU)?;
    let gateways = [
        (&node, "veth1a2b3c4d", Side::Near),
        (&far_host, "vethfar", Side::Far),
    ];
    for (host, port, side) in gateways {
        let [v4, v6] = Family::BOTH.map(|family| inner(family, side, 0, Who::Node));
        let lines = [
            format!("link add name {BRIDGE} type bridge"),
            format!("link set {port} master {BRIDGE}"),
            format!("link set {BRIDGE} up"),
            format!("address add {v4}/16 dev {BRIDGE}"),
            format!("address add {v6}/64 dev {BRIDGE} nodad"),
        ];
        site.tell(host, V4, lines);
        let pod = if side == Side::Near { &pod } else { &far };
        site.tell(
            pod,
            V4,
            [
                format!("route add {v4} dev e0"),
                format!("route add default via {v4} dev e0"),
                format!("route add {v6}/128 dev e0"),
                format!("route add ::/0 via {v6} dev e0"),
            ],
        );
    }
    let lines = [
        "route add 169.254.1.1 dev e0",
        "route add default via 169.254.1.1 dev e0",
    ];
    site.tell(&cali, V4, lines.map(String::from));
    node.sysctls(&[
        (&format!("net/ipv4/conf/{CALI}/proxy_arp"), "1"),
        (&format!("net/ipv4/neigh/{CALI}/proxy_delay"), "0"),
    ])?;
    for family in Family::BOTH {
        let all = match family {
            V4 => "10.210.0.0/15",
            V6 => "fd00:210::/31",
        };
        site.accept(family, [&format!("-s {all}"), &format!("-d {all}")]);
    }
    let nat = &mut site.firewall(V4).nat;
    nat.push_str("-A POSTROUTING -s 10.210.0.0/16 ! -d 10.210.0.0/15 -j MASQUERADE\n");
    Ok(Overlay {
        pod,
        cali,
        far,
        tunnels: Vec::new(),
    })
}

/// Returns the far host's address that such kinds use, and its place among the secondary ones.
fn far_end(site: &Site, kind: &Kind, nic: &str) -> IpAddr {
    let secondary = |number: usize| site.vpc.nic("worker1", "ens5").v4.secondary[number];
    match (kind.far, nic) {
        (Far::Own, _) | (Far::Routed, "ens5") => site.far_address(kind.outer),
        (Far::Routed, _) => secondary(0),
        (Far::Esp, _) => secondary(1),
        (Far::Vti, _) => secondary(2),
    }
}

/// Adds the far host's other addresses, and the node's route by ens6 to one of them.
fn prepare(site: &mut Site) -> Result<()> {
    let far = site.vpc.nic("worker1", "ens5");
    let more = far.v4.secondary.iter().take(4);
    let mut lines: Vec<String> = more
        .map(|address| format!("address add {address}/32 dev ens5"))
        .collect();
    let (by_ens6, routed) = (site.near_address("ens6", V4), far.v4.secondary[0]);
    lines.push(format!(
        "route add {by_ens6} via {} dev ens5 src {routed}",
        far.v4.gateway
    ));
    site.tell(&site.far.clone(), V4, lines);
    let gateway = site.gateway("ens6", V4);
    batch(
        &site.node,
        V4,
        &[format!("route add {routed} via {gateway} dev ens6")],
    )
}

/// Builds both ends of a tunnel, with addresses and routes.
fn connect(site: &mut Site, overlay: &Overlay, kind: &Kind, nic: &str, number: u8) -> Result<()> {
    let (near, far) = (site.near_address(nic, kind.outer), far_end(site, kind, nic));
    let sides = [
        (&site.node.clone(), [near, far], nic, Side::Near, Side::Far),
        (
            &site.far.clone(),
            [far, near],
            "ens5",
            Side::Far,
            Side::Near,
        ),
    ];
    for (host, ends, by, side, other) in sides {
        let mut lines = lines(kind, by, number, ends, side);
        let dev = format!("{}{number}", kind.stem);
        let gateway = site
            .vpc
            .nic(
                if side == Side::Near {
                    "master"
                } else {
                    "worker1"
                },
                by,
            )
            .v4
            .gateway;
        if kind.link != Link::Policy {
            lines.push(format!("link set {dev} up"));
        }
        for family in kind.inner {
            let (own, peer) = (
                inner(*family, side, number, Who::Node),
                inner(*family, other, number, Who::Node),
            );
            let to = network(*family, other, number);
            let nodad = if *family == V6 { " nodad" } else { "" };
            let on = if kind.link == Link::Policy {
                "lo"
            } else {
                &dev
            };
            lines.push(format!(
                "address add {own}/{} dev {on}{nodad}",
                family.host_prefix()
            ));
            lines.push(match (kind.link, family) {
                (Link::Ethernet, V4) => format!("route add {to} via {peer} dev {dev} onlink"),
                // `onlink` is not allowed for an address that has no route yet (net/ipv6/route.c), so the link itself
                // is the next hop.
                (Link::Ethernet, V6) | (Link::PointToPoint, _) => {
                    format!("route add {to} dev {dev}")
                }
                (Link::Policy, _) => format!("route add {to} via {gateway} dev {by} src {own}"),
            });
            if kind.link == Link::Ethernet && *family == V6 {
                // The far host answers ARP and ND for its pods.
                lines.pop();
                lines.push(format!("route add {peer}/128 dev {dev}"));
                lines.push(format!("route add {to} via {peer} dev {dev}"));
            }
        }
        site.tell(host, V4, lines);
    }
    for family in kind.inner {
        let pods = [
            (&overlay.pod, Side::Near, Who::Pod),
            (&overlay.far, Side::Far, Who::Pod),
            (&overlay.cali, Side::Near, Who::Cali),
        ];
        for (pod, side, who) in pods {
            if who == Who::Cali && *family == V6 {
                continue;
            }
            let own = inner(*family, side, number, who);
            let nodad = if *family == V6 { " nodad" } else { "" };
            let line = format!("address add {own}/{} dev e0{nodad}", family.host_prefix());
            site.tell(pod, V4, [line]);
        }
        if *family == V4 {
            let own = inner(V4, Side::Near, number, Who::Cali);
            site.tell(
                &site.node.clone(),
                V4,
                [format!("route add {own} dev {CALI}")],
            );
        }
        // Packets of the far pod with this source take this tunnel, whatever their destination.
        let own = inner(*family, Side::Far, number, Who::Pod);
        let near = inner(*family, Side::Near, number, Who::Node);
        let dev = format!("{}{number}", kind.stem);
        let by = match kind.link {
            Link::Policy => continue,
            Link::Ethernet if *family == V4 => format!("via {near} dev {dev} onlink"),
            Link::Ethernet => format!("via {near} dev {dev}"),
            Link::PointToPoint => format!("dev {dev}"),
        };
        let table = 1000 + u32::from(number);
        let everything = if *family == V4 { "0.0.0.0/0" } else { "::/0" };
        site.tell(
            &site.far.clone(),
            *family,
            [
                format!("route add {everything} {by} table {table}"),
                format!("rule add pref 10000 from {own} lookup {table}"),
            ],
        );
    }
    Ok(())
}

fn serve(site: &mut Site, overlay: &Overlay, tunnel: &Tunnel, family: Family) -> Result<()> {
    let (node, far_host) = (site.node.clone(), site.far.clone());
    let n = tunnel.number;
    site.serve(
        &overlay.pod,
        inner(family, Side::Near, n, Who::Pod),
        POD_PORT,
    );
    site.serve(
        &overlay.far,
        inner(family, Side::Far, n, Who::Pod),
        POD_PORT,
    );
    site.serve(&node, inner(family, Side::Near, n, Who::Node), HOST_PORT);
    site.serve(&far_host, inner(family, Side::Far, n, Who::Node), HOST_PORT);
    if family == V4 {
        site.serve(
            &overlay.cali,
            inner(family, Side::Near, n, Who::Cali),
            POD_PORT,
        );
    }
    Ok(())
}

/// Adds the cells of a tunnel: everybody at one end sends to everybody at the other.
fn ask(site: &mut Site, overlay: &Overlay, tunnel: &Tunnel, family: Family) {
    let (node, far_host) = (site.node.clone(), site.far.clone());
    let title = &tunnel.title;
    let at = |side, who| inner(family, side, tunnel.number, who);
    let mut ends = vec![
        (&overlay.pod, Who::Pod, POD_PORT, "pod"),
        (&node, Who::Node, HOST_PORT, "node"),
    ];
    if family == V4 {
        ends.push((&overlay.cali, Who::Cali, POD_PORT, "Calico pod"));
    }
    let far_pod = at(Side::Far, Who::Pod);
    for (near, who, port, name) in ends {
        let own = at(Side::Near, who);
        let (by_in, by_out): (&[By], &[By]) = match who {
            Who::Pod => (&By::ALL, &By::ALL),
            Who::Node => (&[By::Tcp, By::Icmp], &[By::Udp]),
            Who::Cali => (&[By::Udp], &[By::Tcp]),
        };
        let inwards = Asking::new(
            title,
            format!("{family} far pod → {name}"),
            &overlay.far,
            (own, port),
        );
        site.ask(&inwards.from(far_pod), by_in);
        let name = format!("{family} {name} → far pod");
        let outwards = Asking::new(title, name, near, (far_pod, POD_PORT));
        site.ask(&outwards.from(own), by_out);
    }
    let (own, far) = (at(Side::Near, Who::Pod), at(Side::Far, Who::Node));
    let name = format!("{family} far node → pod");
    let asking = Asking::new(title, name, &far_host, (own, POD_PORT));
    site.ask(&asking.from(far), &[By::Tcp]);
}

/// Adds the cells between the overlay's pods and destinations outside of the overlay.
fn ask_node(site: &mut Site, overlay: &Overlay) {
    let web = Plan::web_server(V4);
    for (pod, name) in [(&overlay.pod, "pod"), (&overlay.cali, "Calico pod")] {
        for nic in NICS {
            let to = (site.near_address(nic, V4), HOST_PORT);
            let asking = Asking::new("overlay pods", format!("{name} → node, {nic}"), pod, to);
            site.ask(&asking, &By::ALL);
        }
        let asking = Asking::new(
            "overlay pods",
            format!("{name} → outside"),
            pod,
            (web, HOST_PORT),
        );
        site.ask(&asking, &By::ALL);
    }
}
