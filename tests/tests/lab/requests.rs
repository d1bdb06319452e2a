//! Unusual but valid requests for an interface of Ebbtide's, and a NIC that other software uses.

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::Sandbox,
    foreign::addresses,
    lab::Lab,
    netns::Netns,
    plan::Plan,
    snapshot::{Snapshot, ip},
};
use serde_json::{Value, json};

#[test]
fn absent_empty_and_null_are_the_same_in_every_version() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let plugin = lab.agent("master").plugin();
    let network = json!("default/ipvlan-ens5");
    for (what, fields, version) in [
        (
            "0.3.0",
            json!({"cniVersion": "0.3.0", "name": "n"}),
            "0.3.0",
        ),
        ("no version", json!({"name": "n"}), "0.1.0"),
        ("no name", json!({"cniVersion": "1.0.0"}), "1.0.0"),
        (
            "empty version",
            json!({"cniVersion": "", "name": ""}),
            "0.1.0",
        ),
        (
            "0.2.0",
            json!({"cniVersion": "0.2.0", "name": "n"}),
            "0.2.0",
        ),
        (
            "empty and null",
            json!({"cniVersion": "1.0.0", "name": "n", "ipam": {}, "mode": "", "mtu": null, "master": "",
                "args": null, "dns": {}, "prevResult": null,
                "runtimeConfig": {"ips": null, "portMappings": [], "bandwidth": null}}),
            "1.0.0",
        ),
        (
            "null",
            json!({"cniVersion": "1.0.0", "name": "n", "ipam": null, "mode": null, "runtimeConfig": null}),
            "1.0.0",
        ),
    ] {
        let mut config = fields;
        config["type"] = json!("ebbtide");
        config["network"] = network.clone();
        config["agentSocket"] = json!(plugin.socket());
        let config = config.to_string();
        let netns = Netns::new("odd")?;
        let sandbox = Sandbox::new(&netns, format!("odd-{}", std::process::id()), "odd");
        let call = |command: &str| -> Result<Value> {
            let outcome = plugin.call(command, Some(&sandbox), &config)?;
            outcome
                .success()
                .with_context(|| format!("{command}, {what}: {config}"))
        };
        let result = call("ADD")?;
        ensure!(result["cniVersion"] == version, "{what}: {result}");
        match version {
            "0.1.0" | "0.2.0" => {
                ensure!(result["ip4"]["ip"].is_string(), "{what}: {result}");
                ensure!(result["ip6"]["gateway"].is_string(), "{what}: {result}");
                ensure!(result["ips"].is_null(), "{what}: {result}");
            }
            _ => ensure!(addresses(&result)?.len() == 2, "{what}: {result}"),
        }
        call("DEL")?;
        ensure!(
            lab.agent("master").addresses_in_use()? == 0,
            "{what}: an address is kept"
        );
    }
    Ok(())
}

#[test]
fn a_nic_that_somebody_has_is_named_with_who_has_it_and_what_to_do() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let plugin = lab.agent("master").plugin();
    let netns = Netns::new("busy")?;
    let sandbox = Sandbox::new(&netns, format!("busy-{}", std::process::id()), "busy");
    let config = plugin.config("default/ipvlan-ens6").to_string();
    for (make, undo, holder, hint) in [
        (
            &["link add mv0 link ens6 type macvlan mode bridge"][..],
            "link del mv0",
            "macvlan interface mv0",
            "one kind",
        ),
        (
            &["link add busy0 type bridge", "link set ens6 master busy0"],
            "link del busy0",
            "a port of the bridge busy0",
            "busy0 as the master",
        ),
    ] {
        for command in make {
            ip(&node, &command.split(' ').collect::<Vec<_>>())?;
        }
        let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
        ensure!(error.code == 102, "{error}");
        for part in [holder, "on ens6", "os error 16"] {
            ensure!(error.msg.contains(part), "{part:?} in {error}");
        }
        ensure!(error.details.contains(hint), "{error}");
        ensure!(
            lab.agent("master").addresses_in_use()? == 0,
            "an address is kept"
        );
        ensure!(!Snapshot::of(&netns)?.mentions("eth0"));
        ip(&node, &undo.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

#[test]
fn what_the_runtime_asks_for_and_nobody_does_is_said() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let plugin = lab.agent("master").plugin();
    let netns = Netns::new("wishes")?;
    let sandbox = Sandbox::new(&netns, "wishes", "wishes");
    let said = "hostPort is not served";
    let mut config = plugin.config("default/ipvlan-ens5");
    config["capabilities"] = json!({"portMappings": true});
    let plain = config.to_string();
    plugin.call("ADD", Some(&sandbox), &plain)?.success()?;
    let log = lab.agent("master").log();
    ensure!(!log.contains(said), "nobody asked: {log}");
    plugin.call("DEL", Some(&sandbox), &plain)?.success()?;
    config["runtimeConfig"] =
        json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let asking = config.to_string();
    plugin.call("ADD", Some(&sandbox), &asking)?.success()?;
    let log = lab.agent("master").log();
    ensure!(log.contains(said), "{said:?} is not in {log}");
    plugin.call("DEL", Some(&sandbox), &asking)?.success()?;
    Ok(())
}
