//! Opens and enters network namespaces. A thread that enters one never returns to a pool: if leaving failed, its next
//! user would run in the wrong namespace.

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

/// An open network namespace. It exists as long as this value, whatever happens to its path.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::netlink::netns::{Evidence, Netns};
///
/// let own = Netns::open("/proc/self/ns/net")?;
/// assert!(own.is_own()?);
///
/// // The inode tells whether the same namespace is still at a path.
/// let Evidence::Present(same) = Netns::inspect(own.path(), Some(own.inode()))? else {
///     unreachable!("it exists")
/// };
/// assert_eq!(same.inode(), own.inode());
/// assert!(matches!(Netns::inspect(own.path(), Some(1))?, Evidence::Gone));
/// # Ok::<(), ebbtide_kernel::netlink::Error>(())
/// ```
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Whether a namespace still exists.
#[derive(Debug)]
pub enum Evidence {
    /// It exists.
    Present(Netns),
    /// There is nothing at the path, or no namespace (what container runtimes leave behind when they remove one), or
    /// another namespace than the expected one.
    Gone,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/...`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// If it cannot be opened, or is no namespace.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        match Self::inspect(&path, None)? {
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

    /// Checks whether the namespace at `path` exists, and is the one with `inode` if that is known: a path can come to
    /// refer to another one (`/proc/PID/ns/net` of a process that ended). Anything else at the path is not opened: a
    /// FIFO would block, and opening a device has its effects.
    ///
    /// # Errors
    /// If that cannot be determined (no permission, out of descriptors): then it must not be taken for gone.
    pub fn inspect(path: &Path, inode: Option<u64>) -> Result<Evidence, Error> {
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

    /// Returns the PID namespace in which `path` is valid, if it is below `/proc`: in another one it refers to another
    /// process or none.
    #[must_use]
    pub fn pid_namespace_of(path: &Path) -> Option<u64> {
        let own = || std::fs::metadata("/proc/self/ns/pid").map(|found| found.ino());
        path.starts_with("/proc").then(own)?.ok()
    }

    /// Returns the path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its inode, which identifies it as long as it exists.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether this is the agent's own namespace, which is the node's.
    ///
    /// # Errors
    /// If that cannot be determined: then it must be assumed.
    pub fn is_own(&self) -> Result<bool, Error> {
        // The namespace of the main thread, which enters no other.
        let own = std::fs::metadata("/proc/self/ns/net");
        let is_it = |own: Metadata| (own.dev(), own.ino()) == (self.device, self.inode);
        own.map(is_it)
            .map_err(|e| Error::new("inspect the node's network namespace", e))
    }

    /// Returns the descriptor, for `IFLA_NET_NS_FD`.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. The thread enters the caller's tokio
    /// runtime, if there is one, so that it drives sockets opened there.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use ebbtide_kernel::netlink::{direct::Direct, netns::Netns};
    ///
    /// let pod = Netns::open("/run/netns/web")?;
    /// // The socket stays in the pod's namespace, the caller's thread never enters it.
    /// let mut netlink = pod.run(|| Direct::open("in /run/netns/web"))??;
    /// let links = netlink.links(&["eth0"])?;
    /// # Ok::<(), ebbtide_kernel::netlink::Error>(())
    /// ```
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
                    self.enter()?;
                    Ok(work())
                })
                .map_err(failed)?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Netns {
    /// Runs `work` on a thread of its own in a new network namespace, which is removed afterwards.
    ///
    /// # Errors
    /// If the kernel refuses to create a namespace.
    pub fn in_new<T: Send>(work: impl FnOnce(&Self) -> T + Send) -> Result<T, Error> {
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

    /// Runs `work` inside the namespace, on a new thread that ends with it. The thread starts at once; the future
    /// completes when it ends.
    pub fn inside<T, E>(
        self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.on_a_thread(|netns| {
            netns.enter()?;
            work()
        })
    }

    /// As [`Netns::inside`], for work that is also done in the agent's own namespace: there it begins.
    pub fn visit<T, E>(
        self,
        work: impl FnOnce(&Visits<'_>) -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.on_a_thread(|netns| {
            let home = Self::open("/proc/thread-self/ns/net")?;
            work(&Visits { home, netns })
        })
    }

    fn on_a_thread<T, E>(
        self,
        work: impl FnOnce(&Self) -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let what = format!("enter the network namespace {}", self.path.display());
        let (sender, receiver) = oneshot::channel();
        let started = thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                // The caller may have dropped the future.
                let _ = sender.send(work(&self));
            });
        async move {
            started.map_err(|e| Error::new(&what, e))?;
            let panicked = || io::Error::other("the thread that does it panicked");
            let result = receiver.await;
            result.unwrap_or_else(|_| Err(Error::new(&what, panicked()).into()))
        }
    }

    /// Moves the calling thread into the namespace.
    fn enter(&self) -> Result<(), Error> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the callers are threads of their own, which end after their work"
        )]
        let entered = nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET);
        entered.map_err(|e| {
            let what = format_args!("enter the network namespace {}", self.path.display());
            Error::new(what, e.into())
        })
    }
}

/// A thread in the agent's own namespace that enters another one for parts of its work.
///
/// A socket stays in the namespace where it was opened, wherever the thread goes. Sysctls must be used where they
/// belong: see [`Settings`](super::sysctl::Settings).
#[derive(Debug)]
pub struct Visits<'n> {
    home: Netns,
    netns: &'n Netns,
}

impl Visits<'_> {
    /// Returns the namespace that is visited.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        self.netns
    }

    /// Runs `work` inside the namespace, and returns to the agent's own.
    ///
    /// # Errors
    /// If a namespace cannot be entered, or those of `work`. After one, the thread may be in either namespace.
    pub fn inside<T, E: From<Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.netns.enter()?;
        let done = work()?;
        self.home.enter()?;
        Ok(done)
    }
}

/// Opens the network namespace at `path`; `None` if it is something else.
fn open_namespace(path: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    let place = options.read(true).custom_flags(libc::O_PATH).open(path)?;
    if fstatfs(&place)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    // By the descriptor: the path may refer to something else by now.
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

    /// Runs [`Netns::inspect`] with a time limit.
    fn inspect(path: &Path) -> Result<Evidence, Error> {
        let (sender, answer) = mpsc::channel();
        let path = path.to_owned();
        thread::spawn(move || sender.send(Netns::inspect(&path, None)));
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
            let found = inspect(&path).unwrap();
            assert!(matches!(found, Evidence::Gone), "{}", path.display());
        }
        for path in [at("file/below"), at(&"x".repeat(300))] {
            assert!(inspect(&path).is_err(), "{}", path.display());
        }
        for path in ["/proc/self/ns/net".into(), at("to-net")] {
            let Evidence::Present(own) = inspect(&path).unwrap() else {
                panic!("{} is one", path.display());
            };
            assert!(own.is_own().unwrap(), "{}", path.display());
        }
    }
}
