//! After the removal of Ebbtide a node with ipvlan pods is as it was before, byte for byte: each mode, chained plugins,
//! strict reverse path filters, addresses that the node takes for its own, pools from the cloud's metadata; with tc filters
//! where this kernel has no TCX.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{
    chain,
    chained::ChainedInterface,
    removal::{NODE, Stage, foreign_filter, ip_all},
};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    foreign,
    lab::Lab,
    metadata::{Cloud, MetadataDouble},
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    snapshot::{ip, run},
};
use serde_json::json;
use tempfile::TempDir;

fn nobody_else(_: &Lab, _: &Netns) -> Result<()> {
    Ok(())
}

/// Makes a pod on each NIC and deletes them, with an agent that is replaced in between.
fn pods_come_and_go(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let on_ens5 = stage.pod("ens5", "first")?;
    let on_ens6 = stage.pod("ens6", "second")?;
    on_ens5.delete()?;
    stage.agent().kill()?;
    stage.start()?;
    on_ens6.delete()?;
    // One that ends while no agent is there.
    let last = stage.pod("ens6", "last")?;
    stage.agent().stop()?;
    drop(last);
    stage.start()
}

fn in_mode(mode: IpvlanMode) -> Result<()> {
    let plan = Plan {
        mode,
        ..Plan::default()
    };
    let mut stage = Stage::build(plan, "", nobody_else)?;
    pods_come_and_go(&mut stage)?;
    stage.remove()
}

#[test]
fn after_ipvlan_l2() -> Result<()> {
    in_mode(IpvlanMode::L2)
}

#[test]
fn after_ipvlan_l3() -> Result<()> {
    in_mode(IpvlanMode::L3)
}

#[test]
fn after_ipvlan_l3s() -> Result<()> {
    in_mode(IpvlanMode::L3s)
}

#[test]
fn after_pods_that_ended_with_the_agent() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    stage.start()?;
    let pod = stage.pod("ens6", "last")?;
    stage.agent().kill()?;
    let ended = stage.agent().uninstall_with(&["--purge"])?;
    ensure!(ended.code == Some(3), "{ended:#?}");
    drop(pod);
    let ended = stage.agent().uninstall_with(&["--purge", "--wait", "30"])?;
    ensure!(ended.code == Some(0), "{ended:#?}");
    stage.is_as_before().context(ended.log)
}

#[test]
fn beside_strict_filters_and_what_others_have_at_the_nics() -> Result<()> {
    let plan = Plan {
        strict_rp_filter: true,
        ..Plan::default()
    };
    let mut stage = Stage::build(plan, "", |_, node| {
        ip_all(
            node,
            &[
                "rule add pref 1000 fwmark 0x99000000/0xff000000 lookup 7701 protocol 66",
                "route add 198.51.100.0/24 dev ens6 table 7701",
            ],
        )?;
        // With a filter, and without one yet.
        for link in ["ens5", "ens6"] {
            run(node, "tc", &["qdisc", "add", "dev", link, "clsact"])?;
        }
        foreign_filter(node, "ens5", "ingress")
    })?;
    pods_come_and_go(&mut stage)?;
    stage.remove()
}

#[test]
fn what_others_put_into_a_qdisc_of_ours_stays_with_it() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    pods_come_and_go(&mut stage)?;
    let pod = stage.pod("ens5", "again")?;
    let has_clsact = || -> Result<bool> {
        let qdiscs = run(&stage.node, "tc", &["qdisc", "show", "dev", "ens5"])?;
        Ok(qdiscs.contains("clsact"))
    };
    let was_ours = has_clsact()?;
    if !was_ours {
        run(
            &stage.node,
            "tc",
            &["qdisc", "add", "dev", "ens5", "clsact"],
        )?;
    }
    foreign_filter(&stage.node, "ens5", "egress")?;
    pod.delete()?;
    stage.agent().stop()?;
    let ended = stage.agent().uninstall_with(&["--purge"])?;
    ensure!(ended.code == Some(0), "{ended:#?}");
    let left = run(
        &stage.node,
        "tc",
        &["filter", "show", "dev", "ens5", "egress"],
    )?;
    ensure!(left.contains("bytecode"), "{left}: {ended:#?}");
    let qdiscs = run(
        &stage.node,
        "tc",
        &["qdisc", "del", "dev", "ens5", "clsact"],
    );
    qdiscs.map(drop)?;
    stage.is_as_before()
}

#[test]
fn after_addresses_that_the_node_took_for_its_own() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    stage.start()?;
    let pod = stage.pod("ens6", "held")?;
    let hold = |verb: &str, address: &IpAddr| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        ip_all(
            &stage.node,
            &[&format!("address {verb} {address}/{length} dev ens6")],
        )
    };
    pod.addresses.iter().try_for_each(|own| hold("add", own))?;
    eventually("the look-up is first", || {
        let rules = ip(&stage.node, &["rule", "show"])?;
        ensure!(rules.starts_with("0:\tfrom all lookup 769"), "{rules}");
        Ok(())
    })?;
    pod.addresses.iter().try_for_each(|own| hold("del", own))?;
    // While the look-up is still there, or just gone.
    pod.delete()?;
    stage.remove()
}

#[test]
fn after_a_chain_behind_another_plugin_and_beside_its_pods() -> Result<()> {
    let data = TempDir::with_prefix("ebbtide-host-local-")?;
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    let others = stage.agent().manifests().join("others.yaml");
    std::fs::write(others, chain::OTHERS)?;
    stage.start()?;
    let beside = ChainedInterface::on(&mut stage.lab, NODE)?;
    // Another plugin's ipvlan on our NIC, and Ebbtide behind it.
    let config = chain::first(
        "ipvlan",
        &json!({"master": "ens5", "mode": "l3"}),
        &[("172.31.16.0/20", "172.31.16.4")],
        data.path().to_str().context("a path")?,
    );
    let plugin: Plugin = stage.agent().plugin();
    let netns = Netns::new("behind")?;
    let sandbox = Sandbox::new(&netns, "behind", "behind");
    let first = foreign::call(&stage.node, "ADD", &sandbox, &config)?.success()?;
    let ours = json!({
        "cniVersion": "1.0.0",
        "name": "chain-ipvlan",
        "type": "ebbtide",
        "agentSocket": plugin.socket(),
        "prevResult": first,
    })
    .to_string();
    plugin.call("ADD", Some(&sandbox), &ours)?.success()?;
    plugin.call("DEL", Some(&sandbox), &ours)?.success()?;
    foreign::call(&stage.node, "DEL", &sandbox, &config)?.success()?;
    drop(netns);
    beside.delete()?;
    stage.is_gone("guest0")?;
    stage.remove()
}

#[test]
fn after_pods_with_addresses_from_the_clouds_metadata() -> Result<()> {
    let plan = Plan {
        metadata: Some(Cloud::Aws),
        ..Plan::default()
    };
    let mut double = None;
    let lines = format!("cloud: {}\nmetadataSeconds: 5\n", Cloud::Aws.setting());
    let mut stage = Stage::build(plan, &lines, |lab, node| {
        let router = lab.vpc.nic(NODE, "ens6").subnet(Family::V6).gateway;
        let route = format!("-6 route add default via {router} dev ens6 metric 2000");
        ip_all(node, &[&route])?;
        double = Some(MetadataDouble::start(&lab.vpc)?);
        Ok(())
    })?;
    stage.start()?;
    let pod = eventually("an address is believed", || stage.pod("ens6", "cloud"))
        .with_context(|| stage.lab.logs())?;
    pod.delete()?;
    stage.remove()?;
    drop(double);
    Ok(())
}
