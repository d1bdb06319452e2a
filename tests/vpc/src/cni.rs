//! The real plugin, called the way a container runtime calls it.

use std::{
    ffi::OsStr,
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{foreign, netns::Netns, workspace};

/// The version that the calls speak unless told otherwise.
pub const VERSION: &str = "1.1.0";

/// The plugin on one node.
#[derive(Clone, Debug)]
pub struct Plugin {
    node: Netns,
    socket: PathBuf,
}

/// What a runtime says about a sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Unique to the sandbox.
    pub container_id: String,
    /// Path of its network namespace; `None` when it is gone already.
    pub netns: Option<PathBuf>,
    /// Interface name in it.
    pub interface: String,
    /// Name of the pod, in the namespace `default`.
    pub pod: String,
}

impl Sandbox {
    /// That of a pod whose interface is `eth0`.
    #[must_use]
    pub fn new(netns: &Netns, container_id: impl Into<String>, pod: &str) -> Self {
        Self {
            container_id: container_id.into(),
            netns: Some(netns.path()),
            interface: "eth0".into(),
            pod: pod.into(),
        }
    }
}

/// How a call ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit status; `None` after a signal.
    pub exit: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// The specification's error object.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct CniError {
    /// Below 100: the specification's, else the plugin's own.
    pub code: u32,
    /// One line.
    pub msg: String,
    /// More lines.
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI error {}: {}", self.code, self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for CniError {}

impl Plugin {
    pub(crate) fn new(node: Netns, socket: PathBuf) -> Self {
        Self { node, socket }
    }

    /// The network configuration that names a network of the manifests.
    #[must_use]
    pub fn config(&self, network: &str) -> Value {
        json!({
            "cniVersion": VERSION,
            "name": "ebbtide",
            "type": "ebbtide",
            "network": network,
            "agentSocket": self.socket,
        })
    }

    /// The socket of the node's agent.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls the plugin: `command` is ADD, DEL, CHECK, STATUS, GC or VERSION; `config` goes to its
    /// standard input as it is.
    ///
    /// # Errors
    /// When the plugin cannot be run at all; what it answers is in the [`Outcome`].
    pub fn call(&self, command: &str, sandbox: Option<&Sandbox>, config: &str) -> Result<Outcome> {
        self.call_with(command, sandbox, config.as_bytes(), &[])
    }

    /// As [`Self::call`], with bytes that need be no text, and with variables of the environment that win over the
    /// sandbox'.
    ///
    /// # Errors
    /// As [`Self::call`]'s.
    pub fn call_with(
        &self,
        command: &str,
        sandbox: Option<&Sandbox>,
        config: &[u8],
        variables: &[(&str, &OsStr)],
    ) -> Result<Outcome> {
        let binary = workspace::BINARIES.file("ebbtide")?;
        let mut child = self.node.command(&binary);
        child
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", cni_path(&binary))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(sandbox) = sandbox {
            let Sandbox {
                container_id, pod, ..
            } = sandbox;
            child
                .env("CNI_CONTAINERID", container_id)
                .env("CNI_IFNAME", &sandbox.interface)
                .env(
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};\
                         K8S_POD_UID=uid-of-{pod};K8S_POD_INFRA_CONTAINER_ID={container_id}"
                    ),
                );
            if let Some(netns) = &sandbox.netns {
                child.env("CNI_NETNS", netns);
            }
        }
        child.envs(variables.iter().copied());
        let mut child = child.spawn().context("starting the plugin")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that refuses the call early may not read its input.
            let _ = stdin.write_all(config);
        }
        let output = child.wait_with_output().context("waiting for the plugin")?;
        Ok(Outcome {
            exit: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// Our own plugin's directory, and that of the others.
fn cni_path(binary: &Path) -> String {
    let own = binary.parent().unwrap_or(Path::new("/"));
    format!("{}:{}", own.display(), foreign::path().display())
}

impl Outcome {
    /// The result of a call that must have succeeded; `null` where the command has none.
    ///
    /// # Errors
    /// The plugin's [`CniError`], or that its output is not what the specification demands.
    pub fn success(&self) -> Result<Value> {
        if self.exit != Some(0) {
            return Err(self.error()?.into());
        }
        if self.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("the plugin printed {:?}", self.stdout))
    }

    /// The error of a call that must have failed.
    ///
    /// # Errors
    /// When it succeeded, or its output is not the specification's error object.
    pub fn error(&self) -> Result<CniError> {
        if self.exit == Some(0) {
            bail!("the plugin succeeded: {}", self.stdout);
        }
        serde_json::from_str(&self.stdout).with_context(|| {
            format!(
                "the plugin exited with {:?} and printed {:?}, on standard error {:?}",
                self.exit, self.stdout, self.stderr
            )
        })
    }
}
