//! The faults, and what a person finds who does as the alert's text says.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_programs::packets::{between_macs, udp};
use ebbtide_vpc::{
    cni::Sandbox,
    metadata::MetadataDouble,
    packet_socket::send_raw,
    plan::{Family, Plan},
    pod::NIC_SIDE,
    snapshot::ip,
};
use serde_json::Value;

use super::stage::{NODE, Stage};

/// Where nobody listens, in the world.
const PORT: u16 = 4000;

/// Sends a datagram to the world from the node's own address on the second NIC, which no rule of the node's knows.
fn send_from_the_second_nic(stage: &Stage, family: Family) -> Result<()> {
    let own = stage.lab.vpc.nic(NODE, "ens6").primary(family);
    let world = SocketAddr::new(Plan::web_server(family), PORT);
    let send = || {
        let socket = UdpSocket::bind(SocketAddr::new(own, 0))?;
        Ok(socket.send_to(b"by which NIC?", world)?)
    };
    stage.node().run(send).map(drop)
}

pub(super) fn send_by_the_main_table(stage: &mut Stage) -> Result<()> {
    send_from_the_second_nic(stage, Family::V4)
}

pub(super) fn datapath_counts_the_wrong_nic(stage: &mut Stage) -> Result<()> {
    let before = (
        stage.agent().left_to_enforcement()?,
        stage.lab.vpc.dropped_at(NODE, "ens5")?,
    );
    send_by_the_main_table(stage)?;
    ensure!(stage.agent().left_to_enforcement()? == before.0 + 1);
    // Nothing is lost.
    ensure!(stage.lab.vpc.dropped_at(NODE, "ens5")? == before.1);
    Ok(())
}

pub(super) fn take_the_gateway(stage: &mut Stage) -> Result<()> {
    stage.take_the_gateway()
}

pub(super) fn send_without_a_gateway(stage: &mut Stage) -> Result<()> {
    send_from_the_second_nic(stage, Family::V6)
}

pub(super) fn doctor_names_the_gateway(stage: &mut Stage) -> Result<()> {
    let dropped = stage.lab.vpc.dropped_at(NODE, "ens5")?;
    ensure!(dropped > 0, "the VPC dropped nothing");
    let (findings, _) = stage.agent().doctor()?;
    let mut findings = findings.iter().map(ToString::to_string);
    ensure!(findings.any(|finding| finding.contains("master-ens6-v6 has no gateway")));
    Ok(())
}

pub(super) fn give_the_gateway(stage: &mut Stage) -> Result<()> {
    stage.give_the_gateway()
}

pub(super) fn spoof(stage: &mut Stage) -> Result<()> {
    let nic = stage.lab.vpc.nic(NODE, "ens5");
    let gateway = nic.subnet(Family::V4).gateway.to_string();
    let forged = udp(("198.51.100.66", 666), (&gateway, PORT));
    let frames = vec![between_macs(forged, nic.mac, nic.mac); 3];
    send_raw(&stage.pod("first")?.netns, NIC_SIDE, &frames, false)
}

pub(super) fn datapath_names_the_pod(stage: &mut Stage) -> Result<()> {
    let lines = stage.agent().control_json(&["datapath"])?;
    let drops = |line: &&Value| line["dropped"].as_u64() > Some(0);
    let mut dropping = lines.as_array().into_iter().flatten().filter(drops);
    let is_first = |line: &Value| text(&line["pod"]).ends_with("first");
    ensure!(dropping.any(is_first), "{lines}");
    Ok(())
}

pub(super) fn remove_a_rule(stage: &mut Stage) -> Result<()> {
    let node = stage.node();
    let rules = ip(&node, &["-4", "rule", "show"])?;
    let mut priorities = rules.lines().filter_map(|line| line.split_once(':'));
    let ours = priorities.find(|(priority, _)| priority.len() == 4 && priority.starts_with("10"));
    // It may be on its way back.
    if let Some((priority, _)) = ours {
        let _removed_already = ip(&node, &["-4", "rule", "del", "pref", priority]);
    }
    Ok(())
}

/// Removes all of the agent's rules at once, as who flushes them does.
pub(super) fn flush_the_rules(stage: &Stage) -> Result<()> {
    let node = stage.node();
    let rules = ip(&node, &["-4", "rule", "show"])?;
    let priorities = rules.lines().filter_map(|line| line.split_once(':'));
    let is_ours = |priority: &&str| priority.len() == 4 && priority.starts_with("10");
    let priorities = priorities.map(|(priority, _)| priority).filter(is_ours);
    // By one program, so that it takes a moment.
    let lines: String = priorities
        .map(|priority| format!("rule del pref {priority}\n"))
        .collect();
    let batch = tempfile::NamedTempFile::new()?;
    fs::write(batch.path(), lines)?;
    let batch = batch.path().display().to_string();
    ip(&node, &["-batch", &batch]).map(drop)
}

pub(super) fn log_names_the_rule(stage: &mut Stage) -> Result<()> {
    says(
        &stage.agent().log(),
        &["rule", "something on this node removes it"],
    )
}

pub(super) fn fill_the_pool(stage: &mut Stage) -> Result<()> {
    for number in 0..30 {
        match stage.lab.pod(NODE, "ens6", &format!("more{number}")) {
            Ok(pod) => stage.more.push(pod),
            Err(e) => return says(&format!("{e:#}"), &["master-ens6-v4"]),
        }
    }
    bail!("more pods than addresses")
}

pub(super) fn pools_name_who_has_what(stage: &mut Stage) -> Result<()> {
    let pods = stage.agent().control(&["pods"])?;
    says(&pods, &["second", "more0", "210.22.16.11"])?;
    let pools = stage.agent().control_json(&["pools"])?;
    let mut pools = pools.as_array().into_iter().flatten();
    let pool = pools.find(|pool| pool["name"] == "master-ens6-v4");
    let pool = pool.context("no such pool")?;
    ensure!(pool["free"] == 0 && pool["used"] == pool["total"], "{pool}");
    Ok(())
}

pub(super) fn empty_the_pool(stage: &mut Stage) -> Result<()> {
    stage.more.drain(..).try_for_each(|pod| pod.delete())
}

pub(super) fn add_to_no_network(stage: &mut Stage) -> Result<()> {
    let netns = stage.pod("first")?.netns.clone();
    let plugin = stage.agent().plugin();
    let config = plugin.config("default/nowhere").to_string();
    let sandbox = Sandbox::new(&netns, format!("nowhere-{}", std::process::id()), "lost");
    plugin.call("ADD", Some(&sandbox), &config)?.error()?;
    Ok(())
}

pub(super) fn log_says_why(stage: &mut Stage) -> Result<()> {
    says(
        &stage.agent().log(),
        &["default/nowhere", "container=nowhere-"],
    )
}

fn withdrawn(stage: &Stage) -> Result<ipnet::IpNet> {
    Ok(stage.pod("first")?.address(Family::V4).into())
}

pub(super) fn withdraw(stage: &mut Stage) -> Result<()> {
    stage.lab.vpc.unassign(NODE, "ens5", withdrawn(stage)?)
}

pub(super) fn cloud_names_the_withdrawn(stage: &mut Stage) -> Result<()> {
    let address = withdrawn(stage)?.addr().to_string();
    let told = stage.agent().control(&["cloud"])?;
    let mut lines = told.lines();
    let named = |line: &str| line.contains(&address) && line.contains("first");
    ensure!(lines.any(named), "{told}");
    Ok(())
}

pub(super) fn assign_again(stage: &mut Stage) -> Result<()> {
    stage.lab.vpc.assign(NODE, "ens5", withdrawn(stage)?)
}

fn configuration(stage: &mut Stage) -> std::path::PathBuf {
    let [_, configurations] = stage.agent().cni_directories();
    configurations.join("00-ebbtide.conflist")
}

pub(super) fn put_another_configuration(stage: &mut Stage) -> Result<()> {
    let theirs = r#"{"cniVersion": "1.0.0", "name": "theirs", "plugins": [{"type": "bridge"}]}"#;
    Ok(fs::write(configuration(stage), theirs)?)
}

pub(super) fn doctor_names_the_configuration(stage: &mut Stage) -> Result<()> {
    let (findings, _) = stage.agent().doctor()?;
    let mut findings = findings.iter().map(ToString::to_string);
    let named = |finding: String| finding.contains("00-ebbtide.conflist");
    ensure!(findings.any(named));
    Ok(())
}

pub(super) fn remove_the_configuration(stage: &mut Stage) -> Result<()> {
    Ok(fs::remove_file(configuration(stage))?)
}

pub(super) fn end_the_metadata(stage: &mut Stage) -> Result<()> {
    stage.metadata = None;
    Ok(())
}

pub(super) fn cloud_has_the_error(stage: &mut Stage) -> Result<()> {
    let told = stage.agent().control(&["cloud"])?;
    says(&told, &["failing", "refused"])
}

pub(super) fn begin_the_metadata(stage: &mut Stage) -> Result<()> {
    stage.metadata = Some(MetadataDouble::start(&stage.lab.vpc)?);
    Ok(())
}

/// Removes the directory of the socket: of a socket alone there would be another one soon.
pub(super) fn remove_the_socket(stage: &mut Stage) -> Result<()> {
    let socket = stage.agent().socket();
    let directory = socket.parent().context("no directory")?;
    Ok(fs::remove_dir_all(directory)?)
}

pub(super) fn log_names_the_socket(stage: &mut Stage) -> Result<()> {
    says(&stage.agent().log(), &["cni.sock"])
}

pub(super) fn restart(stage: &mut Stage) -> Result<()> {
    stop(stage)?;
    start(stage)
}

pub(super) fn kill_and_start(stage: &mut Stage) -> Result<()> {
    stage.agent().kill()?;
    start(stage)?;
    // It is scraped at least once.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    Ok(())
}

pub(super) fn stop(stage: &mut Stage) -> Result<()> {
    stage.agent().stop()
}

pub(super) fn start(stage: &mut Stage) -> Result<()> {
    let agent = stage.agent();
    agent.launch()?;
    agent.wait_ready()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn says(told: &str, words: &[&str]) -> Result<()> {
    let missing = words.iter().find(|word| !told.contains(**word));
    ensure!(missing.is_none(), "{missing:?} is not in {told}");
    Ok(())
}
