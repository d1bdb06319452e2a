//! Links with unusual properties: the agent reads what it can of them, and configures what they support.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};

use super::node_changes::PORT;

/// "Büro" in Latin-1, which is not valid UTF-8.
const LATIN: &[u8] = b"B\xfcro";

/// Runs `ip` with a last argument that need not be text.
fn ip_with(node: &Netns, arguments: &[&str], last: &[u8]) -> Result<()> {
    let mut command = node.command("ip");
    let status = command
        .args(arguments)
        .arg(OsStr::from_bytes(last))
        .status()?;
    ensure!(status.success(), "ip {arguments:?}: {status}");
    Ok(())
}

/// Checks that a pod reaches the world by IPv4, and its node.
fn works(lab: &Lab, pod: &Pod) -> Result<()> {
    let node = lab.vpc.nic(&pod.node, "ens5").primary(Family::V4);
    for protocol in Protocol::BOTH {
        for server in [node, Plan::web_server(Family::V4)] {
            let client = Client::new(&pod.netns, protocol);
            client
                .ask((server, PORT).into())
                .with_context(|| format!("{} to {server} by {protocol}", pod.name))?;
        }
    }
    Ok(())
}

#[test]
fn aliases_and_names_that_are_no_text_hide_no_link_and_fail_no_add() -> Result<()> {
    for whose in ["a bridge of others", "the NIC itself"] {
        let mut lab = Lab::without_agents(Plan::default())?;
        let node = lab.vpc.node("master").clone();
        ip(&node, &["link", "add", "br-lan", "type", "bridge"])?;
        let link = if whose == "the NIC itself" {
            "ens6"
        } else {
            "br-lan"
        };
        ip_with(&node, &["link", "set", link, "alias"], LATIN)?;
        // A link whose name is not valid UTF-8.
        ip_with(&node, &["link", "add", "type", "dummy", "name"], LATIN)?;
        lab.start_agents()?;
        let _servers = [
            Server::on_any(&node, PORT)?,
            Server::on_any(&lab.vpc.world, PORT)?,
        ];
        for nic in ["ens5", "ens6"] {
            let pod = lab.pod("master", nic, nic).context(whose)?;
            works(&lab, &pod).context(whose)?;
            pod.delete().context(whose)?;
        }
        let agent = lab.agent("master");
        let links = agent.control_json(&["nics"])?.to_string();
        for known in ["ens5", "ens6", "br-lan"] {
            ensure!(links.contains(known), "{whose}: {links}");
        }
        let log = agent.log();
        ensure!(
            !log.contains("ERROR") && !log.contains("WARN"),
            "{whose}: {log}"
        );
    }
    Ok(())
}

/// The kernel disables IPv6 on links with an MTU below 1280 bytes, and removes the directory of its settings.
#[test]
fn a_nic_too_narrow_for_ipv6_has_pods_with_ipv4_and_says_why_not_with_ipv6() -> Result<()> {
    let mut plan = Plan::default();
    // Without an IPv6 pool for this NIC.
    for node in &mut plan.nodes {
        for nic in node.nics.iter_mut().filter(|nic| nic.name == "ens6") {
            nic.v6.secondary.clear();
        }
    }
    let mut lab = Lab::without_agents(plan)?;
    let node = lab.vpc.node("master").clone();
    for nic in ["ens5", "ens6"] {
        ip(&node, &["link", "set", nic, "mtu", "1200"])?;
    }
    lab.start_agents()?;
    let _servers = [
        Server::on_any(&node, PORT)?,
        Server::on_any(&lab.vpc.world, PORT)?,
    ];
    let error = lab.pod("master", "ens5", "both").expect_err("IPv6 there");
    let error = format!("{error:#}");
    for part in [
        "MTU of 1200",
        "IPv6 needs 1280",
        "ip link set ens5 mtu 1280",
    ] {
        ensure!(error.contains(part), "{error}");
    }
    ensure!(lab.agent("master").addresses_in_use()? == 0, "{error}");
    let pod = lab.pod("master", "ens6", "p")?;
    works(&lab, &pod)?;
    pod.call("CHECK")?;
    pod.delete()
}
