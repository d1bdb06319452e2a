//! Network namespaces. A thread that enters one never returns to a pool: a failed way back would
//! leave it poisoned for whoever gets it next.

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    libc,
    sched::CloneFlags,
    sys::statfs::{FsType, fstatfs},
};
use tokio::sync::oneshot;

use super::Error;

/// `NSFS_MAGIC` (include/uapi/linux/magic.h).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// `NS_GET_NSTYPE` (include/uapi/linux/nsfs.h): which kind of namespace it is, as its clone flag.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// An open network namespace. It lives as long as this does, whatever happens to its path.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    device: u64,
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
    /// a path can come to lead to another one (`/proc/PID/ns/net` of a process that ended). What else is at the path is
    /// not opened: a FIFO would wait for its other end, and a device do what opening it does.
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
        let file = match open_namespace(path) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Evidence::Gone),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Evidence::Gone),
            Err(e) => return Err(failed(e)),
        };
        let found = file.metadata().map_err(failed)?;
        if inode.is_some_and(|meant| meant != found.ino()) {
            return Ok(Evidence::Gone);
        }
        Ok(Evidence::Present(Self {
            file,
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
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
    ///
    /// # Errors
    /// When that cannot be told: then it must be taken for it.
    pub fn is_own(&self) -> Result<bool, Error> {
        // That of the first thread, which enters no other.
        let own = std::fs::metadata("/proc/self/ns/net");
        let is_it = |own: Metadata| (own.dev(), own.ino()) == (self.device, self.inode);
        own.map(is_it)
            .map_err(|e| Error::new("look at the node's network namespace", e))
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

/// Opens the network namespace at `path`; nothing, if something else is there.
fn open_namespace(path: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    let place = options.read(true).custom_flags(libc::O_PATH).open(path)?;
    if fstatfs(&place)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    // By the descriptor: at the path may be something else by now.
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    // SAFETY: the request takes no argument, and the descriptor is open for as long as `file` is.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    Ok((kind == CloneFlags::CLONE_NEWNET.bits()).then_some(file))
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::symlink, net::UnixListener},
        sync::mpsc,
        time::Duration,
    };

    use super::*;

    /// What [`Netns::look`] says in a few seconds.
    fn look(path: &Path) -> Result<Evidence, Error> {
        let (sender, answer) = mpsc::channel();
        let path = path.to_owned();
        thread::spawn(move || sender.send(Netns::look(&path, None)));
        answer.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn whatever_is_no_network_namespace_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(at("file"), "x").unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink(at("fifo"), at("to-fifo")).unwrap();
        symlink("/proc/self/ns/mnt", at("to-mnt")).unwrap();
        symlink("/proc/self/ns/net", at("to-net")).unwrap();
        for path in [
            at("fifo"),
            at("file"),
            at("socket"),
            at("to-fifo"),
            at("to-mnt"),
            at("missing"),
            at(""),
            "/dev/null".into(),
            "/dev/ptmx".into(),
            "/proc/self/ns/uts".into(),
            "/proc/self/ns/user".into(),
        ] {
            let found = look(&path).unwrap();
            assert!(matches!(found, Evidence::Gone), "{}", path.display());
        }
        for path in [at("file/below"), at(&"x".repeat(300))] {
            assert!(look(&path).is_err(), "{}", path.display());
        }
        for path in ["/proc/self/ns/net".into(), at("to-net")] {
            let Evidence::Present(own) = look(&path).unwrap() else {
                panic!("{} is one", path.display());
            };
            assert!(own.is_own().unwrap(), "{}", path.display());
        }
    }
}
