//! A node with several NICs: replies leave by the NIC that the request came in by, with its address, although the
//! default route is another one's. Source-NIC enforcement redirects only what could not have been routed.

use anyhow::{Context as _, Result, ensure};
use ebbtide_demo::{Check, Scenario, all_go_their_way};
use ebbtide_vpc::{
    iptables,
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    snapshot::{ip, run},
};

fn of<'a>(checks: &'a [Check], traffic: &'a str) -> impl Iterator<Item = &'a Check> {
    checks
        .iter()
        .filter(move |check| check.traffic.starts_with(traffic))
}

#[test]
fn node_ports_of_each_nic_are_answered_by_it_and_routed_there() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let checks = scenario.checks();
    let local: Vec<Check> = of(&checks, "NodePort, policy Local").cloned().collect();
    ensure!(local.len() == 4, "{} rows", local.len());
    all_go_their_way(&lab, &local)?;
    ensure!(
        lab.agent("master").left_to_enforcement()? == 0,
        "left to source-NIC enforcement"
    );
    // It forwards the answers of backends on other nodes, which have met nothing of Ebbtide's before.
    let cluster: Vec<Check> = of(&checks, "NodePort, policy Cluster").cloned().collect();
    ensure!(cluster.len() == 4, "{} rows", cluster.len());
    all_go_their_way(&lab, &cluster)?;
    scenario.delete()
}

#[test]
fn a_cluster_ip_works_without_masquerade_and_the_backend_sees_the_pod() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let checks = scenario.checks();
    let checks: Vec<Check> = of(&checks, "pod → ClusterIP, not").cloned().collect();
    ensure!(checks.len() == 4, "{} rows", checks.len());
    all_go_their_way(&lab, &checks)?;
    ensure!(
        lab.agent("master").left_to_enforcement()? == 0,
        "a pod's packets are no mistake"
    );
    scenario.delete()
}

#[test]
fn strict_reverse_path_filtering_on_every_link_of_the_node_is_satisfied() -> Result<()> {
    services_of(|node| {
        // Stricter than each link's own setting; the kernel uses the greater of the two.
        node.sysctls(&[("net/ipv4/conf/all/rp_filter", "1")])
    })
}

/// The filters of firewalld (`IPv6_rpfilter`, on by default) and NixOS, and a common rule in iptables.
#[test]
fn a_firewall_that_filters_reverse_paths_is_satisfied() -> Result<()> {
    let drop = |family, options: &'static str| {
        move |node: &Netns| {
            for nic in ["all", "ens5", "ens6"] {
                node.sysctls(&[(&format!("net/ipv4/conf/{nic}/rp_filter"), "0")])?;
            }
            let script = format!("*mangle\n-A PREROUTING -m rpfilter {options} -j DROP\nCOMMIT\n");
            iptables::restore(node, family, &script)
        }
    };
    for (family, options) in [
        (Family::V4, "--invert --validmark"),
        (Family::V6, "--invert --validmark"),
        (Family::V6, "--invert"),
    ] {
        services_of(drop(family, options)).with_context(|| format!("{family} {options}"))?;
    }
    Ok(())
}

#[test]
fn a_filter_that_is_turned_on_while_pods_run_is_noticed() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master");
    let off = ["all", "ens6"].map(|link| format!("net/ipv4/conf/{link}/rp_filter"));
    node.sysctls(&off.each_ref().map(|setting| (setting.as_str(), "0")))?;
    let pod = lab.pod("master", "ens6", "p")?;
    let noticed = || run(node, "sysctl", &["-n", "net.ipv4.conf.ens6.src_valid_mark"]);
    // The removal of any object makes the agent check; otherwise it checks every half minute.
    let look = || -> Result<()> {
        for verb in ["add", "del"] {
            ip(node, &["route", verb, "192.0.2.0/24", "dev", "lo"])?;
        }
        Ok(())
    };
    let wait_for = |expected: &str| {
        eventually("the agent to notice", || {
            look()?;
            let found = noticed()?;
            ensure!(found.trim() == expected, "src_valid_mark is {found}");
            Ok(())
        })
    };
    ensure!(noticed()?.trim() == "0", "nothing filters yet");
    node.sysctls(&[("net/ipv4/conf/ens6/rp_filter", "1")])?;
    wait_for("1")?;
    pod.delete()
}

/// Checks NodePorts and ClusterIPs while all nodes filter.
fn services_of(filter: impl Fn(&Netns) -> Result<()>) -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    for node in ["master", "worker1"] {
        filter(lab.vpc.node(node))?;
    }
    let scenario = Scenario::create(&lab)?;
    let checks = scenario.checks();
    let checks: Vec<Check> = ["NodePort", "pod → ClusterIP"]
        .into_iter()
        .flat_map(|traffic| of(&checks, traffic))
        .cloned()
        .collect();
    ensure!(checks.len() == 31, "{} rows", checks.len());
    all_go_their_way(&lab, &checks)?;
    scenario.delete()
}

#[test]
fn source_nic_enforcement_redirects_to_the_nic_of_the_source_address_and_counts_it() -> Result<()> {
    // With a spoof guard, the agent would attach programs again that a pod detaches.
    let mut lab = Lab::configured(Plan::default(), "spoofGuard: false\n")?;
    // Strict filtering would drop packets for the node itself there, with or without an agent.
    let loose = ("net/ipv4/conf/ens6/rp_filter", "2");
    lab.vpc.node("master").sysctls(&[loose])?;
    let scenario = Scenario::create(&lab)?;
    let before = lab.agent("master").left_to_enforcement()?;
    all_go_their_way(&lab, &scenario.by_enforcement()?)?;
    let counted = lab.agent("master").left_to_enforcement()? - before;
    ensure!(counted > 8, "only {counted} packets counted");
    scenario.delete()
}
