//! kubectl, as it is called for the cluster and the agents that the plugin's options name.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, bail};
use ebbtide_agent::program;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Cli;

/// How long a call that does no more than ask the API server, or an agent, may take.
pub(super) const CALL: Duration = Duration::from_secs(90);

/// How much a call may print, in bytes.
const MOST: u64 = 64 << 20;

/// The cluster, by kubectl.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    /// The options that name the cluster.
    options: Vec<String>,
    /// The namespace of the agents.
    pub(super) agents: String,
}

impl Cluster {
    /// Returns the one that the plugin's options name.
    pub(super) fn of(cli: &Cli) -> Self {
        let options = [
            ("--context", &cli.context),
            ("--kubeconfig", &cli.kubeconfig),
        ];
        let options = options
            .into_iter()
            .filter_map(|(option, value)| Some(format!("{option}={}", value.as_ref()?)));
        Self {
            options: options.collect(),
            agents: cli.namespace.clone(),
        }
    }

    /// Returns a call of kubectl, for who reads its output while it runs.
    pub(super) fn kubectl(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.options);
        command
    }

    /// Runs kubectl with `input` on its standard input, for no longer than `most`, and returns what it prints.
    pub(super) fn call(
        &self,
        words: &[&str],
        input: &[u8],
        most: Duration,
    ) -> anyhow::Result<Vec<u8>> {
        let mut command = self.kubectl();
        command.args(words);
        let first = words.first().copied().unwrap_or_default();
        let output = program::output(&mut command, input, most, MOST)
            .with_context(|| format!("run kubectl {first} (is it in the search path?)"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let mut lines = said.trim().lines().rev();
            // kubectl adds a line about the exit status of what it ran.
            let told = lines.find(|line| !line.starts_with("command terminated with"));
            let told = told.filter(|line| !line.is_empty());
            bail!(
                "kubectl {first}: {}",
                told.unwrap_or("it failed, and says nothing")
            );
        }
        Ok(output.stdout)
    }

    /// Returns objects of the API server, as JSON.
    pub(super) fn get(&self, words: &[&str]) -> anyhow::Result<Value> {
        let words = [&["get"], words, &["-o", "json"]].concat();
        let text = self.call(&words, b"", CALL)?;
        serde_json::from_slice(&text)
            .with_context(|| format!("read what kubectl {} printed", words.join(" ")))
    }

    /// Returns the words by which kubectl runs something in an agent's container, with its standard input.
    pub(super) fn exec<'a>(&'a self, agent: &'a str) -> [&'a str; 8] {
        ["exec", "-i", "-n", &self.agents, agent, "-c", "agent", "--"]
    }

    /// Runs a program in an agent's container, and returns what it prints.
    pub(super) fn in_agent(
        &self,
        agent: &str,
        words: &[&str],
        input: &[u8],
        most: Duration,
    ) -> anyhow::Result<Vec<u8>> {
        self.call(&[&self.exec(agent)[..], words].concat(), input, most)
    }

    /// Returns what an agent answers to `ebbtidectl`.
    pub(super) fn ebbtidectl<T: DeserializeOwned>(
        &self,
        agent: &str,
        words: &[&str],
    ) -> anyhow::Result<T> {
        let all = [&["ebbtidectl", "-o", "json"], words].concat();
        let text = self.in_agent(agent, &all, b"", CALL)?;
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "understand ebbtidectl {} of {agent} (is it of this program's release?)",
                words.join(" ")
            )
        })
    }
}
