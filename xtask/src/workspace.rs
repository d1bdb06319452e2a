//! Where things are: the repository's top and the directories below `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// The repository and its target directory, both absolute.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// `CARGO_TARGET_DIR`, or `target` in the root.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// The workspace that this xtask belongs to.
    pub(crate) fn find() -> Result<Self> {
        // Set by `cargo run`; the built-in one serves a binary that is started by hand.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .with_context(|| format!("{} has no parent directory", manifest.display()))?
            .canonicalize()
            .with_context(|| format!("cannot find the workspace above {}", manifest.display()))?;
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            // cargo takes a relative one from where it was started
            Some(dir) => std::path::absolute(&dir)
                .with_context(|| format!("CARGO_TARGET_DIR={} is no path", dir.display()))?,
            None => root.join("target"),
        };
        std::fs::create_dir_all(&target)
            .with_context(|| format!("cannot make {}", target.display()))?;
        Ok(Self { root, target })
    }

    /// Where the objects for the kernel go: `ebbtide` and `strict-vpc`.
    pub(crate) fn ebpf(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    /// Where the programs that a person starts go.
    pub(crate) fn release(&self) -> PathBuf {
        self.target.join("release")
    }

    /// Where the same programs go, quickly built and not optimised: what demo and tests start.
    pub(crate) fn unoptimised(&self) -> PathBuf {
        self.target.join("debug")
    }

    /// Programs needed to build, installed by `setup`.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// What was downloaded, as it came.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.target.join("downloads")
    }

    /// A cargo command of this workspace, whose target directory is ours.
    pub(crate) fn cargo(&self, command: &str) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg(command).current_dir(&self.root);
        if std::env::var_os("CARGO_TARGET_DIR").is_some() {
            // Only then: cargo rebuilds the agent whenever these differ from the last build's.
            cargo.env("CARGO_TARGET_DIR", &self.target);
            cargo.env("EBBTIDE_EBPF_OBJECT", self.ebpf().join("ebbtide"));
        }
        cargo
    }

    /// `path` as it is shown to a person: relative to the workspace where it lies in it.
    pub(crate) fn shown<'p>(&self, path: &'p Path) -> std::path::Display<'p> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
