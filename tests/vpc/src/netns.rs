//! Anonymous network namespaces: a file descriptor of this process holds each, so none outlives the process.

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

/// A network namespace of this process. Clones share it. It ends with the last clone and the last process inside.
///
/// # Examples
///
/// ```no_run
/// use ebbtide_vpc::netns::Netns;
///
/// let netns = Netns::new("alone")?;
/// netns.sysctls(&[("net/ipv4/ip_forward", "1")])?;
/// let links = netns.command("ip").args(["-br", "link"]).output()?;
/// assert!(String::from_utf8_lossy(&links.stdout).starts_with("lo "));
/// // Nothing is left of it once `netns` is dropped.
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
    xtables_lock: Arc<OnceLock<TempPath>>,
}

impl Netns {
    /// Creates a namespace that has only `lo`, which is up.
    ///
    /// # Errors
    /// If the kernel refuses, most often because the process is not root.
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

    /// Returns the name that it was created with, which only messages use.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a path for `CNI_NETNS`, which other processes can open as long as this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` inside the namespace, on a thread of its own that ends with it.
    ///
    /// # Errors
    /// If `work` fails, or the namespace cannot be entered.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter()?;
                work()
            }))
        })
    }

    /// As [`Netns::run`], but does not wait for the thread.
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

    /// Returns a command that runs inside the namespace.
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

    /// Opens a netlink connection inside the namespace.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn netlink(&self) -> Result<Netlink> {
        Netlink::connect(self)
    }

    /// Writes sysctls, given as paths below `/proc/sys` and values.
    ///
    /// # Errors
    /// If one cannot be written; the error names it.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(path, value)| {
                std::fs::write(format!("/proc/sys/{path}"), value).with_context(|| {
                    format!("setting the sysctl {path} = {value} in {}", self.name)
                })
            })
        })
    }

    /// Returns the path of this namespace's lock file for iptables. `/run/xtables.lock` may not be writable, and
    /// unrelated namespaces would share it.
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

/// Waits for a thread of [`Netns::spawn`] and returns its result.
///
/// # Errors
/// If the thread failed or panicked.
pub fn finish<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread inside a namespace panicked"))?
}
