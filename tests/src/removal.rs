//! A node before its first agent, and after the removal of the last one.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    agent::{Agent, Uninstalled},
    footprint::{Footprint, Objects},
    lab::Lab,
    manifests,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    pod::Pod,
    snapshot::{Snapshot, ip, run},
};

/// The node that everything is on.
pub const NODE: &str = "master";

/// A lab whose node has never had an agent, and what was on the node then.
#[derive(Debug)]
pub struct Stage {
    /// The lab. Its agents run if somebody launched them.
    pub lab: Lab,
    /// The node.
    pub node: Netns,
    directories: Vec<PathBuf>,
    before: Footprint,
}

impl Stage {
    /// Builds the lab, lets `prepare` do what people and other software have done to the node, and notes the result. The
    /// agent will have `lines` in its configuration.
    ///
    /// # Errors
    /// If a step fails.
    pub fn build(
        plan: Plan,
        lines: &str,
        prepare: impl FnOnce(&Lab, &Netns) -> Result<()>,
    ) -> Result<Self> {
        let mut lab = Lab::without_agents(plan)?;
        let node = lab.vpc.node(NODE).clone();
        // Nobody but the agent makes this node forward; one link forwards by a person's wish.
        node.sysctls(&[
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/ens6/forwarding", "1"),
            ("net/ipv6/conf/all/forwarding", "0"),
        ])?;
        prepare(&lab, &node)?;
        let manifests = manifests::yaml(&lab.vpc.plan);
        lab.prepare_agents(&manifests, lines)?;
        let agent = lab.agent(NODE);
        agent.install()?;
        agent.forget_directories()?;
        let directories = agent.directories();
        let before = Footprint::settled(&node, &directories)?;
        Ok(Self {
            lab,
            node,
            directories,
            before,
        })
    }

    /// Returns the node's agent.
    pub fn agent(&mut self) -> &mut Agent {
        self.lab.agent(NODE)
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// If it is not ready in time; the error has its log.
    pub fn start(&mut self) -> Result<()> {
        self.agent().launch()?;
        self.agent().wait_ready()
    }

    /// Makes a pod. Not by [`Lab::pod`], whose taps would keep its namespace alive, with its interface and programs.
    ///
    /// # Errors
    /// If the plugin fails; the error has the agent's log.
    pub fn pod(&mut self, nic: &str, name: &str) -> Result<Pod> {
        let plugin = self.agent().plugin();
        let made = Pod::create(&plugin, NODE, nic, &manifests::network(nic), name);
        made.with_context(|| self.lab.logs())
    }

    /// Asserts that the node is as it was before the first agent, byte for byte.
    ///
    /// # Errors
    /// If it is not; the error lists what differs.
    pub fn is_as_before(&self) -> Result<()> {
        self.before.comes_back(&self.node, &self.directories)
    }

    /// Waits until a link of the node is gone, with its namespace.
    ///
    /// # Errors
    /// If it stays.
    pub fn is_gone(&self, link: &str) -> Result<()> {
        eventually(format!("{link} is gone"), || {
            let now = Snapshot::of(&self.node)?;
            ensure!(!now.mentions(link), "{now:#?}");
            Ok(())
        })
    }

    /// Stops the agent, removes everything, and asserts that the node is as it was, and that a second removal finds
    /// nothing.
    ///
    /// # Errors
    /// If something is left.
    pub fn remove(&mut self) -> Result<()> {
        let agent = self.agent();
        let process = agent.process_id().context("no agent runs")?;
        let objects = Objects::of(process)?;
        agent.stop()?;
        let planned = agent.uninstall_with(&["--dry-run", "--purge"])?;
        let says_nothing_is_left = planned.log.contains("is left on this node");
        ensure!(!says_nothing_is_left, "of a dry run: {planned:#?}");
        let done = agent.uninstall_with(&["--purge"])?;
        is_done(&done)?;
        self.is_as_before().with_context(|| done.log.clone())?;
        objects.are_gone()?;
        // What a dry run tells is what happens then.
        let what = |ended: &Uninstalled, kind: &str| -> Vec<String> {
            let removed = ended.report["removed"].as_array().cloned();
            let removed = removed.unwrap_or_default().into_iter();
            let mut all: Vec<String> = removed
                .filter(|item| item["kind"] == kind)
                .map(|item| item["what"].to_string())
                .collect();
            all.sort();
            all
        };
        for kind in ["rule", "route", "filter", "link", "pins"] {
            let (planned, done) = (what(&planned, kind), what(&done, kind));
            ensure!(
                planned == done,
                "{kind}: {planned:?} planned, {done:?} done"
            );
        }
        let again = self.agent().uninstall_with(&["--purge"])?;
        is_done(&again)?;
        let removed = again.report["removed"].as_array();
        ensure!(removed.is_some_and(Vec::is_empty), "{again:?}");
        self.is_as_before()
    }
}

/// Asserts that nothing is left.
///
/// # Errors
/// If it is; the error has the report and the log.
pub fn is_done(ended: &Uninstalled) -> Result<()> {
    let is_done = ended.code == Some(0) && ended.report["outcome"] == "nothing";
    ensure!(is_done, "{ended:#?}");
    Ok(())
}

/// Runs `ip` for each of these lines.
///
/// # Errors
/// If one fails.
pub fn ip_all(node: &Netns, lines: &[&str]) -> Result<()> {
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        ip(node, &words).with_context(|| (*line).to_owned())?;
    }
    Ok(())
}

/// Adds a tc filter of somebody else's, which matches nothing (classic BPF: `ret 0`).
///
/// # Errors
/// If `tc` fails.
pub fn foreign_filter(node: &Netns, link: &str, hook: &str) -> Result<()> {
    let filter = ["filter", "add", "dev", link, hook, "pref", "7", "bpf"];
    let bytecode = ["bytecode", "1,6 0 0 0,"];
    run(node, "tc", &[&filter[..], &bytecode].concat()).map(drop)
}
