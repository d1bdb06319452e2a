//! Network namespaces. A thread that enters one never returns to a pool: a failed way back would
//! leave it poisoned for whoever gets it next.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sched::CloneFlags,
    sys::statfs::{FsType, fstatfs},
};
use tokio::sync::oneshot;

use super::Error;

/// `NSFS_MAGIC` (include/uapi/linux/magic.h).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// An open network namespace. It lives as long as this does, whatever happens to its path.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    inode: u64,
}

/// Whether a namespace is still there.
#[derive(Debug)]
pub enum Evidence {
    /// It is.
    Present(Netns),
    /// There is nothing at the path, or something that is no namespace (what container runtimes
    /// leave behind when they remove one), or another namespace than the one meant.
    Gone,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/...`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// When it cannot be opened, or is no namespace.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        match Self::look(&path, None)? {
            Evidence::Present(netns) => Ok(netns),
            Evidence::Gone => Err(Error::new(
                format_args!("open the network namespace {}", path.display()),
                io::Error::new(
                    io::ErrorKind::NotFound,
                    "there is no network namespace at this path",
                ),
            )),
        }
    }

    /// Looks whether the namespace at `path` is there, and the one with `inode` if that is known:
    /// a path can come to lead to another one (`/proc/PID/ns/net` of a process that ended).
    ///
    /// # Errors
    /// When that cannot be told (no permission, out of descriptors): then it must not be taken
    /// for gone.
    pub fn look(path: &Path, inode: Option<u64>) -> Result<Evidence, Error> {
        let failed = |e| {
            Error::new(
                format_args!("open the network namespace {}", path.display()),
                e,
            )
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Evidence::Gone),
            Err(e) => return Err(failed(e)),
        };
        let kind = fstatfs(&file)
            .map_err(|e| failed(e.into()))?
            .filesystem_type();
        if kind != NSFS_MAGIC {
            return Ok(Evidence::Gone);
        }
        let found = file.metadata().map_err(failed)?.ino();
        if inode.is_some_and(|meant| meant != found) {
            return Ok(Evidence::Gone);
        }
        Ok(Evidence::Present(Self {
            file,
            path: path.to_owned(),
            inode: found,
        }))
    }

    /// The PID namespace in which `path` means something, if it is one below `/proc/PID`: in another one it leads to
    /// another process or nowhere.
    #[must_use]
    pub fn pid_namespace_of(path: &Path) -> Option<u64> {
        let own = || std::fs::metadata("/proc/self/ns/pid").map(|found| found.ino());
        path.starts_with("/proc").then(own)?.ok()
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells it from other namespaces as long as it lives.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether this is the agent's own, which is the node's.
    #[must_use]
    pub fn is_own(&self) -> bool {
        // That of the first thread, which enters no other.
        let own = std::fs::metadata("/proc/self/ns/net");
        own.is_ok_and(|own| own.ino() == self.inode)
    }

    /// The descriptor, for `IFLA_NET_NS_FD`.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. The thread has
    /// entered the caller's tokio runtime, if there is one, so that sockets opened there are
    /// driven by it.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let failed = |e| {
            Error::new(
                format_args!("enter the network namespace {}", self.path.display()),
                e,
            )
        };
        let runtime = tokio::runtime::Handle::try_current().ok();
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    let _runtime = runtime.as_ref().map(|handle| handle.enter());
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "this thread runs `work` and ends"
                    )]
                    nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .map_err(failed)
    }
}

impl Netns {
    /// Runs `work` on a thread of its own in a new network namespace, which is gone when that has ended.
    ///
    /// # Errors
    /// When the kernel makes none.
    pub fn in_a_new_one<T: Send>(work: impl FnOnce(&Self) -> T + Send) -> Result<T, Error> {
        let failed = |e| Error::new("make a network namespace", e);
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "this thread runs `work` and ends"
                    )]
                    nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
                    Ok(work(&Self::open("/proc/thread-self/ns/net")?))
                })
                .map_err(failed)?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Does `outside` in the agent's own namespace, then `inside` in this one, on a thread of its own
    /// that ends with them. It begins at once; the future is its end.
    pub fn outside_then_inside<A, T, E>(
        self,
        outside: impl FnOnce(&Self) -> Result<A, E> + Send + 'static,
        inside: impl FnOnce(&Self, A) -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let what = format!("enter the network namespace {}", self.path.display());
        let (sender, receiver) = oneshot::channel();
        let refused = what.clone();
        let work = move || {
            let done = outside(&self)?;
            #[expect(
                clippy::disallowed_methods,
                reason = "this thread does `inside` and ends"
            )]
            nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::new(refused, e.into()))?;
            inside(&self, done)
        };
        let started = thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                // Who asked may have gone.
                let _ = sender.send(work());
            });
        async move {
            started.map_err(|e| Error::new(&what, e))?;
            let panicked = || io::Error::other("the thread that does it panicked");
            let result = receiver.await;
            result.unwrap_or_else(|_| Err(Error::new(&what, panicked()).into()))
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
