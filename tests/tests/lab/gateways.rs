//! Gateways that the kernel finds on another link than the one they are configured for: a refused route must not keep
//! other NICs from working.

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    nic_programs,
    plan::{Family, Plan},
    snapshot::ip,
    traffic::Server,
};

use super::node_changes::{PORT, ask_node_port, expose};

/// Starts a lab in which these `ip` commands were run on `master` before there was an agent.
fn lab(commands: impl Fn(&Lab) -> Vec<String>) -> Result<Lab> {
    let mut lab = Lab::without_agents(Plan::default())?;
    for command in commands(&lab) {
        let arguments: Vec<&str> = command.split(' ').collect();
        ip(lab.vpc.node("master"), &arguments)?;
    }
    lab.start_agents()?;
    Ok(lab)
}

/// Checks that a pod's NodePort is answered at these NICs by IPv4, each by itself, that both NICs have all objects, and
/// that nothing was refused.
fn answers_at(lab: &mut Lab, nics: &[&str]) -> Result<()> {
    let pod = lab.pod("master", "ens5", "p")?;
    let _servers = Server::on_any(&pod.netns, PORT)?;
    let address = |nic: &&str| lab.vpc.nic("master", nic).primary(Family::V4);
    let addresses: Vec<_> = nics.iter().map(address).collect();
    expose(lab, &pod, &addresses)?;
    for (number, (nic, address)) in nics.iter().zip(addresses).enumerate() {
        let wires = ask_node_port(lab, number, address).with_context(|| (*nic).to_owned())?;
        ensure!(wires == [format!("master/{nic}")], "{nic}: {wires:?}");
    }
    for nic in ["ens5", "ens6"] {
        let attached = nic_programs::attached(lab.vpc.node("master"), nic)?;
        ensure!(attached == [true, true], "{nic}: {attached:?}");
    }
    let log = lab.agent("master").log();
    ensure!(!log.contains("ERROR"), "{log}");
    pod.delete()
}

#[test]
fn two_nics_in_one_ipv6_network_as_network_managers_have_them() -> Result<()> {
    let mut lab = lab(|lab| {
        let subnet = lab.vpc.nic("master", "ens5").subnet(Family::V6);
        let (own, network) = (subnet.primary, subnet.primary.trunc());
        let base = network.to_string();
        let other = base.replace("::/", "::7:6/");
        vec![
            format!("addr del {own} dev ens5"),
            format!("addr add {own} dev ens5 nodad noprefixroute"),
            format!("addr add {other} dev ens6 nodad noprefixroute"),
            format!("route add {network} dev ens5 metric 100 proto kernel"),
            format!("route add {network} dev ens6 metric 101 proto kernel"),
        ]
    })?;
    answers_at(&mut lab, &["ens5", "ens6"])
}

/// An IPv4 route by an IPv6 router (RFC 5549), as BGP makes them between routers without IPv4 addresses.
#[test]
fn an_ipv4_default_by_an_ipv6_router_is_the_way_out_of_the_nic() -> Result<()> {
    let mut lab = lab(|lab| {
        let router = lab.vpc.nic("master", "ens5").subnet(Family::V6).gateway;
        vec![
            "-4 route del default".to_owned(),
            format!("-4 route add default via inet6 {router} dev ens5"),
        ]
    })?;
    answers_at(&mut lab, &["ens5", "ens6"])
}

#[test]
fn a_pool_whose_gateway_is_the_node_itself_is_told_and_costs_no_other() -> Result<()> {
    let mut lab = lab(|lab| {
        let gateway = lab.vpc.nic("master", "ens6").subnet(Family::V4).gateway;
        vec![format!("addr add {gateway}/32 dev ens6")]
    })?;
    answers_at(&mut lab, &["ens5"])?;
    let (findings, _) = lab.agent("master").doctor()?;
    let told = |part: &str| findings.iter().any(|finding| finding.what.contains(part));
    ensure!(
        told("is an address of this node's own on ens6"),
        "{findings:?}"
    );
    Ok(())
}

/// New links inherit the setting of `default`. Calico's agent and others turn forwarding on for their own links, too.
#[test]
fn new_links_forward_where_the_default_says_that_they_do_not_and_a_nic_that_does_not_is_told()
-> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    node.sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/default/forwarding", "0"),
    ])?;
    lab.start_agents()?;
    answers_at(&mut lab, &["ens5", "ens6"])?;
    let pod = lab.pod("master", "ens5", "q")?;
    let mut told = || -> Result<bool> {
        let (findings, _) = lab.agent("master").doctor()?;
        let mut findings = findings.iter();
        Ok(findings.any(|finding| finding.what.contains("net/ipv4/conf/ens6/forwarding")))
    };
    ensure!(!told()?, "it forwards");
    node.sysctls(&[("net/ipv4/conf/ens6/forwarding", "0")])?;
    ensure!(told()?, "it does not forward");
    pod.delete()
}

#[test]
fn a_network_behind_another_router_is_told_with_its_nic() -> Result<()> {
    let mut lab = lab(|lab| {
        let gateway = lab.vpc.nic("master", "ens5").subnet(Family::V4).gateway;
        let behind = |network: &str, via| format!("route add {network} via {via} dev ens5");
        vec![
            behind("203.0.113.0/24", "172.31.16.77".to_owned()),
            behind("192.0.2.0/24", gateway.to_string()),
        ]
    })?;
    let pod = lab.pod("master", "ens5", "p")?;
    let (findings, fails) = lab.agent("master").doctor()?;
    let mut told = findings.iter();
    let told = told.find(|finding| {
        finding
            .what
            .contains("203.0.113.0/24 via 172.31.16.77 over ens5:")
    });
    ensure!(told.is_some() && !fails, "{findings:?}");
    pod.delete()
}
