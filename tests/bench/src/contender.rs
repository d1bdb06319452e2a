//! The contenders: anything that adds and removes a pod's network.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::netns::Netns;
use serde_json::Value;

use super::made_before::MadeBefore;

/// A namespace, with a container ID as a runtime would give it.
#[derive(Debug)]
pub struct Pod {
    /// The container ID, which is unique.
    pub container_id: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its number among all pods of this process, from 1 on.
    pub number: u64,
}

impl Pod {
    /// Creates a namespace that has only `lo`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            container_id: format!("{:032x}{number:032x}", std::process::id()),
            netns: Netns::new("pod")?,
            number,
        })
    }
}

/// Something that does ADD and DEL.
pub trait Contender: Send + Sync {
    /// Returns its name in tables.
    fn name(&self) -> String;

    /// Prepares a pod; this is not measured.
    ///
    /// # Errors
    /// If a step fails; the error names it.
    fn prepare(&self, _pod: &Pod) -> Result<()> {
        Ok(())
    }

    /// Adds the pod's network.
    ///
    /// # Errors
    /// If it fails; the pod has no network then.
    fn add(&self, pod: &Pod) -> Result<()>;

    /// Removes the pod's network.
    ///
    /// # Errors
    /// If something cannot be removed; the error names it.
    fn del(&self, pod: &Pod) -> Result<()>;
}

/// A program that is executed for every ADD and DEL, as by a runtime.
#[derive(Debug)]
pub struct Program {
    name: String,
    node: Netns,
    binary: PathBuf,
    config: String,
}

impl Program {
    /// Creates a contender that runs `binary` in the namespace `node`, with `config` on standard input.
    #[must_use]
    pub fn new(name: &str, node: &Netns, binary: PathBuf, config: &Value) -> Self {
        Self {
            name: name.to_owned(),
            node: node.clone(),
            binary,
            config: config.to_string(),
        }
    }

    /// Executes VERSION, which does almost nothing besides.
    ///
    /// # Errors
    /// If it fails.
    pub fn version(&self, pod: &Pod) -> Result<()> {
        self.call("VERSION", pod, &self.config)
    }

    fn call(&self, command: &str, pod: &Pod, config: &str) -> Result<()> {
        let mut child = self
            .node
            .command(&self.binary)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.container_id)
            .env("CNI_NETNS", pod.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.binary.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // `true` does not read its input.
            let _ = stdin.write_all(config.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "{command} by {}: {}{}",
                self.name,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

impl Contender for Program {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn add(&self, pod: &Pod) -> Result<()> {
        self.call("ADD", pod, &self.config)
    }

    fn del(&self, pod: &Pod) -> Result<()> {
        self.call("DEL", pod, &self.config)
    }
}

/// A plugin chained after another one, whose interface is made before the measurement.
#[derive(Debug)]
pub struct Chained {
    program: Program,
    config: Value,
    before: MadeBefore,
}

impl Chained {
    /// As [`Program::new`]; each call gets the previous plugin's result.
    #[must_use]
    pub fn new(
        name: &str,
        node: &Netns,
        binary: PathBuf,
        config: &Value,
        before: MadeBefore,
    ) -> Self {
        Self {
            program: Program::new(name, node, binary, config),
            config: config.clone(),
            before,
        }
    }

    fn call(&self, command: &str, pod: &Pod) -> Result<()> {
        let mut config = self.config.clone();
        config["prevResult"] = MadeBefore::result(pod);
        self.program.call(command, pod, &config.to_string())
    }
}

impl Contender for Chained {
    fn name(&self) -> String {
        self.program.name()
    }

    fn prepare(&self, pod: &Pod) -> Result<()> {
        self.before.make(pod)
    }

    fn add(&self, pod: &Pod) -> Result<()> {
        self.call("ADD", pod)
    }

    fn del(&self, pod: &Pod) -> Result<()> {
        self.call("DEL", pod)
    }
}
