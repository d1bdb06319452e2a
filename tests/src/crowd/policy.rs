//! Foreign policy routing: rules and tables, connection marks, a second router, and addresses that are on no NIC.

use std::net::IpAddr;

use anyhow::Result;
use ebbtide_vpc::{
    family::Family::{self, V4},
    netns::Netns,
    plan::Plan,
    progress::print,
};

use super::{
    Wishes,
    cell::By,
    overlay::Overlay,
    site::{Asking, HOST_PORT, POD_MTU, POD_PORT, Site, address, batch},
};

/// The networks behind the second router of each NIC's subnet, which the node's main table knows: the NIC, the last
/// byte of its second router, and the first three bytes of the network.
const SITES: [(&str, u8, &str); 2] = [("ens5", 9, "10.77.0"), ("ens6", 9, "10.78.0")];
/// An address behind the second router of ens5's subnet that only a foreign table knows.
const HIDDEN: &str = "10.79.0.9";
/// The network whose packets use that table.
const PRIVILEGED: &str = "10.250.0";
/// The mark by which a foreign rule sends a socket's packets to that table.
const PRIVILEGED_MARK: u32 = 0x100;

/// Builds everything and adds the cells.
pub(super) fn set_up(site: &mut Site, overlay: &Overlay, wishes: Wishes) -> Result<()> {
    rules(site)?;
    marks(site, wishes);
    let mut sites = Vec::new();
    for (nic, last, network) in SITES {
        sites.push((nic, second_router(site, nic, last, network)?, network));
    }
    privileged(site)?;
    addresses(site)?;
    ask_hosts(site)?;
    for (nic, host, network) in &sites {
        ask_site(site, nic, host, network)?;
    }
    for (nic, host, network) in &sites {
        tunnels(site, overlay, nic, host, network)?;
    }
    Ok(())
}

/// Adds a default route by each NIC, as DHCP clients do, and rules by source.
fn rules(site: &mut Site) -> Result<()> {
    for family in Family::BOTH {
        let (own, gateway) = (
            site.near_address("ens6", family),
            site.gateway("ens6", family),
        );
        let everything = if family == V4 { "0.0.0.0/0" } else { "::/0" };
        let mut lines = vec![
            format!("route add {everything} via {gateway} dev ens6 metric 2000"),
            format!("route add {everything} via {gateway} dev ens6 table 500"),
            // Before the rules by mark, as wg-quick and mwan3 have it: known destinations do not concern them.
            "rule add pref 32000 lookup main suppress_prefixlength 0".into(),
            "rule add pref 32100 fwmark 0x200/0x0f00 lookup 500".into(),
            format!("rule add pref 32200 from {own} lookup 500"),
        ];
        if family == V4 {
            lines.push(format!(
                "rule add pref 500 from {PRIVILEGED}.0/24 lookup 100"
            ));
            lines.push(format!(
                "rule add pref 32050 fwmark {PRIVILEGED_MARK:#x}/0x0f00 lookup 100"
            ));
        }
        site.tell(&site.node.clone(), family, lines);
    }
    Ok(())
}

/// Marks connections that come in by ens6, so that their answers leave by it. A packet that goes into a tunnel loses
/// the mark: otherwise the outer packet would have it and leave by ens6.
fn marks(site: &mut Site, wishes: Wishes) {
    let (restore, save, none) = match wishes.whole_marks {
        true => ("--restore-mark", "--save-mark", "--set-xmark 0/0x0f00"),
        false => (
            "--restore-mark --nfmask 0x0f00 --ctmask 0x0f00",
            "--save-mark --nfmask 0x0f00 --ctmask 0x0f00",
            "--set-xmark 0/0x0f00",
        ),
    };
    for family in Family::BOTH {
        let mangle = &mut site.firewall(family).mangle;
        mangle.push_str(&format!(
            "-A PREROUTING -j CONNMARK {restore}\n\
             -A PREROUTING -i ens6 -m conntrack --ctstate NEW -m mark --mark 0/0x0f00 \
             -j MARK --set-xmark 0x200/0x0f00\n\
             -A PREROUTING -j CONNMARK {save}\n\
             -A OUTPUT -m mark --mark 0/0x0f00 -j CONNMARK {restore}\n\
             -A OUTPUT -j CONNMARK {save}\n\
             -A POSTROUTING ! -o ens+ -j MARK {none}\n"
        ));
    }
}

/// Adds a router beside the VPC's own on the wire of a NIC, with a network behind it that the VPC does not know.
fn second_router(site: &mut Site, nic: &str, last: u8, network: &str) -> Result<Netns> {
    let router = site.namespace(&format!("router-{nic}"))?;
    let host = site.namespace(&format!("site-{nic}"))?;
    router.sysctls(&[("net/ipv4/ip_forward", "1")])?;
    let own = site.near_address(nic, V4);
    let through = beside(site.gateway(nic, V4), last);
    let prefix = site.vpc.nic("master", nic).v4.primary.prefix_len();
    site.on_the_wire(nic, &router)?;
    site.wire((&router, "site"), (&host, "e0"), 1500)?;
    site.tell(
        &router,
        V4,
        [
            "link set wire up".into(),
            format!("address add {through}/{prefix} dev wire"),
            format!("address add {network}.1/24 dev site"),
            format!("route add {HIDDEN}/32 via {network}.9"),
        ],
    );
    site.tell(
        &host,
        V4,
        [
            format!("address add {network}.9/24 dev e0"),
            format!("route add {own}/32 via {network}.1"),
            format!("route add default via {network}.1"),
        ],
    );
    site.tell(
        &site.node.clone(),
        V4,
        [format!("route add {network}.0/24 via {through} dev {nic}")],
    );
    if nic == "ens5" {
        site.tell(&host, V4, [format!("address add {HIDDEN}/32 dev lo")]);
        site.tell(
            &site.node.clone(),
            V4,
            [format!(
                "route add default via {through} dev {nic} table 100"
            )],
        );
        site.serve(&host, address(HIDDEN)?, HOST_PORT);
    }
    site.serve(&host, address(&format!("{network}.9"))?, HOST_PORT);
    Ok(host)
}

fn beside(gateway: IpAddr, last: u8) -> IpAddr {
    match gateway {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, last])
        }
        IpAddr::V6(_) => gateway,
    }
}

/// Adds a container whose packets a foreign rule routes differently from all others.
fn privileged(site: &mut Site) -> Result<()> {
    let node = site.node.clone();
    let container = site.namespace("privileged")?;
    site.wire((&node, "priv0"), (&container, "e0"), POD_MTU)?;
    site.tell(
        &node,
        V4,
        [format!("address add {PRIVILEGED}.1/24 dev priv0")],
    );
    site.tell(
        &container,
        V4,
        [
            format!("address add {PRIVILEGED}.2/24 dev e0"),
            format!("route add default via {PRIVILEGED}.1"),
        ],
    );
    // Priority 500 is before the main table, so this table needs the container's own network, too.
    site.tell(
        &node,
        V4,
        [format!("route add {PRIVILEGED}.0/24 dev priv0 table 100")],
    );
    site.accept(V4, ["-i priv0", "-o priv0"]);
    let nat = &mut site.firewall(V4).nat;
    nat.push_str(&format!(
        "-A POSTROUTING -s {PRIVILEGED}.0/24 -o ens5 -j MASQUERADE\n"
    ));
    // The main table's default route chose the socket's address.
    let hidden = (address(HIDDEN)?, HOST_PORT);
    let asking = Asking::new(
        "policy routing",
        "container of table 100 → its site",
        &container,
        hidden,
    );
    site.ask(&asking, &By::ALL);
    let asking = Asking::new(
        "policy routing",
        "marked socket → site of table 100",
        &node,
        hidden,
    );
    site.ask(&asking.marked(PRIVILEGED_MARK), &By::WITH_PORTS);
    for nic in ["ens5", "ens6"] {
        let to = (site.near_address(nic, V4), HOST_PORT);
        let asking = Asking::new(
            "policy routing",
            format!("container of table 100 → node, {nic}"),
            &container,
            to,
        );
        site.ask(&asking, &By::ALL);
    }
    Ok(())
}

/// Adds addresses that the network routes to the node and that are on none of its NICs, as with BGP.
fn addresses(site: &mut Site) -> Result<()> {
    let (node, far) = (site.node.clone(), site.far.clone());
    let mut lines = Vec::new();
    let has_dummy = batch(&node, V4, &["link add lb-addresses type dummy".into()]).is_ok();
    for (nic, link) in [("ens5", "lo"), ("ens6", "lb-addresses")] {
        let link = if has_dummy { link } else { "lo" };
        let own = site.announced(nic)?;
        lines.push(format!("address add {own}/32 dev {link}"));
        lines.push(format!("link set {link} up"));
        if nic == "ens6" {
            lines.push(format!("rule add pref 32200 from {own} lookup 500"));
        }
    }
    site.tell(&node, V4, lines);
    for nic in ["ens5", "ens6"] {
        let own = site.announced(nic)?;
        site.serve(&node, own, HOST_PORT);
        let name = format!("far host → address on no NIC, by {nic}");
        site.ask(
            &Asking::new("announced addresses", name, &far, (own, HOST_PORT)),
            &By::ALL,
        );
        let to = (site.far_address(V4), HOST_PORT);
        let name = format!("address on no NIC, by {nic} → far host");
        site.ask(
            &Asking::new("announced addresses", name, &node, to).from(own),
            &By::ALL,
        );
    }
    Ok(())
}

/// Adds the cells of the node's own services and requests.
fn ask_hosts(site: &mut Site) -> Result<()> {
    let (node, far, world) = (site.node.clone(), site.far.clone(), site.vpc.world.clone());
    for family in Family::BOTH {
        let far_address = site.far_address(family);
        site.serve(&far, far_address, HOST_PORT);
        let web = Plan::web_server(family);
        site.serve(&world, web, HOST_PORT);
        for nic in ["ens5", "ens6"] {
            let own = site.near_address(nic, family);
            site.serve(&node, own, HOST_PORT);
            let name = format!("{family} far host → node, {nic}");
            site.ask(
                &Asking::new("the host", name, &far, (own, HOST_PORT)),
                &By::ALL,
            );
            let name = format!("{family} node, {nic} → far host");
            let asking = Asking::new("the host", name, &node, (far_address, HOST_PORT));
            site.ask(&asking.from(own), &By::ALL);
            let name = format!("{family} node, socket bound to {nic} → far host");
            let asking = Asking::new("the host", name, &node, (far_address, HOST_PORT));
            site.ask(&asking.by_device(nic), &By::WITH_PORTS);
            let name = format!("{family} node → itself, {nic}");
            site.ask(
                &Asking::new("the host", name, &node, (own, HOST_PORT)),
                &By::ALL,
            );
        }
        let name = format!("{family} node → far host");
        site.ask(
            &Asking::new("the host", name, &node, (far_address, HOST_PORT)),
            &By::ALL,
        );
        let name = format!("{family} node → outside");
        site.ask(
            &Asking::new("the host", name, &node, (web, HOST_PORT)),
            &By::ALL,
        );
    }
    Ok(())
}

/// Adds the cells of the network behind a second router, which the main table's static route leads to.
fn ask_site(site: &mut Site, nic: &'static str, host: &Netns, network: &str) -> Result<()> {
    let node = site.node.clone();
    let group = "behind a second router";
    let there = (address(&format!("{network}.9"))?, HOST_PORT);
    let own = site.near_address(nic, V4);
    let ways = [
        Asking::new(group, format!("node → site, {nic}"), &node, there),
        Asking::new(
            group,
            format!("node, from {nic}'s address → site"),
            &node,
            there,
        )
        .from(own),
    ];
    for way in ways {
        site.ask(&way, &By::ALL);
    }
    let bound = Asking::new(
        group,
        format!("node, socket bound to {nic} → site"),
        &node,
        there,
    );
    site.ask(&bound.by_device(nic), &By::WITH_PORTS);
    let inwards = Asking::new(group, format!("site → node, {nic}"), host, (own, HOST_PORT));
    site.ask(&inwards, &By::ALL);
    Ok(())
}

/// Adds tunnels to that network, whose outer packets take the static route.
fn tunnels(
    site: &mut Site,
    overlay: &Overlay,
    nic: &str,
    host: &Netns,
    network: &str,
) -> Result<()> {
    let node = site.node.clone();
    let kinds = [
        (
            "VXLAN",
            251,
            "vxlan id 251 dstport 4789 dev @ local L remote R",
        ),
        ("IPIP", 252, "ipip local L remote R"),
    ];
    for (kind, number, link) in kinds {
        let number = if nic == "ens5" { number } else { number + 2 };
        let own = site.near_address(nic, V4);
        let ends = [
            (
                &node,
                own.to_string(),
                format!("{network}.9"),
                nic,
                210,
                211,
            ),
            (
                host,
                format!("{network}.9"),
                own.to_string(),
                "e0",
                211,
                210,
            ),
        ];
        for (end, local, remote, by, ours, theirs) in ends {
            let dev = format!("far{number}");
            let link = link
                .replace('@', by)
                .replace('L', &local)
                .replace('R', &remote);
            let link = link.replace("id 251", &format!("id {number}"));
            let lines = [
                format!("link add {dev} type {link}"),
                format!("link set {dev} up"),
                format!("address add 10.{ours}.{number}.1/32 dev {dev}"),
                format!(
                    "route add 10.{theirs}.{number}.0/24 via 10.{theirs}.{number}.1 dev {dev} onlink"
                ),
            ];
            if let Err(error) = batch(end, V4, &lines) {
                print(&format!(
                    "left out: {kind} to a site behind a second router: {error:#}\n"
                ));
                return Ok(());
            }
            site.serve(end, address(&format!("10.{ours}.{number}.1"))?, HOST_PORT);
        }
        let group = "tunnels by a static route";
        let [near, far] = [210, 211].map(|side| address(&format!("10.{side}.{number}.1")));
        let (near, far) = (near?, far?);
        let name = format!("{kind} over {nic}, node → site");
        site.ask(&Asking::new(group, name, &node, (far, HOST_PORT)), &By::ALL);
        let pod = address(&format!("10.210.{number}.2"))?;
        site.tell(&overlay.pod, V4, [format!("address add {pod}/32 dev e0")]);
        site.serve(&overlay.pod, pod, POD_PORT);
        let name = format!("{kind} over {nic}, site → pod");
        let asking = Asking::new(group, name, host, (pod, POD_PORT));
        site.ask(&asking.from(far), &By::ALL);
        let name = format!("{kind} over {nic}, pod → site");
        let asking = Asking::new(group, name, &overlay.pod, (far, HOST_PORT));
        site.ask(&asking.from(pod), &By::ALL);
        let name = format!("{kind} over {nic}, site → node");
        site.ask(
            &Asking::new(group, name, host, (near, HOST_PORT)).from(far),
            &By::ALL,
        );
    }
    Ok(())
}
