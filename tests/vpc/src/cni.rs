//! Calls the real plugin as a container runtime does.

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

use crate::{foreign, netns::Netns, workspace::Place};

/// The CNI version of the calls, unless a test sets another one.
pub const VERSION: &str = "1.1.0";

/// The plugin on one node.
#[derive(Clone, Debug)]
pub struct Plugin {
    node: Netns,
    socket: PathBuf,
    release: Place,
    /// The pod's UID, if there is an API server that has given it.
    uid: Option<String>,
}

/// A sandbox as a runtime describes it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The container ID, unique to the sandbox.
    pub container_id: String,
    /// Path of its network namespace; `None` if it no longer exists.
    pub netns: Option<PathBuf>,
    /// Interface name in it.
    pub interface: String,
    /// Name of the pod, in the namespace `default`.
    pub pod: String,
}

impl Sandbox {
    /// Creates the description of a pod whose interface is `eth0`.
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

/// The result of a call.
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
    /// The code: below 100 the specification's, else the plugin's own.
    pub code: u32,
    /// The message, one line.
    pub msg: String,
    /// Details, possibly several lines.
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
    pub(crate) fn new(node: Netns, socket: PathBuf, release: Place) -> Self {
        Self {
            node,
            socket,
            release,
            uid: None,
        }
    }

    /// Returns it as it is called for a pod with this UID.
    #[must_use]
    pub fn with_uid(mut self, uid: impl Into<String>) -> Self {
        self.uid = Some(uid.into());
        self
    }

    /// Returns a network configuration that names a network of the manifests.
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

    /// Returns the path of the agent's socket on the node.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls the plugin. `command` is ADD, DEL, CHECK, STATUS, GC or VERSION; `config` goes to standard input as it is.
    ///
    /// # Errors
    /// If the plugin cannot be run at all. What it answers is in the [`Outcome`].
    pub fn call(&self, command: &str, sandbox: Option<&Sandbox>, config: &str) -> Result<Outcome> {
        self.call_with(command, sandbox, config.as_bytes(), &[])
    }

    /// As [`Self::call`], but the input may be any bytes, and `variables` override the environment that the sandbox
    /// gives.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn call_with(
        &self,
        command: &str,
        sandbox: Option<&Sandbox>,
        config: &[u8],
        variables: &[(&str, &OsStr)],
    ) -> Result<Outcome> {
        let binary = self.release.file("ebbtide")?;
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
            let uid = self.uid.clone();
            let uid = uid.unwrap_or_else(|| format!("uid-of-{pod}"));
            child
                .env("CNI_CONTAINERID", container_id)
                .env("CNI_IFNAME", &sandbox.interface)
                .env(
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};\
                         K8S_POD_UID={uid};K8S_POD_INFRA_CONTAINER_ID={container_id}"
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

/// Returns the directory of our own plugin, and that of the others.
fn cni_path(binary: &Path) -> String {
    let own = binary.parent().unwrap_or(Path::new("/"));
    format!("{}:{}", own.display(), foreign::path().display())
}

impl Outcome {
    /// Returns the result of a call that must have succeeded; `null` if the command has none.
    ///
    /// # Errors
    /// The plugin's [`CniError`] if it failed; another error if its output does not follow the specification.
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

    /// Returns the error of a call that must have failed.
    ///
    /// # Errors
    /// If it succeeded, or its output is not the specification's error object.
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
