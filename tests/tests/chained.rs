//! Behind Debian's ipvlan plugin, and with others' IPAM plugins.

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{
    chain,
    cni::Sandbox,
    foreign::address,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    traffic::{Client, Protocol, Server},
};
use serde_json::json;
use tempfile::TempDir;

#[test]
fn behind_ipvlan_replies_leave_as_their_requests_came() -> Result<()> {
    let data = TempDir::with_prefix("ebbtide-host-local-")?;
    let config = chain::first(
        "ipvlan",
        &json!({"master": "ens5", "mode": "l3"}),
        "172.31.16.0/20",
        "172.31.16.4",
        data.path().to_str().context("a path")?,
    );
    let mut lab = Lab::start(Plan::default())?;
    chain::prove(&mut lab, &config, "eth0").with_context(|| lab.logs())?;
    lab.vpc.assert_no_violations()
}

#[test]
fn addresses_of_host_local_and_static_are_used_kept_and_given_back() -> Result<()> {
    let data = TempDir::with_prefix("ebbtide-host-local-")?;
    let gateway = "172.31.16.1";
    for ipam in [
        json!({
            "type": "host-local",
            "dataDir": data.path(),
            "ranges": [[{"subnet": "172.31.16.0/20", "rangeStart": "172.31.16.4", "gateway": gateway}]],
        }),
        json!({"type": "static", "addresses": [{"address": "172.31.16.5/20", "gateway": gateway}]}),
    ] {
        let mut lab = Lab::start(Plan::default())?;
        let plugin = lab.agent("master").plugin();
        let netns = Netns::new("delegated")?;
        let sandbox = Sandbox {
            container_id: format!("delegated-{}", std::process::id()),
            netns: Some(netns.path()),
            interface: "eth0".into(),
            pod: "delegated".into(),
        };
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": "delegated",
            "type": "ebbtide",
            "master": "ens5",
            "agentSocket": plugin.socket(),
            "ipam": ipam,
        });
        let add = || {
            let config = config.to_string();
            plugin.call("ADD", Some(&sandbox), &config)?.success()
        };
        let result = add()?;
        let own = address(&result)?;
        ensure!(add()?["ips"] == result["ips"], "ADD, repeated");
        // As a runtime passes it on.
        config["prevResult"] = result;
        let config = config.to_string();
        let call = |command: &str| plugin.call(command, Some(&sandbox), &config)?.success();
        call("CHECK")?;
        let web = Plan::web_server(Family::V4);
        let _servers = Server::on(&lab.vpc.world, web, 8080)?;
        let _server = Server::on_any(&netns, 8080)?;
        for protocol in Protocol::BOTH {
            Client::new(&netns, protocol).ask((web, 8080).into())?;
            Client::new(lab.vpc.node("master"), protocol).ask((own, 8080).into())?;
        }
        lab.agent("master").kill()?;
        lab.agent("master").launch()?;
        lab.agent("master").wait_ready()?;
        call("CHECK").context("a new agent")?;
        call("DEL")?;
        call("DEL").context("DEL, repeated")?;
        let kept = std::fs::read_dir(data.path().join("delegated"))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("172."))
            .count();
        ensure!(kept == 0, "host-local keeps {kept}");
        lab.vpc.assert_no_violations()?;
    }
    Ok(())
}
