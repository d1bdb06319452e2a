//! The real programs that clouds' images run on a node, as Debian packages them.
//!
//! They are unpacked by `cargo xtask setup`, and started in a node's network namespace, with processes and mounts of their
//! own: `/run` is theirs, the machine's files they can only read, and they end with the test.

use std::{
    ffi::OsStr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{
    netns::Netns,
    process::Process,
    skip::{Need, skip},
    workspace::IMAGES,
};

/// What each has of its own, before its script.
const ROOM: &str = r#"
mount --make-rprivate /
mount --bind "$SHARED" "$SHARED"
mount -o remount,bind,ro /
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
for directory in /etc/default /etc/systemd/network /usr/lib/systemd/network; do
    if [ -d "$directory" ]; then mount -t tmpfs -o mode=755 tmpfs "$directory"; fi
done
"#;

/// A package's programs, as they run. Dropping it kills them.
#[derive(Debug)]
pub struct Image {
    process: Mutex<Process>,
    log: PathBuf,
    /// What the programs share with the test: `$SHARED`.
    shared: TempDir,
}

/// Returns the directory that a package was unpacked to, if it has this file. Else the test is skipped.
#[must_use]
pub fn unpacked(package: &str, file: &str) -> Option<PathBuf> {
    let found = IMAGES.file(&format!("{package}/{file}"));
    found
        .inspect_err(|e| skip(Need::Images, format!("{package} was not got: {e}")))
        .ok()?;
    IMAGES.directory().join(package).canonicalize().ok()
}

impl Image {
    /// Runs a shell script in a node's namespace. `$PACKAGE` is the package's directory, `$SHARED` one that the test
    /// sees.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(node: &Netns, package: &OsStr, script: &str) -> Result<Self> {
        let shared = TempDir::new().context("a directory for a package's programs")?;
        let mut command = node.command("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["bash", "-ec"])
            .arg(format!("{ROOM}{script}"))
            .env("PACKAGE", package)
            .env("SHARED", shared.path());
        let log = shared.path().join("log");
        let process = Process::start(command, &log).context("starting a package's programs")?;
        Ok(Self {
            process: Mutex::new(process),
            log,
            shared,
        })
    }

    /// Returns the path of a file that the programs share with the test.
    #[must_use]
    pub fn shared(&self, name: &str) -> PathBuf {
        self.shared.path().join(name)
    }

    /// Returns what the programs wrote.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails if the programs have ended, with what they wrote.
    ///
    /// # Errors
    /// If they have ended.
    pub fn runs(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        match process.ended()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("it ended, {status}: {}", self.log()),
        }
    }
}
