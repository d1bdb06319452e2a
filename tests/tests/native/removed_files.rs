//! Somebody removes the files that the agent has made for others to call it by: its socket, the plugin, the configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::Sandbox, foreign, lab::Lab, manifests, netns::Netns, patience::eventually, plan::Plan,
    snapshot::ip,
};
use serde_json::{Value, json};

const NODE: &str = "master";

/// More than two of the agent's looks at these files (`LOOK_INTERVAL` of the server, `POLL_INTERVAL` of the installation).
const LOOKS: Duration = Duration::from_secs(12);

/// A node whose agent has installed the plugin that the runtime calls.
struct Stage {
    lab: Lab,
    node: Netns,
    plugin: PathBuf,
    configuration: PathBuf,
    socket: PathBuf,
}

impl Stage {
    fn build() -> Result<Self> {
        let mut lab = Lab::without_agents(Plan::default())?;
        let manifests = manifests::yaml(&lab.vpc.plan);
        lab.prepare_agents(&manifests, "foreignSubnets: [10.88.0.0/24]\n")?;
        let agent = lab.agent(NODE);
        agent.install()?;
        agent.launch()?;
        agent.wait_ready()?;
        let [plugins, configurations] = agent.cni_directories();
        Ok(Self {
            plugin: plugins.join("ebbtide"),
            configuration: configurations.join("00-ebbtide.conflist"),
            socket: agent.socket(),
            node: lab.vpc.node(NODE).clone(),
            lab,
        })
    }

    /// Adds a pod whose `eth0` another plugin has made, and deletes it, by the installed plugin.
    fn add_and_delete(&self) -> Result<()> {
        let netns = Netns::new("removed")?;
        for command in [
            "link add eth0 type veth peer name far",
            "link set far up",
            "link set eth0 up",
            "address add 10.88.0.10/24 dev eth0",
        ] {
            ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
        }
        let sandbox = Sandbox::new(&netns, format!("removed-{}", std::process::id()), "removed");
        let config = json!({
            "cniVersion": "1.0.0", "name": "n", "type": "ebbtide", "agentSocket": self.socket,
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.10/24"}]},
        });
        let call = |command: &str| -> Result<Value> {
            let called =
                foreign::call_program(&self.node, &self.plugin, command, &sandbox, &config)?;
            called.success()
        };
        call("ADD")?;
        call("DEL")?;
        Ok(())
    }

    /// Removes a file without which no pod can be added, and waits until one can.
    fn comes_back(&self, file: &Path) -> Result<()> {
        self.add_and_delete().context("before")?;
        fs::remove_file(file)?;
        // The agent may have looked meanwhile.
        ensure!(
            self.add_and_delete().is_err() || file.exists(),
            "it is not needed"
        );
        eventually("ADD", || self.add_and_delete())
    }
}

#[test]
fn the_socket_and_the_plugin_that_somebody_removed_are_made_anew_and_pods_are_added() -> Result<()>
{
    let mut stage = Stage::build()?;
    for (file, said) in [
        (&stage.socket, "something has removed the socket"),
        (&stage.plugin, "installed plugin="),
    ] {
        let already = stage.lab.logs().matches(said).count();
        stage
            .comes_back(file)
            .with_context(|| stage.lab.logs())
            .with_context(|| file.display().to_string())?;
        let now = stage.lab.logs().matches(said).count();
        ensure!(now == already + 1, "{said:?}: {}", stage.lab.logs());
    }
    // Both at once.
    for file in [&stage.socket, &stage.plugin] {
        fs::remove_file(file)?;
    }
    eventually("ADD", || stage.add_and_delete()).with_context(|| stage.lab.logs())?;
    // The socket is still this agent's: it takes it away when it ends.
    stage.lab.agent(NODE).stop()?;
    ensure!(!stage.socket.exists(), "the socket stays");
    Ok(())
}

/// A node is drained by it: the agent must not put it back.
#[test]
fn a_configuration_that_somebody_removed_comes_back_with_the_next_agent_only() -> Result<()> {
    let mut stage = Stage::build()?;
    ensure!(stage.configuration.exists(), "{}", stage.lab.logs());
    fs::remove_file(&stage.configuration)?;
    fs::remove_file(&stage.plugin)?;
    thread::sleep(LOOKS);
    for file in [&stage.configuration, &stage.plugin] {
        ensure!(!file.exists(), "{} is there again", file.display());
    }
    let agent = stage.lab.agent(NODE);
    agent.stop()?;
    agent.launch()?;
    agent.wait_ready()?;
    eventually("the configuration", || {
        ensure!(stage.configuration.exists(), "it is not there");
        Ok(())
    })?;
    stage.add_and_delete()
}
