//! Who is measured: anything that gives a pod its network and takes it away.

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

/// A namespace and what a runtime would call it.
#[derive(Debug)]
pub struct Pod {
    /// Unique.
    pub container_id: String,
    /// Its namespace.
    pub netns: Netns,
    /// Among all pods of this process; the first is 1.
    pub number: u64,
}

impl Pod {
    /// A new namespace, with nothing in it but `lo`.
    ///
    /// # Errors
    /// When the kernel refuses.
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

/// Somebody who does ADD and DEL.
pub trait Contender: Send + Sync {
    /// As it is called in tables.
    fn name(&self) -> String;

    /// Does what is there before, and is not measured.
    ///
    /// # Errors
    /// What could not be done.
    fn prepare(&self, _pod: &Pod) -> Result<()> {
        Ok(())
    }

    /// Gives the pod its network.
    ///
    /// # Errors
    /// Then the pod has none.
    fn add(&self, pod: &Pod) -> Result<()>;

    /// Takes it away.
    ///
    /// # Errors
    /// What could not be removed.
    fn del(&self, pod: &Pod) -> Result<()>;
}

/// A program that is executed for every ADD and DEL, as a runtime does it.
#[derive(Debug)]
pub struct Program {
    name: String,
    node: Netns,
    binary: PathBuf,
    config: String,
}

impl Program {
    /// `binary` is run in the namespace `node` with `config` on its standard input.
    #[must_use]
    pub fn new(name: &str, node: &Netns, binary: PathBuf, config: &Value) -> Self {
        Self {
            name: name.to_owned(),
            node: node.clone(),
            binary,
            config: config.to_string(),
        }
    }

    /// Asks it which versions of CNI it knows: all that it does is to be executed.
    ///
    /// # Errors
    /// When it fails.
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
            // `true` reads nothing.
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

/// A program that comes after another plugin, whose interface is there before anything is measured.
#[derive(Debug)]
pub struct Chained {
    program: Program,
    config: Value,
    before: MadeBefore,
}

impl Chained {
    /// As [`Program::new`]; each call gets the result of the plugin before.
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
