//! Unusual but valid requests after another plugin, in this kernel.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    lab::Lab,
    netns::Netns,
    plan::Plan,
    snapshot::{Snapshot, ip},
};
use serde_json::{Value, json};

/// Starts a lab whose agents accept the addresses of [`pod`]'s pods, which no route leads to.
fn lab() -> Result<Lab> {
    Lab::configured(Plan::default(), "foreignSubnets: [10.88.0.0/24]\n")
}

/// Creates a pod with an eth0 that has this address.
fn pod(number: usize) -> Result<(Netns, Sandbox)> {
    let name = format!("odd{number}");
    let netns = Netns::new(&name)?;
    let address = format!("10.88.0.{}/24", 10 + number);
    for command in [
        vec!["link", "add", "eth0", "type", "veth", "peer", "name", "far"],
        vec!["link", "set", "far", "up"],
        vec!["link", "set", "eth0", "up"],
        vec!["address", "add", &address, "dev", "eth0"],
    ] {
        ip(&netns, &command)?;
    }
    let sandbox = Sandbox::new(&netns, format!("{name}-{}", std::process::id()), &name);
    Ok((netns, sandbox))
}

/// Returns results of earlier plugins for a pod with `address`, each with a name and its CNI version.
fn results(address: &str) -> Vec<(&'static str, &'static str, Value)> {
    let whole = format!("{address}/24");
    vec![
        (
            "Calico: the host's end of the pair alone",
            "0.3.1",
            json!({"cniVersion": "0.3.1", "interfaces": [{"name": "calia1b2"}],
                "ips": [{"version": "4", "address": format!("{address}/32")}], "dns": {}}),
        ),
        (
            "Azure: no sandbox",
            "0.3.0",
            json!({"cniVersion": "0.3.0", "interfaces": [{"name": "eth0"}],
                "ips": [{"version": "4", "address": whole, "gateway": "10.88.0.1", "interface": 0}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}], "dns": {}}),
        ),
        (
            "a script: empty texts, and an index of none",
            "0.4.0",
            json!({"interfaces": [{"name": "eth0", "sandbox": "/x", "mac": ""}],
                "ips": [{"version": "4", "address": whole, "gateway": "", "interface": -1}],
                "routes": [{"dst": "0.0.0.0/0", "gw": ""}]}),
        ),
        (
            "nulls for lists",
            "1.0.0",
            json!({"cniVersion": "1.0.0", "interfaces": null, "routes": null, "dns": null,
                "ips": [{"address": whole, "gateway": null}]}),
        ),
        (
            "no addresses at all: the pod has one",
            "1.1.0",
            json!({"cniVersion": "1.1.0", "interfaces": [{"name": "veth7"}], "dns": {}}),
        ),
        (
            "a list without a version",
            "",
            json!({"ip4": {"ip": whole, "gateway": "10.88.0.1", "routes": []}}),
        ),
    ]
}

#[test]
fn results_of_calico_azure_and_scripts_are_understood() -> Result<()> {
    let mut lab = lab()?;
    let plugin = lab.agent("master").plugin();
    for (number, (what, version, _)) in results("").iter().enumerate() {
        let (netns, sandbox) = pod(number)?;
        let before = Snapshot::of(&netns)?;
        let address = format!("10.88.0.{}", 10 + number);
        let previous = results(&address)[number].2.clone();
        let config = json!({
            "cniVersion": version, "name": null, "type": "ebbtide", "ipam": {}, "mode": "",
            "runtimeConfig": {"ips": null}, "args": null, "prevResult": previous,
            "agentSocket": plugin.socket(),
        })
        .to_string();
        let add = || -> Result<Value> {
            let outcome = plugin.call("ADD", Some(&sandbox), &config)?;
            outcome.success().with_context(|| what.to_string())
        };
        let result = add()?;
        ensure!(result["ips"] == previous["ips"], "{what}: {result}");
        ensure!(add()? == result, "{what}, repeated");
        // The route to the pod is by its own veth pair now.
        let host = Snapshot::of(lab.vpc.node("master"))?;
        ensure!(host.mentions(&address), "{what}: {host:?}");
        ensure!(Snapshot::of(&netns)?.mentions("veth0"), "{what}");
        let deleted = plugin.call("DEL", Some(&sandbox), &config)?;
        deleted.success().with_context(|| what.to_string())?;
        before
            .assert_same(&Snapshot::of(&netns)?)
            .with_context(|| what.to_string())?;
    }
    let netns = Netns::new("bare")?;
    let sandbox = Sandbox::new(&netns, format!("bare-{}", std::process::id()), "bare");
    let config = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "ebbtide", "agentSocket": plugin.socket(),
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.9/24"}]},
    });
    let error = plugin
        .call("ADD", Some(&sandbox), &config.to_string())?
        .error()?;
    ensure!(error.code == 7 && error.msg.contains("eth0"), "{error}");
    Ok(())
}

/// Returns a chained configuration for the agent of `plugin`, with a result in it.
fn behind(plugin: &Plugin, previous: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "odd", "type": "ebbtide", "agentSocket": plugin.socket(),
        "prevResult": previous,
    })
}

#[test]
fn a_list_of_attachments_that_is_not_understood_costs_no_pod_its_network() -> Result<()> {
    let mut lab = lab()?;
    let plugin = lab.agent("master").plugin();
    let (netns, sandbox) = pod(50)?;
    let bare = Snapshot::of(&netns)?;
    let config = behind(&plugin, json!({"ips": [{"address": "10.88.0.60/24"}]}));
    plugin
        .call("ADD", Some(&sandbox), &config.to_string())?
        .success()?;
    let before = Snapshot::of(&netns)?;
    let gc = |list: Value| {
        let mut config = config.clone();
        config["cni.dev/valid-attachments"] = list;
        plugin.call("GC", None, &config.to_string())
    };
    for list in [
        json!(null),
        json!([null]),
        json!([{}]),
        json!([[]]),
        json!([{"containerID": sandbox.container_id, "ifname": "eth0"}, null]),
        json!([{"containerID": sandbox.container_id}]),
        json!({"0": {"containerID": sandbox.container_id, "ifname": "eth0"}}),
        json!("x"),
    ] {
        let error = gc(list.clone())?
            .error()
            .with_context(|| list.to_string())?;
        ensure!(error.code == 7, "{list}: {error}");
        before
            .assert_same(&Snapshot::of(&netns)?)
            .with_context(|| list.to_string())?;
    }
    gc(json!([{"containerID": sandbox.container_id, "ifname": "eth0"}]))?.success()?;
    before.assert_same(&Snapshot::of(&netns)?)?;
    gc(json!([]))?.success()?;
    bare.assert_same(&Snapshot::of(&netns)?)
}

#[test]
fn what_is_no_result_and_what_is_no_text_is_refused_and_leaves_nothing() -> Result<()> {
    let mut lab = lab()?;
    let plugin = lab.agent("master").plugin();
    let (netns, sandbox) = pod(51)?;
    let node = lab.vpc.node("master").clone();
    let before = (Snapshot::of(&node)?, Snapshot::of(&netns)?);
    let good = behind(&plugin, json!({"ips": [{"address": "10.88.0.61/24"}]})).to_string();
    let add = |config: &[u8], variables: &[(&str, &OsStr)]| {
        plugin
            .call_with("ADD", Some(&sandbox), config, variables)?
            .error()
    };
    for previous in [
        json!([]),
        json!([[], [], []]),
        json!("x"),
        json!(7),
        json!({"ips": [[]]}),
    ] {
        let error = add(
            behind(&plugin, previous.clone()).to_string().as_bytes(),
            &[],
        );
        let error = error.with_context(|| previous.to_string())?;
        ensure!(error.code == 6, "{previous}: {error}");
    }
    for config in [
        &b"[]"[..],
        b"\"x\"",
        b"{\"name\":\"\xff\"}",
        &[b' '; (1 << 20) + 1],
    ] {
        let error = add(config, &[])?;
        ensure!(error.code == 6, "{error}");
    }
    for variable in ["CNI_ARGS", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        let error = add(good.as_bytes(), &[(variable, OsStr::from_bytes(b"a=\xff"))])?;
        ensure!(error.code == 4 && error.msg.contains(variable), "{error}");
    }
    before.0.assert_same(&Snapshot::of(&node)?)?;
    before.1.assert_same(&Snapshot::of(&netns)?)?;
    // The pod has one of these two.
    let both = json!({"ips": [{"address": "10.88.0.61/24"}, {"address": "10.88.0.99/24"}]});
    let config = behind(&plugin, both).to_string();
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    let host = Snapshot::of(&node)?;
    ensure!(
        host.mentions("10.88.0.61") && !host.mentions("10.88.0.99"),
        "{host:?}"
    );
    plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    before.1.assert_same(&Snapshot::of(&netns)?)
}

#[test]
fn a_pod_with_the_longest_name_that_there_is_gets_its_interface() -> Result<()> {
    let mut lab = lab()?;
    let plugin = lab.agent("master").plugin();
    let config = behind(&plugin, json!({"ips": [{"address": "10.88.0.62/24"}]})).to_string();
    for length in [63, 253, 30_000] {
        let (netns, mut sandbox) = pod(52)?;
        let before = links(&netns)?;
        sandbox.pod = "x".repeat(length);
        plugin
            .call("ADD", Some(&sandbox), &config)?
            .success()
            .with_context(|| format!("a name of {length} letters"))?;
        plugin.call("CHECK", Some(&sandbox), &config)?.success()?;
        plugin.call("DEL", Some(&sandbox), &config)?.success()?;
        assert_eq!(links(&netns)?, before, "a name of {length} letters");
    }
    Ok(())
}

/// Returns the links of a namespace by name. Addresses and routes of a new veth pair may still change.
fn links(netns: &Netns) -> Result<Vec<String>> {
    let shown = ip(netns, &["-brief", "link", "show"])?;
    let names = shown
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

#[test]
fn dhcp_is_refused_before_anything_is_made_and_can_be_deleted() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let plugin = lab.agent("master").plugin();
    let netns = Netns::new("dhcp")?;
    let sandbox = Sandbox::new(&netns, format!("dhcp-{}", std::process::id()), "dhcp");
    let before = (Snapshot::of(&node)?, Snapshot::of(&netns)?);
    let config = json!({
        "cniVersion": "1.0.0", "name": "dh", "type": "ebbtide", "master": "ens5", "mode": "l2",
        "ipam": {"type": "dhcp"}, "agentSocket": plugin.socket(),
    })
    .to_string();
    let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
    ensure!(error.code == 2 && error.msg.contains("dhcp"), "{error}");
    ensure!(error.details.contains("host-local"), "{error}");
    plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    before.0.assert_same(&Snapshot::of(&node)?)?;
    before.1.assert_same(&Snapshot::of(&netns)?)
}

#[test]
fn what_cannot_be_a_pods_namespace_or_interface_is_refused_before_anything_is_made() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let plugin = lab.agent("master").plugin();
    let pod = Netns::new("names")?;
    let before = (Snapshot::of(&node)?, Snapshot::of(&pod)?);
    let own = plugin.config("default/ipvlan-ens5");
    let mut chained = own.clone();
    chained["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.9/24"}]});
    for (netns, interface, said) in [
        (&node, "eth0", "the node's own network namespace"),
        (&pod, "%d", "'%'"),
        (&pod, "eth%d", "'%'"),
        (&pod, "all", "is not an interface's name"),
        (&pod, "default", "is not an interface's name"),
        (&pod, "lo", "loopback"),
    ] {
        let sandbox = Sandbox {
            interface: interface.into(),
            ..Sandbox::new(netns, format!("names-{}", std::process::id()), "names")
        };
        for config in [&own, &chained] {
            let config = config.to_string();
            let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
            ensure!(error.code == 4, "{interface}: {error}");
            ensure!(error.msg.contains(said), "{interface}: {said:?} in {error}");
            // DEL of such a name may fail or succeed; it must not touch the link.
            plugin.call("DEL", Some(&sandbox), &config)?;
            before.0.assert_same(&Snapshot::of(&node)?)?;
            before.1.assert_same(&Snapshot::of(&pod)?)?;
            ensure!(lab.agent("master").addresses_in_use()? == 0);
        }
    }
    Ok(())
}
