//! The calls of nerdctl 2 (its OCI hook and go-cni), which no suite of Debian has: made by hand, in its order.

use std::ffi::OsStr;

use anyhow::{Result, ensure};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    foreign::addresses,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    snapshot::Snapshot,
};

use super::NODE;

/// A call for a container as nerdctl names it. It names no pod, and `--ip` is an argument.
fn call(
    plugin: &Plugin,
    command: &str,
    netns: Option<&Netns>,
    arguments: &str,
) -> Result<serde_json::Value> {
    let sandbox = Sandbox {
        container_id: format!("default-{:064x}", std::process::id()),
        netns: netns.map(Netns::path),
        interface: "eth0".into(),
        pod: String::new(),
    };
    let arguments = format!("IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=web{arguments}");
    let variables = [("CNI_ARGS", OsStr::new(&arguments))];
    let mut config = plugin.config("default/ipvlan-ens5");
    config["cniVersion"] = "1.0.0".into();
    let config = config.to_string();
    let outcome = plugin.call_with(command, Some(&sandbox), config.as_bytes(), &variables);
    outcome?.success()
}

#[test]
fn a_container_of_nerdctls_keeps_its_address_when_it_is_started_again() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let before = Snapshot::of(&node)?;
    let plugin = lab.agent(NODE).plugin();
    let pool = &lab.vpc.nic(NODE, "ens5").subnet(Family::V4).secondary;
    let last = pool.iter().rfind(|one| Family::of(**one) == Family::V4);
    let asked = last.map(|address| format!(";IP={address}"));
    for arguments in [String::new(), asked.unwrap_or_default()] {
        let mut had = None;
        for _ in 0..3 {
            // Before each ADD it calls DEL without a namespace, in case the machine was restarted.
            call(&plugin, "DEL", None, &arguments)?;
            let netns = Netns::new("web")?;
            let result = call(&plugin, "ADD", Some(&netns), &arguments)?;
            let has = addresses(&result)?;
            ensure!(last.is_none_or(|last| arguments.is_empty() || has.contains(last)));
            ensure!(had.is_none_or(|had| had == has), "another one: {has:?}");
            had = Some(has);
            call(&plugin, "DEL", Some(&netns), &arguments)?;
            call(&plugin, "DEL", None, &arguments)?;
        }
    }
    before.comes_back(&node)?;
    ensure!(lab.agent(NODE).addresses_in_use()? == 0);
    Ok(())
}
