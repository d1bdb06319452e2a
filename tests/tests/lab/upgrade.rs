//! The node's programs are replaced by those of the release before, and again by these, while pods are asked without a
//! pause: no packet is lost, no address changes, and what the last one removes leaves nothing of either.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{removal::Stage, steady::SteadyClients};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    plan::Plan,
    pod::Pod,
    skip::{Need, skip},
    snapshot::run,
    workspace::{BINARIES, OLDER, Place},
};

/// Each is followed by the next. A pod's requests stay with the plugin that it was made by, so each plugin meets each agent.
const RELEASES: [(&str, Place); 5] = [
    ("older", OLDER),
    ("this", BINARIES),
    ("older", OLDER),
    ("this", BINARIES),
    ("this", BINARIES),
];

/// Whether the programs of an older release are there. Else the test is skipped.
fn is_there() -> bool {
    let found = OLDER.file("ebbtide-agent");
    found.inspect_err(|e| skip(Need::Older, e)).is_ok()
}

/// How an agent ends before the next one starts.
#[derive(Clone, Copy, Debug)]
enum End {
    /// As by the kubelet.
    Stopped,
    /// As by the kernel's out-of-memory killer.
    Killed,
}

fn replaced(end: End) -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let mut stage = Stage::build(Plan::default(), "", |_: &Lab, _: &Netns| Ok(()))?;
    let mut pods: Vec<Pod> = Vec::new();
    let mut clients = None;
    for (number, (name, release)) in RELEASES.into_iter().enumerate() {
        let context = format!("release {number} ({name})");
        match end {
            End::Stopped => stage.agent().stop()?,
            End::Killed => stage.agent().kill()?,
        }
        stage.agent().set_release(release);
        stage.start().with_context(|| context.clone())?;
        for pod in &pods {
            let again = pod.call("ADD").with_context(|| context.clone())?;
            ensure!(
                again == pod.result,
                "{context}: {} became {again}",
                pod.result
            );
            pod.call("CHECK").with_context(|| context.clone())?;
        }
        let nic = ["ens5", "ens6"][number % 2];
        pods.push(
            stage
                .pod(nic, &format!("by{number}"))
                .with_context(|| context.clone())?,
        );
        if clients.is_none() {
            let asked = stage.pod("ens6", "asked")?;
            clients = Some(SteadyClients::of(&stage.lab, &asked)?);
            pods.push(asked);
        }
        let addresses: Vec<_> = pods.iter().flat_map(|pod| &pod.addresses).collect();
        let distinct: BTreeSet<_> = addresses.iter().collect();
        ensure!(
            distinct.len() == addresses.len(),
            "{context}: {addresses:?}"
        );
        let hooks = stage.agent().control_json(&["datapath"])?;
        let hooks = hooks.as_array().context("a list of hooks")?;
        ensure!(
            hooks.iter().all(|hook| hook["attached"] == true),
            "{context}: {hooks:?}"
        );
        thread::sleep(Duration::from_millis(300));
    }
    clients.context("no client")?.all_were_answered()?;
    let wrong = stage.agent().left_to_enforcement()?;
    ensure!(wrong == 0, "{wrong} packets would have left by another NIC");
    stage.lab.vpc.assert_no_violations()?;
    for pod in pods {
        pod.delete()?;
    }
    Ok(())
}

#[test]
fn upgraded_and_downgraded_under_traffic_no_packet_is_lost_and_no_address_changes() -> Result<()> {
    replaced(End::Stopped)
}

#[test]
fn killed_and_replaced_by_another_release_no_packet_is_lost_and_no_address_changes() -> Result<()> {
    replaced(End::Killed)
}

#[test]
fn what_an_older_release_left_is_removed_with_the_rest() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    // Release 0.1 did not write down how the node forwarded before, and whose the NICs' qdiscs were.
    let forwards = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ];
    let mut stage = Stage::build(Plan::default(), "", |_: &Lab, node: &Netns| {
        for nic in ["ens5", "ens6"] {
            run(node, "tc", &["qdisc", "add", "dev", nic, "clsact"])?;
        }
        node.sysctls(&forwards)
    })?;
    for release in [OLDER, BINARIES, OLDER, BINARIES] {
        stage.agent().set_release(release);
        stage.start()?;
        stage.pod("ens5", "short")?.delete()?;
        stage.agent().stop()?;
    }
    stage.start()?;
    stage.remove()
}
