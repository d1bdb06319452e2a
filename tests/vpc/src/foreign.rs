//! Other people's CNI plugins: those of Debian's package containernetworking-plugins.

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    cni::{Outcome, Plugin, Sandbox},
    netns::Netns,
};

/// The directory where Debian installs them.
const DIRECTORY: &str = "/usr/lib/cni";

/// Returns the `CNI_PATH` of the plugins.
#[must_use]
pub fn path() -> &'static Path {
    Path::new(DIRECTORY)
}

/// Calls the plugin that `config` names as its `type`, on a node.
///
/// # Errors
/// If it does not exist or cannot be run. What it answers is in the [`Outcome`].
pub fn call(node: &Netns, command: &str, sandbox: &Sandbox, config: &Value) -> Result<Outcome> {
    let kind = config["type"]
        .as_str()
        .context("a configuration without type")?;
    let program: PathBuf = path().join(kind);
    ensure!(
        program.exists(),
        "{} is not there: `cargo xtask setup` installs Debian's containernetworking-plugins",
        program.display()
    );
    call_program(node, &program, command, sandbox, config)
}

/// Calls `program` as a plugin, on a node.
///
/// # Errors
/// If it cannot be run. What it answers is in the [`Outcome`].
pub fn call_program(
    node: &Netns,
    program: &Path,
    command: &str,
    sandbox: &Sandbox,
    config: &Value,
) -> Result<Outcome> {
    let mut child = node
        .command(program)
        .env("CNI_COMMAND", command)
        .env("CNI_PATH", path())
        .env("CNI_CONTAINERID", &sandbox.container_id)
        .env("CNI_IFNAME", &sandbox.interface)
        .env(
            "CNI_NETNS",
            sandbox.netns.as_deref().unwrap_or(Path::new("")),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.to_string().as_bytes())?;
    }
    let output = child.wait_with_output()?;
    Ok(Outcome {
        exit: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A pod whose interface another plugin made, with ebbtide chained after it.
#[derive(Debug)]
pub struct Chained {
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The result of the whole chain.
    pub result: Value,
    /// The result of the first plugin.
    pub first: Value,
    sandbox: Sandbox,
    node: Netns,
    plugin: Plugin,
    before: Value,
    own: Value,
}

impl Chained {
    /// Calls the plugin that `before` configures, then ebbtide with its result.
    ///
    /// # Errors
    /// If either fails.
    pub fn create(node: &Netns, plugin: &Plugin, name: &str, before: &Value) -> Result<Self> {
        let netns = Netns::new(name)?;
        let sandbox = Sandbox::new(&netns, format!("{name}-{}", std::process::id()), name);
        let first = call(node, "ADD", &sandbox, before)?.success()?;
        let own = json!({
            "cniVersion": before["cniVersion"],
            "name": before["name"],
            "type": "ebbtide",
            "agentSocket": plugin.socket(),
        });
        let mut pod = Self {
            addresses: addresses(&first)?,
            result: Value::Null,
            first,
            netns,
            sandbox,
            node: node.clone(),
            plugin: plugin.clone(),
            before: before.clone(),
            own,
        };
        pod.result = pod.ebbtide("ADD", &pod.first)?;
        Ok(pod)
    }

    /// Calls ebbtide again, with the `prevResult` that a runtime would pass.
    ///
    /// # Errors
    /// If the plugin fails; the error is the plugin's.
    pub fn ebbtide(&self, command: &str, previous: &Value) -> Result<Value> {
        let mut config = self.own.clone();
        config["prevResult"] = previous.clone();
        let config = config.to_string();
        self.plugin
            .call(command, Some(&self.sandbox), &config)?
            .success()
    }

    /// Calls DEL of the whole chain, the last plugin first.
    ///
    /// # Errors
    /// If either fails.
    pub fn delete(self) -> Result<()> {
        self.ebbtide("DEL", &self.result)?;
        let mut config = self.before.clone();
        config["prevResult"] = self.result.clone();
        call(&self.node, "DEL", &self.sandbox, &config)?
            .success()
            .map(drop)
    }
}

/// Returns the addresses in a result.
///
/// # Errors
/// If it has none.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("the result has no ips")?;
    let address = |ip: &Value| -> Result<IpAddr> {
        let text = ip["address"].as_str().context("an IP without address")?;
        Ok(text.parse::<IpNet>()?.addr())
    };
    let addresses: Vec<IpAddr> = ips.iter().map(address).collect::<Result<_>>()?;
    ensure!(!addresses.is_empty(), "the result has no address");
    Ok(addresses)
}
