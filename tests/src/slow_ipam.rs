//! An IPAM plugin that answers when a test lets it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

use ebbtide_vpc::{foreign, patience::eventually};

/// The plugin. It answers at once, except commands that it [holds](Self::hold).
#[derive(Debug)]
pub struct SlowIpam {
    directory: TempDir,
    /// The open gate: while it is open, held commands continue.
    open: Option<File>,
}

impl SlowIpam {
    /// The plugin's name in `ipam.type`.
    pub const NAME: &'static str = "slow-ipam";

    /// Creates a plugin that answers ADD with `answer`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(answer: &str) -> Result<Self> {
        let directory = TempDir::with_prefix("ebbtide-slow-ipam-")?;
        let path = directory.path();
        let script = format!(
            "#!/bin/sh\ncat > /dev/null\n: > {0}/asked.$$\nif [ -e {0}/held.$CNI_COMMAND ]; then : < {0}/gate; fi\n\
             if [ $CNI_COMMAND = ADD ]; then cat {0}/answer; fi\n",
            path.display()
        );
        let program = path.join(Self::NAME);
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(path.join("answer"), answer)?;
        mkfifo(&path.join("gate"), Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Self {
            directory,
            open: None,
        })
    }

    /// Returns the `CNI_PATH` with the plugin.
    #[must_use]
    pub fn path(&self) -> String {
        let own = self.directory.path().display();
        format!("{own}:{}", foreign::path().display())
    }

    /// Holds all calls of `command` from now on.
    ///
    /// # Errors
    /// If the marker cannot be written.
    pub fn hold(&mut self, command: &str) -> Result<()> {
        self.open = None;
        Ok(fs::write(self.held(command), "")?)
    }

    /// Waits until it was called so often since it was made, for as long as calls come.
    ///
    /// # Errors
    /// If it is not.
    pub fn wait_called(&self, times: usize) -> Result<()> {
        let mut called = self.called()?;
        while called < times {
            called = eventually(format!("{times} calls"), || {
                let now = self.called()?;
                anyhow::ensure!(now > called, "it was called {now} times");
                Ok(now)
            })?;
        }
        Ok(())
    }

    fn called(&self) -> Result<usize> {
        let entries = fs::read_dir(self.directory.path())?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| name.starts_with("asked.")).count())
    }

    /// Lets all held and later calls continue.
    ///
    /// # Errors
    /// If the gate cannot be opened.
    pub fn release(&mut self) -> Result<()> {
        for entry in fs::read_dir(self.directory.path())? {
            let path = entry?.path();
            if path.file_stem().is_some_and(|stem| stem == "held") {
                fs::remove_file(path)?;
            }
        }
        let gate = self.directory.path().join("gate");
        // Opened for reading and writing, this does not wait for a peer. It stays open for a call that has just
        // checked.
        let open = OpenOptions::new().read(true).write(true).open(&gate);
        self.open = Some(open.with_context(|| format!("opening {}", gate.display()))?);
        Ok(())
    }

    fn held(&self, command: &str) -> PathBuf {
        let directory: &Path = self.directory.path();
        directory.join(format!("held.{command}"))
    }
}

impl Drop for SlowIpam {
    fn drop(&mut self) {
        // Nobody needs the result after the test.
        let _ = self.release();
    }
}
