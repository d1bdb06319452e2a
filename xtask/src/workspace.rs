//! The paths of the repository, and of the directories below `target`.

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
    /// Returns the workspace that this xtask belongs to.
    pub(crate) fn find() -> Result<Self> {
        // `cargo run` sets it; the built-in value is for a binary that is started directly.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .with_context(|| format!("{} has no parent directory", manifest.display()))?
            .canonicalize()
            .with_context(|| format!("cannot find the workspace above {}", manifest.display()))?;
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            // cargo interprets a relative path from its own working directory.
            Some(dir) => std::path::absolute(&dir)
                .with_context(|| format!("CARGO_TARGET_DIR={} is no path", dir.display()))?,
            None => root.join("target"),
        };
        std::fs::create_dir_all(&target)
            .with_context(|| format!("cannot make {}", target.display()))?;
        Ok(Self { root, target })
    }

    /// Returns the directory of the eBPF objects `ebbtide` and `strict-vpc`.
    pub(crate) fn ebpf(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    /// Returns the directory of the release programs.
    pub(crate) fn release(&self) -> PathBuf {
        self.target.join("release")
    }

    /// Returns the directory of the unoptimised programs, which demo and tests start.
    pub(crate) fn unoptimised(&self) -> PathBuf {
        self.target.join("debug")
    }

    /// Returns the directory of programs for building, which `setup` installs.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Returns the directory of downloaded files.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.target.join("downloads")
    }

    /// Returns a cargo command of this workspace, with its target directory.
    pub(crate) fn cargo(&self, command: &str) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg(command).current_dir(&self.root);
        // `cargo run` sets variables that describe this program. Build scripts that read them (ring's does) would run
        // again, with everything that depends on them, whenever a user's own cargo command alternates with ours.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        if std::env::var_os("CARGO_TARGET_DIR").is_some() {
            // Only in this case: cargo rebuilds the agent whenever these differ from the last build's.
            cargo.env("CARGO_TARGET_DIR", &self.target);
            cargo.env("EBBTIDE_EBPF_OBJECT", self.ebpf().join("ebbtide"));
        }
        cargo
    }

    /// Returns `path` as it is shown to people: relative to the workspace if it is in it.
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

    /// The crate that is not for this machine.
    const FOR_THE_KERNEL: &str = "ebpf";

    /// cargo's description of a workspace.
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

    /// Finds the directories below `root` that have a `Cargo.toml`, except `root` itself.
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

    /// `cargo xtask test` builds, checks and counts the default members: a crate that is not one of them would be
    /// forgotten silently.
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
