//! Finds Kubernetes' programs.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use ebbtide_vpc::skip::{Need, skip};

use super::{release::Release, runtime::Runtime};

/// The variable with the directory of Kubernetes' programs, as `setup-envtest` and controller-runtime name it.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The directory without that variable.
const BUILT: &str = "../../target/kube/bin";

/// Kubernetes' programs on this machine.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds the programs in `KUBEBUILDER_ASSETS`, or else in `target/kube/bin`. Returns `None`, after a [`skip`], if
    /// there are none, or no etcd.
    #[must_use]
    pub fn find() -> Option<Self> {
        let directory = env::var_os(ASSETS).map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join(BUILT),
            PathBuf::from,
        );
        let binaries = Self { directory };
        let missing = ["kube-apiserver", "kubectl", "etcd"]
            .into_iter()
            .find(|name| binaries.file(name).is_err());
        match missing {
            None => Some(binaries),
            Some(name) => {
                let directory = binaries.directory.display();
                skip(
                    Need::Kube,
                    format_args!(
                        "{name} is neither in {directory} nor in PATH; set {ASSETS} to the directory of Kubernetes' \
                         programs"
                    ),
                );
                None
            }
        }
    }

    /// Returns the path of the program `name`: in that directory, or in `PATH`.
    ///
    /// # Errors
    /// If it is in neither.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        std::iter::once(self.directory.clone())
            .chain(env::split_paths(&path))
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
            .map(|directory| directory.join(name))
            .find(|file| file.is_file())
            .with_context(|| {
                format!(
                    "{name} is neither in {} nor in PATH ({ASSETS})",
                    self.directory.display()
                )
            })
    }

    /// Returns the Kubernetes release of the program `name`.
    ///
    /// # Errors
    /// If it does not exist or does not answer.
    pub fn release(&self, name: &str) -> Result<Release> {
        let said = self.version(name)?;
        Release::parse(&said).with_context(|| format!("{name} --version says {said:?}"))
    }

    /// Returns the release of the container runtime.
    ///
    /// # Errors
    /// If it does not exist or does not answer.
    pub fn runtime(&self) -> Result<Runtime> {
        let said = self.version("containerd")?;
        Runtime::parse(&said).with_context(|| format!("containerd --version says {said:?}"))
    }

    fn version(&self, name: &str) -> Result<String> {
        let program = self.file(name)?;
        let output = Command::new(&program).arg("--version").output();
        let output = output.with_context(|| format!("starting {}", program.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns their directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns `PATH` with their directory first, so that a container runtime there finds its own shim and runc.
    pub(super) fn first_in_path(&self) -> Result<OsString> {
        let path = env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(self.directory.clone()).chain(env::split_paths(&path));
        env::join_paths(all).with_context(|| format!("{} in PATH", self.directory.display()))
    }
}
