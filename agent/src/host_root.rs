//! The host's root directory, in which programs of the host are found and run.
//!
//! The agent's image has no programs but its own. Those of the host (IPAM plugins that a configuration delegates to,
//! `iptables-save`, `nft`) also need the host's libraries, configuration and state, each at its own path. So they run
//! with the host's root directory as their own, which the container has mounted somewhere (`--host-root`).

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use nix::sched::CloneFlags;

/// The default search path: the directories of most distributions, and of NixOS.
const STANDARD_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";

static OF_THE_AGENT: OnceLock<HostRoot> = OnceLock::new();

/// A root directory to run programs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRoot(Option<PathBuf>);

/// Why the host's root directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "use {path} as the host's root directory (--host-root): {source}; is the host's / mounted there, and has the agent the \
     capability SYS_CHROOT?"
)]
pub struct HostRootError {
    /// The directory.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl HostRoot {
    /// Returns the agent's host root, as set by [`HostRoot::set`].
    #[must_use]
    pub fn get() -> &'static Self {
        OF_THE_AGENT.get_or_init(Self::default)
    }

    /// Sets the agent's host root. The first call wins.
    pub fn set(root: Self) {
        let _ = OF_THE_AGENT.set(root);
    }

    /// Opens the root directory `path`, and tries to enter it.
    ///
    /// # Errors
    /// If it cannot be entered.
    pub fn open(path: PathBuf) -> Result<Self, HostRootError> {
        let root = Self(Some(path.clone()));
        let tried = root.run(|| ());
        tried.map_err(|source| HostRootError { path, source })?;
        Ok(root)
    }

    /// Runs `work` with this root directory, on a thread of its own if it is not the agent's. The thread has entered
    /// the caller's tokio runtime, if there is one. What `work` starts has this root, too.
    ///
    /// # Errors
    /// If the directory cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let Some(path) = &self.0 else {
            return Ok(work());
        };
        let runtime = tokio::runtime::Handle::try_current().ok();
        thread::scope(|scope| {
            thread::Builder::new()
                .name("host-root".to_owned())
                .spawn_scoped(scope, || {
                    let _runtime = runtime.as_ref().map(|handle| handle.enter());
                    // Root and working directory belong to the process; this thread gets its own.
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "this thread runs `work` and ends"
                    )]
                    nix::sched::unshare(CloneFlags::CLONE_FS)?;
                    nix::unistd::chroot(path)?;
                    nix::unistd::chdir("/")?;
                    Ok(work())
                })?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Returns the directories in which programs without a path are looked for. For another root, the agent's own
    /// `PATH` does not apply.
    #[must_use]
    pub fn search_path(&self) -> OsString {
        let own = std::env::var_os("PATH").filter(|path| self.0.is_none() && !path.is_empty());
        own.unwrap_or_else(|| STANDARD_PATH.into())
    }
}

impl fmt::Display for HostRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => write!(f, "on the host (mounted at {})", path.display()),
            None => write!(f, "where the agent runs"),
        }
    }
}

/// Returns the first file `name` in the directories of `path`, as the calling thread sees them. `path` is in the
/// format of `PATH`; relative directories are skipped.
#[must_use]
pub fn which(name: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(Path::new(name)))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn without_another_root_work_is_done_here() {
        let here = HostRoot::default();
        let thread = thread::current().id();
        assert_eq!(here.run(|| thread::current().id()).unwrap(), thread);
        assert_eq!(here.to_string(), "where the agent runs");
    }

    #[test]
    fn a_root_that_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = HostRoot::open(missing.clone()).unwrap_err().to_string();
        assert!(
            error.contains(&*missing.to_string_lossy()) && error.contains("--host-root"),
            "{error}"
        );
    }

    #[test]
    fn a_program_is_looked_for_in_every_absolute_directory() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::create_dir(first.path().join("tool")).unwrap();
        fs::write(second.path().join("tool"), "").unwrap();
        let path = format!(
            "relative:{}:{}",
            first.path().display(),
            second.path().display()
        );
        let found = which("tool", path.as_ref());
        assert_eq!(found, Some(second.path().join("tool")));
        assert_eq!(which("other", path.as_ref()), None);
    }
}
