//! A foreign link in the pod under a name that one of Ebbtide's links needs: it stays, with everything on it.

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::Sandbox,
    foreign,
    lab::Lab,
    netns::Netns,
    plan::Plan,
    snapshot::{Snapshot, ip},
};
use serde_json::json;

/// The foreign link, and its description in the error.
struct InTheWay {
    what: &'static str,
    /// The commands, run in the node; `POD` is the path of the pod's namespace.
    make: &'static [&'static str],
    link: &'static str,
    called: &'static str,
}

const IN_THE_WAY: [InTheWay; 4] = [
    InTheWay {
        what: "ipvlan on the same NIC",
        make: &["link add eth0 link ens5 netns POD type ipvlan mode l3"],
        link: "eth0",
        called: "of kind ipvlan on ens5",
    },
    InTheWay {
        what: "ipvlan on another NIC",
        make: &["link add eth0 link ens6 netns POD type ipvlan mode l2"],
        link: "eth0",
        called: "of kind ipvlan on the node's link number",
    },
    InTheWay {
        what: "another plugin's veth",
        make: &["link add eth0 netns POD type veth peer name other1"],
        link: "eth0",
        called: "of kind veth",
    },
    InTheWay {
        what: "another's veth0",
        make: &["link add veth0 netns POD type veth peer name other1"],
        link: "veth0",
        called: "of kind veth",
    },
];

#[test]
fn a_link_of_others_under_our_name_stays_and_the_add_says_what_it_is() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    for row in IN_THE_WAY {
        let pod = Netns::new("taken")?;
        let path = pod.path().display().to_string();
        for command in row.make {
            let command = command.replace("POD", &path);
            ip(&node, &command.split(' ').collect::<Vec<_>>())?;
        }
        ip(&pod, &["link", "set", row.link, "up"])?;
        ip(&pod, &["address", "add", "10.89.0.2/24", "dev", row.link])?;
        ip(
            &pod,
            &[
                "route",
                "add",
                "default",
                "via",
                "10.89.0.1",
                "dev",
                row.link,
                "onlink",
            ],
        )?;
        ip(
            &pod,
            &[
                "rule",
                "add",
                "from",
                "10.89.0.2",
                "lookup",
                "100",
                "pref",
                "500",
            ],
        )?;
        let before = (Snapshot::of(&node)?, Snapshot::of(&pod)?);
        let sandbox = Sandbox::new(&pod, format!("taken-{}", std::process::id()), "taken");
        let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
        for part in [row.link, row.called] {
            ensure!(
                error.msg.contains(part),
                "{}: {part:?} in {error}",
                row.what
            );
        }
        ensure!(
            error.details.contains("another name"),
            "{}: {error}",
            row.what
        );
        let same = before.1.assert_same(&Snapshot::of(&pod)?);
        same.with_context(|| row.what)?;
        ensure!(lab.agent("master").addresses_in_use()? == 0, "{}", row.what);
        plugin.call("DEL", Some(&sandbox), &config)?.success()?;
        let same = before.1.assert_same(&Snapshot::of(&pod)?);
        same.with_context(|| format!("{}, after DEL", row.what))?;
        before.0.comes_back(&node).with_context(|| row.what)?;
        ip(&pod, &["link", "del", row.link])?;
    }
    Ok(())
}

#[test]
fn a_pod_of_ours_under_another_lists_name_goes_on() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let pod = lab.pod("master", "ens5", "a")?;
    let plugin = lab.agent("master").plugin();
    let before = (Snapshot::of(&node)?, Snapshot::of(&pod.netns)?);
    let used = lab.agent("master").addresses_in_use()?;
    let mut config = plugin.config("default/ipvlan-ens5");
    config["name"] = json!("another-list");
    let config = config.to_string();
    let error = plugin.call("ADD", Some(&pod.sandbox), &config)?.error()?;
    for part in ["eth0", "in network ebbtide already"] {
        ensure!(error.msg.contains(part), "{part:?} in {error}");
    }
    plugin.call("DEL", Some(&pod.sandbox), &config)?.success()?;
    before.1.assert_same(&Snapshot::of(&pod.netns)?)?;
    before.0.comes_back(&node)?;
    ensure!(lab.agent("master").addresses_in_use()? == used);
    pod.call("CHECK")?;
    pod.delete()
}

#[test]
fn what_the_ipvlan_plugin_made_is_not_taken_away() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let plugin = lab.agent("master").plugin();
    let pod = Netns::new("std")?;
    let sandbox = Sandbox::new(&pod, format!("std-{}", std::process::id()), "std");
    let theirs = json!({
        "cniVersion": "1.0.0", "name": "std", "type": "ipvlan", "master": "ens6", "mode": "l3",
        "ipam": {"type": "static", "addresses": [{"address": "172.31.32.200/20"}]},
    });
    foreign::call(&node, "ADD", &sandbox, &theirs)?.success()?;
    let before = Snapshot::of(&pod)?;
    let config = plugin.config("default/ipvlan-ens5").to_string();
    plugin.call("ADD", Some(&sandbox), &config)?.error()?;
    before.assert_same(&Snapshot::of(&pod)?)?;
    foreign::call(&node, "DEL", &sandbox, &theirs)?.success()?;
    Ok(())
}
