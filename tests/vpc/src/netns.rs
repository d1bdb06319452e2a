//! Anonymous network namespaces: held by a file descriptor, gone with the process.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::CloneFlags;
use tempfile::TempPath;

use crate::netlink::Netlink;

/// A network namespace of this process. Clones share it; it ends with the last of them and the
/// last process inside.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
    xtables_lock: Arc<OnceLock<TempPath>>,
}

impl Netns {
    /// Makes a new namespace with nothing in it but `lo`, which is up.
    ///
    /// # Errors
    /// When the kernel refuses, most often because this process is not root.
    pub fn new(name: &str) -> Result<Self> {
        let file = thread::scope(|scope| {
            join(scope.spawn(|| {
                unshare().with_context(|| {
                    format!("making the network namespace {name:?} (this takes root)")
                })?;
                File::open("/proc/thread-self/ns/net")
                    .with_context(|| format!("opening the network namespace {name:?}"))
            }))
        })?;
        let netns = Self {
            name: name.into(),
            file: Arc::new(file),
            xtables_lock: Arc::default(),
        };
        netns.netlink()?.set_up("lo")?;
        Ok(netns)
    }

    /// The name given at creation; it only serves messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that other processes can open for as long as this value lives, as `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` inside the namespace, on a thread of its own that ends with it.
    ///
    /// # Errors
    /// Those of `work`, or of entering.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter()?;
                work()
            }))
        })
    }

    /// As [`Netns::run`], for a thread that goes on by itself.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let netns = self.clone();
        thread::spawn(move || {
            netns.enter()?;
            work()
        })
    }

    /// A command that will run inside the namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec the closure makes one system call, setns(2), and neither
        // allocates nor locks.
        unsafe {
            command.pre_exec(move || setns(file.as_fd()).map_err(Into::into));
        }
        command
    }

    /// A netlink connection whose socket was opened inside.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn netlink(&self) -> Result<Netlink> {
        Netlink::connect(self)
    }

    /// Writes sysctls: paths below `/proc/sys`, and their values.
    ///
    /// # Errors
    /// Names the one that could not be written.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(path, value)| {
                std::fs::write(format!("/proc/sys/{path}"), value).with_context(|| {
                    format!("setting the sysctl {path} = {value} in {}", self.name)
                })
            })
        })
    }

    /// The lock file for iptables in this namespace: `/run/xtables.lock` may not be writable, and
    /// is shared by namespaces that have nothing to do with each other.
    pub(crate) fn xtables_lock(&self) -> Result<PathBuf> {
        if let Some(path) = self.xtables_lock.get() {
            return Ok(path.to_path_buf());
        }
        let path = tempfile::NamedTempFile::new()
            .context("making a lock file for iptables")?
            .into_temp_path();
        Ok(self.xtables_lock.get_or_init(|| path).to_path_buf())
    }

    fn enter(&self) -> Result<()> {
        setns(self.file.as_fd()).with_context(|| format!("entering the namespace {:?}", self.name))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one wrapper: only fresh threads and children come here"
)]
fn unshare() -> nix::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one wrapper: only fresh threads and children come here"
)]
fn setns(namespace: BorrowedFd<'_>) -> nix::Result<()> {
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Waits for a thread of [`Netns::spawn`].
///
/// # Errors
/// Those of the thread; a panic in it is an error too.
pub fn finish<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread inside a namespace panicked"))?
}
