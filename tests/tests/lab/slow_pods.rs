//! A slow pod: the node and the other pods do not wait for it.

use std::{ffi::OsStr, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use ebbtide_tests::slow_ipam::SlowIpam;
use ebbtide_vpc::{
    cni::Sandbox,
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    snapshot::{Snapshot, ip},
};
use serde_json::json;

/// The container is locked while its IPAM plugin does not answer. The test asserts an order: everything else is in its
/// desired state before that plugin has answered.
#[test]
fn while_an_ipam_plugin_takes_its_time_the_node_and_other_pods_are_reconciled() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let mut ipam =
        SlowIpam::new(r#"{"cniVersion": "1.0.0", "ips": [{"address": "172.31.16.77/20"}]}"#)?;
    let plugin = lab.agent("master").plugin();
    let netns = Netns::new("slow")?;
    // The first container in every list.
    let sandbox = Sandbox::new(&netns, format!("a-slow-{}", std::process::id()), "a-slow");
    let config = json!({
        "cniVersion": "1.0.0", "name": "slow", "type": "ebbtide", "master": "ens5",
        "agentSocket": plugin.socket(), "ipam": {"type": SlowIpam::NAME},
    })
    .to_string();
    let path = ipam.path();
    let variables = [("CNI_PATH", OsStr::new(&path))];
    let call = |command| plugin.call_with(command, Some(&sandbox), config.as_bytes(), &variables);
    call("ADD")?.success().with_context(|| lab.logs())?;
    let quick = lab.pod("master", "ens6", "quick")?;
    let node = lab.vpc.node("master").clone();
    // The VPC knows it on ens6, and no pod has it.
    let secondary = &lab.vpc.nic("master", "ens6").subnet(Family::V4).secondary;
    let address = secondary.last().context("a secondary address")?.to_string();
    let rule = ["rule", "del", "pref", "1003", "oif", "ens6"];
    let before = Snapshot::of(&node)?;
    ipam.hold("DEL")?;
    thread::scope(|scope| {
        let deleting = scope.spawn(|| call("DEL"));
        // Once by its ADD, once by its DEL.
        let seen = ipam.wait_called(2).and_then(|()| {
            ip(
                &node,
                &["address", "add", &format!("{address}/24"), "dev", "ens6"],
            )?;
            let way = format!("{address} via");
            eventually("the other pod's route to the node's new address", || {
                ensure!(Snapshot::of(&quick.netns)?.mentions(&way), "no {way}");
                Ok(())
            })?;
            ip(
                &node,
                &["address", "del", &format!("{address}/24"), "dev", "ens6"],
            )?;
            ip(&node, &rule)?;
            eventually("the node's rule", || {
                let now = Snapshot::of(&node)?;
                ensure!(now.mentions("oif ens6"), "{now:#?}");
                Ok(())
            })?;
            ensure!(!deleting.is_finished(), "the IPAM plugin was not slow");
            Ok(())
        });
        ipam.release()?;
        let deleted = deleting
            .join()
            .map_err(|_| anyhow!("the caller panicked"))?;
        seen.with_context(|| lab.logs())?;
        deleted?.success().map(drop)
    })?;
    before
        .assert_within(&Snapshot::of(&node)?)
        .err()
        .context("the slow pod's part is gone")?;
    // What follows from the node's last address for this pod may come with the next pass.
    eventually("the other pod's CHECK", || quick.call("CHECK"))?;
    quick.delete()
}
