//! The architectures that programs and images are built for.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::remap;
use crate::setup::{cross, rust_src};
use crate::workspace::Workspace;

/// An architecture, by the name that images and Debian give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// Returns this machine's.
    pub(crate) fn here() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("there are programs for x86-64 and arm64, and this machine is {other}"),
        }
    }

    /// Returns its name in images and packages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns the compiler's name for it.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Whether it is another one than this machine's.
    pub(crate) fn is_foreign(self) -> bool {
        Self::here().map_or(true, |here| here != self)
    }

    /// Returns cargo's output directory. That of another architecture is apart from this machine's: its builds allow
    /// unstable options, which build scripts notice, and everything would be built anew by turns.
    pub(crate) fn output(self, ws: &Workspace) -> PathBuf {
        if self.is_foreign() {
            ws.target.join("cross/build").join(self.target())
        } else {
            ws.target.clone()
        }
    }

    /// Returns the directory of the release programs.
    pub(crate) fn release(self, ws: &Workspace) -> PathBuf {
        self.output(ws).join("release")
    }

    /// Returns a cargo command that builds a release for it, with the same bytes in every directory.
    ///
    /// For another architecture there is no prebuilt standard library here. It is compiled from the same source as the
    /// part of it in the kernel's programs, by Debian's compiler as far as it is C.
    pub(crate) fn cargo(self, ws: &Workspace, command: &str) -> Result<Command> {
        let mut cargo = ws.cargo(command);
        let mut flags = remap::flags(ws);
        // What the user wants of every crate, for this machine's processor for example.
        let theirs = std::env::var("RUSTFLAGS").unwrap_or_default();
        flags.extend(theirs.split_whitespace().map(str::to_owned));
        cargo.env_remove("RUSTFLAGS");
        if self.is_foreign() {
            if self == Self::Amd64 {
                bail!("programs for amd64 are built on x86-64");
            }
            let source = rust_src::ensure(ws)?;
            let toolchain = cross::ensure(ws)?;
            let underscored = self.target().replace('-', "_");
            cargo
                .args(["--target", self.target()])
                .args(["-Z", "build-std=std,panic_abort", "--target-dir"])
                .arg(ws.target.join("cross/build"))
                // Allows -Z on a stable compiler.
                .env("RUSTC_BOOTSTRAP", "1")
                .env(format!("CC_{underscored}"), &toolchain.cc)
                .env(format!("AR_{underscored}"), &toolchain.ar)
                .env(
                    format!("CARGO_TARGET_{}_LINKER", underscored.to_uppercase()),
                    &toolchain.cc,
                );
            source.apply(&mut cargo);
            flags.extend(source.flags(ws)?);
        }
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        Ok(cargo)
    }
}
