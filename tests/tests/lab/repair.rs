//! Removal of Ebbtide's objects in the host by others: the damage, and the repair.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    lab::Lab,
    nic_programs::{self, attached},
    patience::{IMPATIENCE, PATIENCE, eventually},
    plan::{Family, Plan},
    pod::Pod,
    snapshot::{Snapshot, ip},
    traffic::{Client, Protocol, Server},
};

const PORT: u16 = 8080;

/// Commands that remove objects of the host, and their names in the log of the repair.
const WIPES: [(&[&str], &str); 4] = [
    (
        &["rule", "del", "pref", "1003", "oif", "ens5"],
        "IPv4 rule 1003: from 172.31.16.0/20 oif ens5",
    ),
    (
        &["-6", "rule", "del", "pref", "1004"],
        "IPv6 rule 1004: from all",
    ),
    (&["route", "flush", "table", "7700"], "table 7700"),
    (&["-6", "route", "flush", "table", "7700"], "table 7700"),
];

fn wait_for_all_of(before: &Snapshot, lab: &Lab) -> Result<()> {
    eventually("what was there before", || {
        before.assert_within(&Snapshot::of(lab.vpc.node("master"))?)
    })
    .with_context(|| lab.logs())
}

fn wait_until_checked(pod: &Pod, lab: &Lab) -> Result<()> {
    eventually("CHECK", || pod.call("CHECK").map(drop)).with_context(|| lab.logs())
}

/// Whether the log reports the repair of what it calls `named`.
fn restore(log: &str, named: &str) -> bool {
    let mut lines = log.lines();
    lines.any(|line| line.contains("repaired") && line.contains(named))
}

/// Detaches a program of a NIC, and of a pod's veth in the host, like somebody's `tc qdisc del` or `bpftool link
/// detach`.
#[test]
fn programs_that_are_taken_off_the_host_s_links_come_back() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let node = lab.vpc.node("master").clone();
    for link in ["ens5", "ens6", pod.host_interface.as_str()] {
        let both = [true, true];
        ensure!(attached(&node, link)? == both, "{link} has no programs");
        nic_programs::take_off(&node, link, lab.agent("master").bpf())?;
        nic_programs::make_it_look(&node)?;
        eventually(link, || {
            let log = lab.agent("master").log();
            ensure!(attached(&node, link)? == both, "{log}");
            ensure!(restore(&log, link), "{log}");
            Ok(())
        })?;
    }
    pod.delete()
}

/// Removes everything that systemd-networkd removes when it is restarted without keeping foreign routes and rules, and
/// what a person may remove by `tc`, at once. networkd restores its own.
fn wipe_everything(lab: &Lab, pod: &Pod) -> Result<()> {
    let node = lab.vpc.node("master");
    let bpf = lab.agents().find(|agent| agent.node() == "master");
    let bpf = bpf.context("there is no agent on master")?.bpf();
    let own = |family: &str| ip(node, &[family, "route", "show", "table", "main"]);
    let kept = [("-4", own("-4")?), ("-6", own("-6")?)];
    for (family, routes) in kept {
        ip(node, &[family, "rule", "flush"])?;
        for (table, priority) in [("main", "32766"), ("default", "32767")] {
            let rule = [
                "rule", "add", "pref", priority, "from", "all", "lookup", table,
            ];
            ip(node, &[&[family][..], &rule].concat())?;
        }
        let everything = ["route", "flush", "table", "all", "proto", "235"];
        ip(node, &[&[family][..], &everything].concat())?;
        for route in routes.lines().filter(|route| route.starts_with("default")) {
            let words: Vec<&str> = route.split_whitespace().collect();
            ip(node, &[&[family, "route", "replace"][..], &words].concat())?;
        }
    }
    for nic in ["ens5", "ens6"] {
        for family in Family::BOTH {
            let address = lab
                .vpc
                .nic("master", nic)
                .subnet(family)
                .primary
                .to_string();
            ip(node, &["address", "replace", &address, "dev", nic])?;
        }
    }
    for link in ["ens5", "ens6", pod.host_interface.as_str()] {
        nic_programs::take_off(node, link, bpf)?;
    }
    // The kernel does not announce that TCX links are detached.
    nic_programs::make_it_look(node)
}

#[test]
fn all_that_is_wiped_at_once_comes_back_while_traffic_runs() -> Result<()> {
    let (mut lab, pod, _servers) = serving("ens6")?;
    let before = Snapshot::of(lab.vpc.node("master"))?;
    // The effect without a repair.
    lab.agent("master").kill()?;
    wipe_everything(&lab, &pod)?;
    ensure!(traffic(&lab, &pod, IMPATIENCE).is_err(), "no harm was done");
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    wait_for_all_of(&before, &lab).context("a new agent")?;
    traffic(&lab, &pod, PATIENCE).context("a new agent")?;
    for _ in 0..2 {
        // A connection that exists all the time.
        let client = Client::new(lab.vpc.node("master"), Protocol::Tcp);
        let mut connection = client.connect(pod.socket(Family::V4, PORT))?;
        connection.ask()?;
        wipe_everything(&lab, &pod)?;
        connection.ask().with_context(|| lab.logs())?;
        wait_for_all_of(&before, &lab).with_context(|| lab.logs())?;
        wait_until_checked(&pod, &lab)?;
        traffic(&lab, &pod, PATIENCE).context("repaired")?;
    }
    pod.delete()
}

/// Creates a pod on the master's NIC that serves like the world does, and can be reached.
fn serving(nic: &str) -> Result<(Lab, Pod, Vec<Server>)> {
    let lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", nic, "a")?;
    let web = Plan::web_server(Family::V4);
    let mut servers: Vec<Server> = Server::on(&lab.vpc.world, web, PORT)?.into();
    servers.extend(Server::on_any(&pod.netns, PORT)?);
    traffic(&lab, &pod, PATIENCE)?;
    Ok((lab, pod, servers))
}

/// Checks traffic out by the NIC, and to the node and back by the veth.
fn traffic(lab: &Lab, pod: &Pod, patience: Duration) -> Result<()> {
    let web = SocketAddr::new(Plan::web_server(Family::V4), PORT);
    let client = Client::new(&pod.netns, Protocol::Tcp).timeout(patience);
    client.ask(web).context("to the outside")?;
    let node = Client::new(lab.vpc.node("master"), Protocol::Tcp);
    let node = node.timeout(patience);
    node.ask(pod.socket(Family::V4, PORT))
        .context("from the node")?;
    Ok(())
}

#[test]
fn what_is_wiped_from_the_host_comes_back_and_the_log_names_it() -> Result<()> {
    let (mut lab, pod, _servers) = serving("ens5")?;
    let before = Snapshot::of(lab.vpc.node("master"))?;
    for (wipe, named) in WIPES {
        ip(lab.vpc.node("master"), wipe)?;
        wait_for_all_of(&before, &lab).with_context(|| wipe.join(" "))?;
        eventually(wipe.join(" "), || {
            let log = lab.agent("master").log();
            ensure!(restore(&log, named), "no {named:?} in {log}");
            Ok(())
        })?;
        wait_until_checked(&pod, &lab).with_context(|| wipe.join(" "))?;
        traffic(&lab, &pod, PATIENCE).with_context(|| wipe.join(" "))?;
    }
    lab.vpc.assert_no_violations()?;
    pod.delete()
}

#[test]
fn a_nic_that_went_down_and_up_again_carries_its_pods_again() -> Result<()> {
    let (mut lab, pod, _servers) = serving("ens6")?;
    let node = lab.vpc.node("master").clone();
    // Without an agent, to see what the kernel itself does.
    lab.agent("master").kill()?;
    ip(&node, &["link", "set", "ens6", "down"])?;
    ip(&node, &["link", "set", "ens6", "up"])?;
    if traffic(&lab, &pod, IMPATIENCE).is_ok() {
        bail!("the NIC's routes went with it, and yet the pod reaches the outside");
    }
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    traffic(&lab, &pod, PATIENCE).context("a new agent puts them back")?;
    // With an agent it is restored.
    let routed = Snapshot::of(&node)?;
    ip(&node, &["link", "set", "ens6", "down"])?;
    ip(&node, &["link", "set", "ens6", "up"])?;
    eventually("by itself", || traffic(&lab, &pod, IMPATIENCE)).with_context(|| lab.logs())?;
    ensure!(routed.mentions("table 77"));
    pod.call("CHECK")?;
    pod.delete()
}

/// As udev's MACAddressPolicy, a network manager or a person does to an unknown link.
#[test]
fn the_node_s_end_of_a_pair_gets_its_mac_address_its_mtu_and_its_state_back() -> Result<()> {
    let (mut lab, pod, _servers) = serving("ens5")?;
    let node = lab.vpc.node("master").clone();
    for change in [
        &["address", "02:00:00:00:00:99"][..],
        &["mtu", "1280"],
        &["down"],
    ] {
        let command = [&["link", "set", &pod.host_interface], change].concat();
        lab.agent("master").kill()?;
        ip(&node, &command)?;
        if change != ["mtu", "1280"] && traffic(&lab, &pod, IMPATIENCE).is_ok() {
            bail!("{change:?} does no harm");
        }
        lab.agent("master").launch()?;
        lab.agent("master").wait_ready()?;
        traffic(&lab, &pod, PATIENCE).with_context(|| format!("{change:?}: a new agent"))?;
        pod.call("CHECK").with_context(|| format!("{change:?}"))?;
        ip(&node, &command)?;
        wait_until_checked(&pod, &lab).with_context(|| format!("{change:?}"))?;
        traffic(&lab, &pod, PATIENCE).with_context(|| format!("{change:?}: by itself"))?;
    }
    pod.delete()
}

/// Nothing in the host announces this, and entering each pod's namespace again and again would cost too much.
#[test]
fn the_pod_s_end_of_a_pair_with_another_mac_address_is_named_by_check_and_put_right_by_a_new_agent()
-> Result<()> {
    let (mut lab, pod, _servers) = serving("ens5")?;
    let change = ["link", "set", "veth0", "address", "02:00:00:00:00:99"];
    ip(&pod.netns, &change)?;
    ensure!(traffic(&lab, &pod, IMPATIENCE).is_err(), "no harm was done");
    let Err(named) = pod.call("CHECK") else {
        bail!("CHECK finds nothing");
    };
    let named = format!("{named:#}");
    ensure!(named.contains("link veth0 has"), "{named}");
    lab.agent("master").kill()?;
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    pod.call("CHECK").context("a new agent")?;
    traffic(&lab, &pod, PATIENCE).context("a new agent")?;
    pod.delete()
}
