//! A Service proxy with nftables rules like kube-proxy's: the table of traffic, the NICs at which node ports are
//! served, and a doctor without findings.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_demo::{LOCAL_AT_MASTER, Scenario, all_go_their_way};
use ebbtide_vpc::{
    lab::Lab,
    nft,
    patience::IMPATIENCE,
    plan::{Family, Node, Plan},
    proxy::{Mode, NodePorts, Style},
    traffic::{Client, Protocol},
};

/// The addresses of the NIC that the Node object names: the meaning of kube-proxy's `--nodeport-addresses=primary`.
fn primary(node: &Node) -> NodePorts {
    let nic = node.nics.first();
    let addresses = nic.map(|nic| Family::BOTH.map(|family| nic.primary(family)));
    NodePorts::At(addresses.into_iter().flatten().collect())
}

/// The addresses of all NICs: the meaning of `--nodeport-addresses` with the nodes' networks.
fn of_all_nics(node: &Node) -> NodePorts {
    let nics = node.nics.iter();
    let addresses = nics.flat_map(|nic| Family::BOTH.map(|family| nic.primary(family)));
    NodePorts::At(addresses.collect())
}

fn everywhere(_: &Node) -> NodePorts {
    NodePorts::Everywhere
}

fn every_row_takes_its_path(style: Style, node_ports: fn(&Node) -> NodePorts) -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    if !nft::is_here(lab.vpc.node("master")) {
        return Ok(());
    }
    let mode = Mode::Nftables(style);
    let scenario = Scenario::served_by(&lab, mode)?;
    scenario.serve(&lab, mode, node_ports)?;
    let checks = scenario.checks();
    ensure!(checks.len() > 20, "only {} rows", checks.len());
    all_go_their_way(&lab, &checks)?;
    let (mut findings, _) = lab.agent("master").doctor()?;
    findings.retain(|finding| finding.what.contains("firewall"));
    ensure!(findings.is_empty(), "kube-proxy's rules: {findings:#?}");
    scenario.delete()
}

#[test]
fn every_row_takes_its_path_with_the_rules_of_kubernetes_1_31() -> Result<()> {
    every_row_takes_its_path(Style::Chains, of_all_nics)
}

#[test]
fn every_row_takes_its_path_with_the_rules_of_kubernetes_1_36() -> Result<()> {
    every_row_takes_its_path(Style::Maps, everywhere)
}

/// kube-proxy's nftables mode has `primary` by default: then the second NIC refuses node ports, with or without an
/// agent.
#[test]
fn node_ports_are_served_at_the_second_nic_if_its_address_is_configured() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    if !nft::is_here(lab.vpc.node("master")) {
        return Ok(());
    }
    let mode = Mode::Nftables(Style::Maps);
    let scenario = Scenario::served_by(&lab, mode)?;
    let ask = |nic: &str, family, protocol| {
        let node = lab.vpc.nic("master", nic).primary(family);
        let client = Client::new(lab.vpc.edge.netns(), protocol).timeout(IMPATIENCE);
        client.ask(SocketAddr::new(node, LOCAL_AT_MASTER))
    };
    for (node_ports, at_second) in [
        (primary as fn(&Node) -> NodePorts, false),
        (of_all_nics, true),
        (everywhere, true),
    ] {
        scenario.serve(&lab, mode, node_ports)?;
        for family in Family::BOTH {
            for protocol in Protocol::BOTH {
                let what = format!("{family} {protocol}, the second NIC {at_second}");
                ask("ens5", family, protocol).with_context(|| what.clone())?;
                let second = ask("ens6", family, protocol);
                ensure!(second.is_ok() == at_second, "{what}: {second:?}");
            }
        }
    }
    lab.vpc.assert_no_violations()?;
    scenario.delete()
}
