//! An IPAM plugin that takes its time, for as long as a test wants.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

use ebbtide_vpc::{foreign, patience::eventually};

/// The plugin. It answers at once, but for commands that it is told to [`hold`](Self::hold).
#[derive(Debug)]
pub struct SlowIpam {
    directory: TempDir,
    /// While this is open, whoever waits at the gate goes on.
    open: Option<File>,
}

impl SlowIpam {
    /// What a configuration calls it in `ipam.type`.
    pub const NAME: &'static str = "slow-ipam";

    /// One that answers an ADD with `answer`.
    ///
    /// # Errors
    /// When it cannot be written.
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

    /// `CNI_PATH` with it.
    #[must_use]
    pub fn path(&self) -> String {
        let own = self.directory.path().display();
        format!("{own}:{}", foreign::path().display())
    }

    /// Keeps whoever asks for `command` waiting from now on.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn hold(&mut self, command: &str) -> Result<()> {
        self.open = None;
        Ok(fs::write(self.held(command), "")?)
    }

    /// Waits until it was called so often since it was made, for as long as calls come.
    ///
    /// # Errors
    /// When it is not.
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

    /// Lets all go on that wait, and all that come.
    ///
    /// # Errors
    /// When the gate cannot be opened.
    pub fn release(&mut self) -> Result<()> {
        for entry in fs::read_dir(self.directory.path())? {
            let path = entry?.path();
            if path.file_stem().is_some_and(|stem| stem == "held") {
                fs::remove_file(path)?;
            }
        }
        let gate = self.directory.path().join("gate");
        // For both, so that nobody has to be there; it stays open for who has looked just before.
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
        // Nobody waits for a test that is over.
        let _ = self.release();
    }
}
