//! Ebbtide after Debian's ipvlan plugin, with other IPAM plugins, and as another plugin's delegate.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::chain;
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    foreign::{self, addresses},
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    snapshot::Snapshot,
    traffic::{Client, Protocol, Server},
    workspace,
};
use serde_json::json;
use tempfile::TempDir;

#[test]
fn behind_ipvlan_replies_leave_as_their_requests_came() -> Result<()> {
    let data = TempDir::with_prefix("ebbtide-host-local-")?;
    let config = chain::first(
        "ipvlan",
        &json!({"master": "ens5", "mode": "l3"}),
        &[
            ("172.31.16.0/20", "172.31.16.4"),
            ("fd00:16::/64", "fd00:16::4"),
        ],
        data.path().to_str().context("a path")?,
    );
    let mut lab = chain::lab()?;
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
        let mut lab = chain::lab()?;
        let plugin = lab.agent("master").plugin();
        let netns = Netns::new("delegated")?;
        let sandbox = Sandbox::new(
            &netns,
            format!("delegated-{}", std::process::id()),
            "delegated",
        );
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
        let own = addresses(&result)?[0];
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
        let kept = fs::read_dir(data.path().join("delegated"))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("172."))
            .count();
        ensure!(kept == 0, "host-local keeps {kept}");
        lab.vpc.assert_no_violations()?;
    }
    Ok(())
}

/// Writes a meta plugin (CNI specification, section 4: execution by delegation). It passes its environment on, and
/// contains its delegates' configurations. Debian has no real one.
fn mock_meta_plugin(directory: &TempDir, plugin: &Plugin, second: &str) -> Result<PathBuf> {
    for (interface, network) in [("eth0", "default/ipvlan-ens5"), ("net1", second)] {
        let config = plugin.config(network).to_string();
        fs::write(directory.path().join(interface), config)?;
    }
    let script = directory.path().join("mock-meta-plugin");
    let ebbtide = workspace::BINARIES.file("ebbtide")?;
    fs::write(
        &script,
        format!(
            "#!/bin/sh\n\
             cat > /dev/null\n\
             delegate() {{ CNI_IFNAME=$1 {ebbtide} < {directory}/$1; }}\n\
             if [ $CNI_COMMAND = DEL ]; then delegate net1 && delegate eth0; exit; fi\n\
             first=$(delegate eth0) && second=$(delegate net1) || {{ echo \"${{second:-$first}}\"; exit 1; }}\n\
             echo \"$first\"\n",
            ebbtide = ebbtide.display(),
            directory = directory.path().display(),
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

#[test]
fn a_meta_plugin_s_delegates_are_made_checked_and_removed() -> Result<()> {
    let directory = TempDir::with_prefix("ebbtide-meta-")?;
    let mut lab = Lab::start(Plan::default())?;
    let plugin = lab.agent("master").plugin();
    let node = lab.vpc.node("master").clone();
    let before = Snapshot::of(&node)?;
    let netns = Netns::new("delegated")?;
    let sandbox = Sandbox::new(&netns, format!("meta-{}", std::process::id()), "delegated");
    let meta = json!({"cniVersion": "1.0.0", "name": "meta", "type": "mock-meta-plugin"});
    let call = |program: &Path, command: &str| {
        foreign::call_program(&node, program, command, &sandbox, &meta)
    };
    let broken = mock_meta_plugin(&directory, &plugin, "default/nobodys")?;
    let error = call(&broken, "ADD")?.error()?;
    ensure!(error.code == 7 && error.msg.contains("nobodys"), "{error}");
    call(&broken, "DEL")?.success()?;
    ensure!(Snapshot::of(&node)?.links("veth") == before.links("veth"));

    let program = mock_meta_plugin(&directory, &plugin, "default/ipvlan-ens6")?;
    let result = call(&program, "ADD")?.success()?;
    let own = addresses(&result)?;
    call(&program, "CHECK")?.success()?;
    let _server = Server::on_any(&netns, 8080)?;
    for address in &own {
        for protocol in Protocol::BOTH {
            Client::new(&node, protocol).ask((*address, 8080).into())?;
        }
    }
    let inside = Snapshot::of(&netns)?;
    ensure!(inside.mentions("net1") && inside.mentions("eth0"));
    for _ in 0..2 {
        call(&program, "DEL")?.success()?;
    }
    ensure!(Snapshot::of(&node)?.links("veth") == before.links("veth"));
    let left = lab.agent("master").control(&["ip", &own[0].to_string()])?;
    ensure!(!left.contains("in use"), "{left}");
    lab.vpc.assert_no_violations()
}
