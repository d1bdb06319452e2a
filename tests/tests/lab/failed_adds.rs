//! An ADD that fails leaves the node as it was, for any request, and whether other pods run or not.

mod requests;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_plugin::wire::{self, Invocation};
use ebbtide_tests::crowd::state::{Allowed, State};
use ebbtide_vpc::{
    agent::Agent,
    cni::{Plugin, Sandbox},
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    snapshot::Snapshot,
};
use requests::{Dice, Ipam, Request, bad, random_requests};
use serde_json::json;

/// Everything that an ADD may change on a node outside of the pod.
struct Node {
    state: State,
    /// The agent's records, addresses and pods.
    agent: BTreeSet<String>,
}

impl Node {
    fn of(netns: &Netns, agent: &Agent) -> Result<Self> {
        let mut lines = BTreeSet::new();
        list(&agent.state(), &mut lines)?;
        lines.insert(format!("{} addresses in use", agent.addresses_in_use()?));
        lines.insert(agent.control(&["pods"])?);
        Ok(Self {
            state: State::of(netns)?,
            agent: lines,
        })
    }

    fn assert_same(&self, later: &Self, moment: &str) -> Result<()> {
        ensure!(
            self.agent == later.agent,
            "{moment}, the agent has {:#?}, not {:#?}",
            later.agent,
            self.agent
        );
        self.state.assert_same(&later.state, moment, &[CLSACT])
    }
}

/// Lists the names of all files. Contents are not compared: the pools' journal grows by an address that was taken and
/// returned. The record of who made a `clsact` stays as long as that does ([`CLSACT`]).
fn list(directory: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            list(&path, lines)?;
        } else if !path.ends_with("settings-before-qdiscs.json") {
            lines.insert(path.display().to_string());
        }
    }
    Ok(())
}

/// The programs, which each agent loads anew.
const PROGRAMS: Allowed = Allowed {
    line: "filter ",
    reason: "programs have other numbers with a new agent",
};

/// The programs of TCX links; see [`PROGRAMS`].
const TCX_PROGRAMS: Allowed = Allowed {
    line: "tcx ",
    reason: PROGRAMS.reason,
};

/// The queueing discipline to which programs are attached without TCX.
const CLSACT: Allowed = Allowed {
    line: "tc qdisc clsact ffff: dev ",
    reason: "somebody may have filters there by now",
};

struct Trial<'l> {
    lab: &'l mut Lab,
    node: Netns,
    ipam: Ipam,
    plugin: Plugin,
}

impl<'l> Trial<'l> {
    fn new(lab: &'l mut Lab) -> Result<Self> {
        Ok(Self {
            node: lab.vpc.node("master").clone(),
            plugin: lab.agent("master").plugin(),
            ipam: Ipam::new()?,
            lab,
        })
    }

    fn look(&mut self) -> Result<Node> {
        Node::of(&self.node, self.lab.agent("master"))
    }

    /// Calls ADD. If it fails, it must have left nothing when it returns; if it succeeds, everything is gone soon after
    /// its DEL. Returns whether it failed.
    fn is_refused_without_a_trace(
        &mut self,
        before: &Node,
        request: &Request,
        number: u64,
    ) -> Result<bool> {
        let pod = Netns::new("failed")?;
        let bare = Snapshot::of(&pod)?;
        let sandbox = Sandbox {
            interface: request.interface.clone(),
            ..Sandbox::new(
                &pod,
                format!("failed-{number}-{}", std::process::id()),
                "failed",
            )
        };
        self.ipam.answer(&request.answer)?;
        let path = self.ipam.path();
        let call = |command: &str| {
            let config = request.config.to_string();
            let variables = [("CNI_PATH", OsStr::new(&path))];
            self.plugin
                .call_with(command, Some(&sandbox), config.as_bytes(), &variables)
        };
        let added = call("ADD")?;
        let failed = added.exit != Some(0);
        if failed {
            added.error()?;
            let later = self.look()?;
            before.assert_same(&later, &format!("after {}", added.stdout))?;
            bare.comes_back(&pod)?;
        }
        let path = self.ipam.path();
        let config = request.config.to_string();
        let variables = [("CNI_PATH", OsStr::new(&path))];
        let deleted =
            self.plugin
                .call_with("DEL", Some(&sandbox), config.as_bytes(), &variables)?;
        // An interface with an invalid name cannot be deleted.
        if deleted.exit != Some(0) && deleted.error()?.code != 4 {
            bail!("DEL: {}", deleted.stdout);
        }
        // The state after a failure was compared already.
        if !failed || number.is_multiple_of(8) {
            eventually("the node is as it was", || {
                let later = Node::of(&self.node, self.lab.agent("master"))?;
                before.assert_same(&later, "after DEL")
            })?;
        }
        bare.comes_back(&pod)?;
        Ok(failed)
    }
}

#[test]
fn a_failed_add_leaves_a_node_with_pods_as_it_was() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let _pod = lab.pod("master", "ens5", "stays")?;
    let mut trial = Trial::new(&mut lab)?;
    let before = trial.look()?;
    let mut requests = bad(&trial.plugin);
    let random = (0..random_requests()).map(|number| Request::random(&trial.plugin, number));
    requests.extend(random);
    let mut refused = 0;
    for (number, request) in requests.iter().enumerate() {
        let refusal = trial.is_refused_without_a_trace(&before, request, number as u64);
        refused += usize::from(
            refusal.with_context(|| format!("{number}: {request:?}\n{}", trial.lab.logs()))?,
        );
    }
    ensure!(
        refused > 5,
        "only {refused} of {} were refused",
        requests.len()
    );
    // What a new agent finds is gone.
    let agent = trial.lab.agent("master");
    agent.kill()?;
    agent.launch()?;
    agent.wait_ready()?;
    eventually("a new agent leaves it so", || {
        let later = Node::of(&trial.node, trial.lab.agent("master"))?;
        let allowed = [CLSACT, PROGRAMS, TCX_PROGRAMS];
        before
            .state
            .assert_same(&later.state, "with a new agent", &allowed)
    })
}

#[test]
fn a_failed_add_leaves_an_idle_node_as_it_was() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let mut trial = Trial::new(&mut lab)?;
    let before = trial.look()?;
    for (number, request) in bad(&trial.plugin).iter().enumerate() {
        let refusal = trial.is_refused_without_a_trace(&before, request, number as u64);
        refusal.with_context(|| format!("{number}: {request:?}\n{}", trial.lab.logs()))?;
    }
    Ok(())
}

#[test]
fn a_plugin_that_is_killed_leaves_nothing_that_its_del_does_not_remove() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let _pod = lab.pod("master", "ens5", "stays")?;
    let mut trial = Trial::new(&mut lab)?;
    let before = trial.look()?;
    trial.ipam.slow()?;
    for (number, address) in ["172.31.16.77/20", "1.2.3.4/1"].into_iter().enumerate() {
        let request = Request::static_on(&trial.plugin, "ens5", address, None);
        trial.ipam.answer(&request.answer)?;
        let pod = Netns::new("killed")?;
        let sandbox = Sandbox::new(
            &pod,
            format!("killed-{number}-{}", std::process::id()),
            "killed",
        );
        let invocation = Invocation {
            command: "ADD".into(),
            container_id: sandbox.container_id.clone(),
            netns: pod.path().display().to_string(),
            if_name: "eth0".into(),
            path: trial.ipam.path(),
            config: request.config.to_string(),
            ..Invocation::default()
        };
        // The agent sees of a killed plugin only that the connection ends.
        let mut stream = UnixStream::connect(trial.plugin.socket())?;
        wire::send(&mut stream, &wire::Request::Cni(invocation))?;
        drop(stream);
        thread::sleep(Duration::from_millis(200));
        let (path, config) = (trial.ipam.path(), request.config.to_string());
        let variables = [("CNI_PATH", OsStr::new(&path))];
        let deleted =
            trial
                .plugin
                .call_with("DEL", Some(&sandbox), config.as_bytes(), &variables)?;
        deleted.success().with_context(|| trial.lab.logs())?;
        eventually("the node is as it was", || {
            let later = Node::of(&trial.node, trial.lab.agent("master"))?;
            before.assert_same(&later, "after the DEL of a killed plugin's ADD")
        })?;
    }
    Ok(())
}

/// The default number of pods, each with several interfaces.
const PODS: u64 = 6;

#[test]
fn interfaces_that_come_fail_and_go_in_any_order_leave_neither_pod_nor_node_anything() -> Result<()>
{
    let mut lab = Lab::start(Plan::default())?;
    let _pod = lab.pod("master", "ens5", "stays")?;
    let mut trial = Trial::new(&mut lab)?;
    let before = trial.look()?;
    for number in 0..PODS.max(random_requests() / 8) {
        let mut dice = Dice(number + 1_000_000);
        let pod = Netns::new("several")?;
        let bare = Snapshot::of(&pod)?;
        let id = format!("several-{number}-{}", std::process::id());
        let mut asked: Vec<(Sandbox, String)> = Vec::new();
        let mut answers = Vec::new();
        for step in 0..2 + dice.up_to(4) {
            let sandbox = Sandbox {
                interface: (*dice.of(&["eth0", "net1", "net2", "veth0"])).into(),
                ..Sandbox::new(&pod, id.clone(), "several")
            };
            let config = match dice.up_to(3) {
                0 => {
                    let network = *dice.of(&["default/ipvlan-ens5", "default/ipvlan-ens6"]);
                    let mut config = trial.plugin.config(network);
                    config["name"] = json!(format!("pools-{step}"));
                    config
                }
                _ => {
                    let mut request = Request::random(&trial.plugin, number * 100 + step);
                    request.config["mode"] = json!("l3");
                    request.config["name"] = json!(format!("static-{step}"));
                    trial.ipam.answer(&request.answer)?;
                    request.config
                }
            }
            .to_string();
            let path = trial.ipam.path();
            let variables = [("CNI_PATH", OsStr::new(&path))];
            let added =
                trial
                    .plugin
                    .call_with("ADD", Some(&sandbox), config.as_bytes(), &variables)?;
            answers.push(format!("{} {config}: {}", sandbox.interface, added.stdout));
            asked.push((sandbox, config));
        }
        while !asked.is_empty() {
            let (sandbox, config) = asked.swap_remove(dice.up_to(asked.len() as u64) as usize);
            let path = trial.ipam.path();
            let variables = [("CNI_PATH", OsStr::new(&path))];
            let deleted =
                trial
                    .plugin
                    .call_with("DEL", Some(&sandbox), config.as_bytes(), &variables)?;
            deleted
                .success()
                .with_context(|| format!("DEL of {config}"))?;
        }
        let left = bare.comes_back(&pod);
        left.with_context(|| format!("pod {number}: {answers:#?}\n{}", trial.lab.logs()))?;
        eventually("the node is as it was", || {
            let later = Node::of(&trial.node, trial.lab.agent("master"))?;
            before.assert_same(&later, "after all of a pod's DELs")
        })
        .with_context(|| format!("pod {number}: {answers:#?}"))?;
    }
    Ok(())
}
