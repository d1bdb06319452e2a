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
        // `cargo run` told this program what it is. Build scripts that look at these (ring's does) would run again,
        // with all that is above them, each time somebody's own cargo command follows ours or the other way round.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use serde::Deserialize;

    use super::*;
    use crate::exec;

    /// The one that is not for this machine.
    const FOR_THE_KERNEL: &str = "ebpf";

    /// What cargo says of a workspace.
    #[derive(Debug, Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
        workspace_default_members: Vec<String>,
    }

    #[derive(Debug, Deserialize)]
    struct Package {
        id: String,
        manifest_path: PathBuf,
    }

    /// The directories below `root` that have a `Cargo.toml`, but not its own.
    fn crates(root: &Path, dir: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a directory of this repository") {
            let path = entry.expect("an entry of it").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !path.is_dir() || path.is_symlink() || name.starts_with('.') || name == "target" {
                continue;
            }
            if path.join("Cargo.toml").exists() {
                let below = path.strip_prefix(root).expect("it is below");
                found.insert(below.to_owned());
            }
            crates(root, &path, found);
        }
    }

    /// `cargo xtask test` builds, checks and counts what the default members have: one that is not among them would
    /// be forgotten without a word.
    #[test]
    fn every_crate_of_this_repository_is_a_default_member_but_the_kernel_s() {
        let ws = Workspace::find().expect("this workspace");
        let mut metadata = ws.cargo("metadata");
        metadata.args(["--no-deps", "--offline", "--format-version", "1"]);
        let metadata: Metadata =
            serde_json::from_str(&exec::read(&mut metadata).expect("cargo's metadata"))
                .expect("what cargo documents");
        let members: BTreeSet<PathBuf> = metadata
            .packages
            .iter()
            .filter(|package| metadata.workspace_default_members.contains(&package.id))
            .filter_map(|package| package.manifest_path.parent()?.strip_prefix(&ws.root).ok())
            .map(Path::to_owned)
            .collect();
        let mut there = BTreeSet::new();
        crates(&ws.root, &ws.root, &mut there);
        assert!(there.remove(Path::new(FOR_THE_KERNEL)), "{there:?}");
        assert_eq!(members, there);
    }
}
