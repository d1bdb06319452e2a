//! Programs that run beside a test and end with it.

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

/// A child process that the kernel kills when this process ends, for whatever reason. Dropping it kills it, too.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Keeps the thread that started the child, which must not end before it: `PR_SET_PDEATHSIG` refers to the
    /// *thread*. The thread ends when this sender is dropped.
    _keeps_the_starter: mpsc::Sender<()>,
}

impl Process {
    /// Starts `command`, with both outputs appended to the file `log`.
    ///
    /// # Errors
    /// If the log cannot be opened or the program cannot be started.
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

    /// Returns its process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns its status, if it has ended.
    ///
    /// # Errors
    /// If the kernel does not know the process.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends SIGTERM and waits. Returns `None` if it had to be killed after `patience`.
    ///
    /// # Errors
    /// If it cannot be signalled or waited for.
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
    /// If it cannot be signalled or waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended before, and nobody could handle the error.
        let _ = self.kill();
    }
}

/// Runs a program with a script on its standard input, in the namespace of `command`. An error has the program's output
/// and the script.
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

/// Removes the directories in `place` that killed processes left: their names are `prefix`, the process ID and a dash.
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
