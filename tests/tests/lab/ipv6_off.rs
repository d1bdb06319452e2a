//! IPv6 that is turned off on a NIC by its setting, as hardening guides recommend.

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    iptables,
    lab::Lab,
    netns::Netns,
    nic_programs,
    patience::eventually,
    plan::{Family, Plan},
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};

use super::node_changes::{PORT, ask_node_port, expose};

fn turn(node: &Netns, off: bool) -> Result<()> {
    let value = if off { "1" } else { "0" };
    node.sysctls(&[("net/ipv6/conf/ens6/disable_ipv6", value)])
}

#[test]
fn ipv6_that_is_off_on_a_nic_is_named_with_its_pods_and_ipv4_goes_on() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let own = lab
        .vpc
        .nic("master", "ens6")
        .subnet(Family::V6)
        .primary
        .to_string();
    let _world = Server::on(&lab.vpc.world, Plan::web_server(Family::V4), PORT)?;
    let asks_the_world = |pod: &Netns| {
        let web = (Plan::web_server(Family::V4), PORT).into();
        Client::new(pod, Protocol::Tcp).ask(web).map(drop)
    };
    let pod = lab.pod("master", "ens6", "before")?;
    let named = |lab: &mut Lab, count: usize| {
        let what = format!("IPv6 is off on ens6: {count} pod interface(s) there");
        eventually(&what, || {
            let (findings, fails) = lab.agent("master").doctor()?;
            let found = findings.iter().find(|finding| finding.what.contains(&what));
            let finding = found.with_context(|| format!("{findings:?}"))?;
            let cure = "sysctl -w net.ipv6.conf.ens6.disable_ipv6=0";
            ensure!(fails && finding.hint.contains(cure), "{finding}");
            Ok(())
        })
    };
    let unnamed = |lab: &mut Lab| {
        eventually("not named", || {
            let (findings, _) = lab.agent("master").doctor()?;
            ensure!(
                !findings
                    .iter()
                    .any(|finding| finding.what.contains("IPv6 is off")),
                "{findings:?}"
            );
            Ok(())
        })
    };
    unnamed(&mut lab)?;

    turn(&node, true)?;
    named(&mut lab, 1)?;
    asks_the_world(&pod.netns).context("IPv4, of a pod that was there before")?;
    // A pod that is added afterwards, also by a new agent.
    let second = lab.pod("master", "ens6", "meanwhile")?;
    named(&mut lab, 2)?;
    asks_the_world(&second.netns).context("IPv4, of a pod that came meanwhile")?;
    lab.agent("master").kill()?;
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    named(&mut lab, 2)?;
    let third = lab.pod("master", "ens6", "afterwards")?;
    named(&mut lab, 3)?;
    asks_the_world(&third.netns).context("IPv4, of a pod of the new agent")?;

    turn(&node, false)?;
    unnamed(&mut lab)?;
    // Off again, while the NIC has only its link-local address.
    turn(&node, true)?;
    named(&mut lab, 3)?;
    turn(&node, false)?;
    ip(&node, &["address", "replace", &own, "dev", "ens6", "nodad"])?;
    unnamed(&mut lab)?;
    for pod in [pod, second, third] {
        eventually("CHECK", || pod.call("CHECK"))?;
        pod.delete()?;
    }
    Ok(())
}

/// firewalld's filter (`IPv6_rpfilter`), which it installs whether or not there is IPv6.
const FIREWALL: &str = "*mangle\n-A PREROUTING -m rpfilter --invert --validmark -j DROP\nCOMMIT\n";

/// As in hardening guides: off for all links and for new ones.
#[test]
fn a_node_where_ipv6_is_off_for_all_links_has_all_of_ipv4_and_no_errors() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    for node in ["master", "worker1"] {
        let off = ["all", "default"].map(|link| format!("net/ipv6/conf/{link}/disable_ipv6"));
        let off = off.each_ref().map(|setting| (setting.as_str(), "1"));
        lab.vpc.node(node).sysctls(&off)?;
        iptables::restore(lab.vpc.node(node), Family::V6, FIREWALL)?;
    }
    lab.start_agents()?;
    let pod = lab.pod("master", "ens6", "p")?;
    let _servers = Server::on_any(&pod.netns, PORT)?;
    let nics = ["ens5", "ens6"];
    let addresses = nics.map(|nic| lab.vpc.nic("master", nic).primary(Family::V4));
    expose(&lab, &pod, &addresses)?;
    for (number, (nic, address)) in nics.into_iter().zip(addresses).enumerate() {
        let wires = ask_node_port(&lab, number, address).with_context(|| nic)?;
        ensure!(wires == [format!("master/{nic}")], "{nic}: {wires:?}");
    }
    let log = lab.agent("master").log();
    ensure!(!log.contains("ERROR"), "{log}");
    let attached = nic_programs::attached(lab.vpc.node("master"), "ens6")?;
    ensure!(attached == [true, true], "{attached:?}");
    pod.delete()
}
