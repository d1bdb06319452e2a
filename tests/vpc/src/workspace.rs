//! The paths of the binaries and other files under test.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The directory of files under test, and the command that makes them.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    variable: &'static str,
    default: &'static str,
    made_by: &'static str,
}

/// `ebbtide`, `ebbtide-agent`, `ebbtidectl`.
pub const BINARIES: Place = Place {
    variable: "EBBTIDE_BIN_DIR",
    default: "target/release",
    made_by: "cargo xtask build",
};

/// As [`BINARIES`], of an older release.
pub const OLDER: Place = Place {
    variable: "EBBTIDE_OLDER_DIR",
    default: "target/older",
    made_by: "cargo xtask older",
};

/// The eBPF objects.
pub const EBPF: Place = Place {
    variable: "EBBTIDE_EBPF_DIR",
    default: "target/ebpf",
    made_by: "cargo xtask build-ebpf",
};

/// The container image.
pub const IMAGE: Place = Place {
    variable: "EBBTIDE_IMAGE_DIR",
    default: "target/image",
    made_by: "cargo xtask image",
};

/// `xtask` itself, which starts machines.
pub const XTASK: Place = Place {
    variable: "EBBTIDE_XTASK_DIR",
    default: "target/debug",
    made_by: "cargo build -p xtask",
};

/// `ebbtide-e2e`, beside `xtask`: it is also the server in the end-to-end test's pods.
pub const E2E: Place = Place {
    made_by: "cargo build --bin ebbtide-e2e",
    ..XTASK
};

/// The programs that clouds' images run on a node, each below the name of its package.
pub const IMAGES: Place = Place {
    variable: "EBBTIDE_IMAGES_DIR",
    default: "target/images",
    made_by: "cargo xtask setup",
};

/// `prometheus` and `promtool`, of Debian's package.
pub const PROMETHEUS: Place = Place {
    variable: "EBBTIDE_PROMETHEUS_DIR",
    default: "target/prometheus/usr/bin",
    made_by: "cargo xtask test",
};

/// `helm`.
pub const HELM: Place = Place {
    variable: "EBBTIDE_HELM_DIR",
    default: "target/helm/program/bin",
    made_by: "cargo xtask e2e",
};

impl Place {
    /// Returns the path of the file of this name.
    ///
    /// # Errors
    /// If it does not exist; the error names the command that makes it.
    pub fn file(self, name: &str) -> Result<PathBuf> {
        let path = self.directory().join(name);
        if !path.is_file() {
            bail!(
                "{} is not there: run `{}`, or set {}",
                path.display(),
                self.made_by,
                self.variable
            );
        }
        Ok(path.canonicalize()?)
    }

    /// Returns the directory, whether it is there or not.
    pub(crate) fn directory(self) -> PathBuf {
        std::env::var_os(self.variable).map_or_else(
            || {
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("../..")
                    .join(self.default)
            },
            PathBuf::from,
        )
    }
}
