//! The ipvlan mode of a NIC is the mode of all its children: Ebbtide's first one does not change that of others.

use std::process::{Child, Stdio};

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

/// A process in a namespace, as every container has one.
struct Process(Child);

impl Process {
    fn inside(netns: &Netns) -> Result<Self> {
        let mut command = netns.command("sleep");
        let child = command.arg("600").stdin(Stdio::null()).spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is our own process, and its result does not matter.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a foreign child of ens5, called `old0`, in mode l2, comes to exist.
#[derive(Clone, Copy, Debug)]
enum Comes {
    /// A CNI plugin makes it in the pod's namespace; its mode is l2 by default.
    ByPlugin,
    /// It is made in the host and then moved, as by Docker.
    Moved,
    /// It stays in the host.
    InHost,
}

impl Comes {
    fn make(self, node: &Netns, pod: &Netns) -> Result<()> {
        let far = pod.path();
        let far = far.to_str().context("a path that is no text")?;
        let add: Vec<&str> = "link add old0 link ens5 type ipvlan mode l2"
            .split(' ')
            .collect();
        match self {
            Self::ByPlugin => {
                let sandbox = Sandbox {
                    interface: "old0".into(),
                    ..Sandbox::new(pod, format!("old-{}", std::process::id()), "old")
                };
                let config = json!({
                    "cniVersion": "0.3.1", "name": "old", "type": "ipvlan", "master": "ens5",
                    "ipam": {"type": "static", "addresses": [{"address": "172.31.16.200/20"}]},
                });
                foreign::call(node, "ADD", &sandbox, &config)?.success()?;
            }
            Self::Moved => {
                ip(node, &add)?;
                ip(node, &["link", "set", "old0", "netns", far])?;
                ip(pod, &["link", "set", "old0", "up"])?;
            }
            Self::InHost => {
                ip(node, &add)?;
                ip(node, &["link", "set", "old0", "up"])?;
            }
        }
        Ok(())
    }

    const fn place<'n>(self, node: &'n Netns, pod: &'n Netns) -> &'n Netns {
        match self {
            Self::InHost => node,
            Self::ByPlugin | Self::Moved => pod,
        }
    }
}

fn mode(place: &Netns) -> Result<String> {
    let text = ip(place, &["-d", "link", "show", "old0"])?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "ipvlan");
    Ok(words.nth(2).unwrap_or_default().to_owned())
}

#[test]
fn children_of_others_keep_their_mode_and_the_add_says_whose_they_are() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let bare = Snapshot::of(&node)?;
    for comes in [Comes::ByPlugin, Comes::Moved, Comes::InHost] {
        // Some objects of the previous row's last pod are removed a little later.
        bare.comes_back(&node)?;
        let old = Netns::new("old")?;
        let _process = Process::inside(&old)?;
        comes.make(&node, &old)?;
        let place = comes.place(&node, &old);
        let numbers = ip(&node, &["netns", "list-id"])?;
        let pod = Netns::new("new")?;
        let sandbox = Sandbox::new(&pod, format!("new-{}", std::process::id()), "new");
        let before = (Snapshot::of(&node)?, Snapshot::of(&pod)?);
        let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
        ensure!(error.code == 7, "{comes:?}: {error}");
        for part in ["ens5", "old0", "mode l2", "mode l3"] {
            ensure!(error.msg.contains(part), "{comes:?}: {part:?} in {error}");
        }
        let said = match comes {
            Comes::InHost => "in the host",
            _ => "(sleep)",
        };
        ensure!(error.msg.contains(said), "{comes:?}: {error}");
        ensure!(mode(place)? == "l2", "{comes:?}: it is {}", mode(place)?);
        ensure!(lab.agent("master").addresses_in_use()? == 0, "{comes:?}");
        before.1.assert_same(&Snapshot::of(&pod)?)?;
        before.0.comes_back(&node)?;
        ensure!(
            ip(&node, &["netns", "list-id"])? == numbers,
            "{comes:?}: looking has numbered namespaces"
        );
        let (findings, _) = lab.agent("master").doctor()?;
        let mut told = findings.iter();
        let told = told.find(|finding| finding.what.contains("wants mode l3 on ens5"));
        let told = told.with_context(|| format!("{comes:?}: the doctor is silent"))?;
        ensure!(told.what.contains("old0"), "{told}");

        // Their mode is ours, or they are gone: then the interface is made.
        ip(
            place,
            &["link", "set", "old0", "type", "ipvlan", "mode", "l3"],
        )?;
        plugin.call("ADD", Some(&sandbox), &config)?.success()?;
        plugin.call("DEL", Some(&sandbox), &config)?.success()?;
        ip(
            place,
            &["link", "set", "old0", "type", "ipvlan", "mode", "l2"],
        )?;
        plugin.call("ADD", Some(&sandbox), &config)?.error()?;
        ip(place, &["link", "del", "old0"])?;
        plugin.call("ADD", Some(&sandbox), &config)?.success()?;
        plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    }
    Ok(())
}

#[test]
fn children_of_another_nic_or_node_are_nobodys_business_here() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let nodes: Vec<String> = lab
        .vpc
        .plan
        .nodes
        .iter()
        .map(|node| node.name.clone())
        .collect();
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let (old, pod) = (Netns::new("old")?, Netns::new("new")?);
    let _process = Process::inside(&old)?;
    let far = old.path();
    let far = far.to_str().context("a path that is no text")?;
    for (number, (node, nic)) in [("master", "ens6")]
        .into_iter()
        .chain(
            nodes
                .iter()
                .filter(|node| *node != "master")
                .map(|node| (node.as_str(), "ens5")),
        )
        .enumerate()
    {
        let name = format!("old{number}");
        ip(
            lab.vpc.node(node),
            &[
                "link", "add", &name, "link", nic, "netns", far, "type", "ipvlan", "mode", "l2",
            ],
        )?;
    }
    let sandbox = Sandbox::new(&pod, format!("new-{}", std::process::id()), "new");
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    let left = ip(&old, &["-d", "link", "show", "type", "ipvlan"])?;
    ensure!(!left.contains("mode l3"), "{left}");
    Ok(())
}
