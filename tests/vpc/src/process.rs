//! Programs that run beside a test, and end with it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::Netns;

/// A child that the kernel kills when this process ends, however it ends. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// `PR_SET_PDEATHSIG` counts from the *thread* that started the child, which therefore has to
    /// stay: it ends when this sender is dropped.
    _keeps_the_starter: mpsc::Sender<()>,
}

impl Process {
    /// Starts `command`, with both outputs appended to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(mut command: Command, log: &Path) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: one system call, prctl(2), which neither allocates nor locks.
        unsafe {
            command
                .pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        let (keep, kept) = mpsc::channel();
        let (started, starting) = mpsc::channel();
        thread::spawn(move || {
            let _ = started.send(command.spawn());
            let _ = kept.recv();
        });
        let child = starting
            .recv()
            .map_err(|_| io::Error::other("the thread that starts the program panicked"))??;
        Ok(Self {
            child,
            _keeps_the_starter: keep,
        })
    }

    /// Its process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks it to end (SIGTERM) and waits: `None` if it was still there after `patience`, and was
    /// killed.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub fn stop(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let id = i32::try_from(self.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(id), Signal::SIGTERM)?;
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill()?;
        Ok(None)
    }

    /// Kills it (SIGKILL), as the kernel's out-of-memory killer does, and waits.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before; errors have nobody to go to.
        let _ = self.kill();
    }
}

/// Runs a program that reads a script from its standard input, in the namespace that `command` is for, and fails with
/// what it said, and the script.
pub(crate) fn feed(mut command: Command, netns: &Netns, script: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}: is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(script.as_bytes())
            .with_context(|| format!("feeding {program}"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} in {}: {}{script}",
            netns.name(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Removes the directories in `place` that processes which were killed left there: those that are called `prefix`,
/// the process's ID and a dash.
pub fn sweep(place: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(prefix)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another process may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
