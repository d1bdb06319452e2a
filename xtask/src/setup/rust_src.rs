//! The library source of exactly this compiler, which is needed to build `core` for the kernel's target.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// Debian's package with the source, for users without rustup's component.
const PACKAGE: &str = "rust-src";
const PACKAGE_VERSION: &str = "1.95.0+dfsg1-2~bpo13+1";
const SUITE: &str = "trixie-backports";
const SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
/// The compiler version of that package.
const COMPILER: &str = "1.95.0";

/// The place of the source.
#[derive(Debug)]
pub(crate) enum Source {
    /// The compiler's sysroot, where cargo looks: rustup's component.
    Sysroot,
    /// A `library` directory below the target directory.
    Unpacked(PathBuf),
}

impl Source {
    /// Makes cargo use the source.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        if let Self::Unpacked(library) = self {
            // cargo's own variable for another source tree for build-std, so that the compiler's directory stays
            // unchanged.
            cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
        }
    }

    /// Returns the directory `library` of the source.
    pub(crate) fn library(&self, ws: &Workspace) -> Result<PathBuf> {
        match self {
            Self::Unpacked(library) => Ok(library.clone()),
            Self::Sysroot => Ok(sysroot(ws)?.join("lib/rustlib/src/rust/library")),
        }
    }
}

/// Finds the source, or downloads Debian's.
pub(crate) fn ensure(ws: &Workspace) -> Result<Source> {
    if let Some(source) = find(ws)? {
        return Ok(source);
    }
    let version = exec::read(rustc(ws).arg("--version"))?;
    if version.split_whitespace().nth(1) != Some(COMPILER) {
        bail!(
            "the library source of this compiler ({}) is missing: run \
             `rustup component add rust-src`",
            version.trim()
        );
    }
    ui::note(format_args!(
        "setup: getting Debian's {PACKAGE} {PACKAGE_VERSION} \
         (or stop here and run `rustup component add rust-src`)"
    ));
    unpack(ws, &place(ws)).context(
        "cannot get the compiler's library source from Debian: \
         run `rustup component add rust-src` instead",
    )?;
    Ok(Source::Unpacked(place(ws).join("library")))
}

/// Finds the source.
pub(super) fn find(ws: &Workspace) -> Result<Option<Source>> {
    if Source::Sysroot.library(ws)?.join("Cargo.lock").exists() {
        return Ok(Some(Source::Sysroot));
    }
    let library = place(ws).join("library");
    let is_there = library.join("Cargo.lock").exists();
    Ok(is_there.then_some(Source::Unpacked(library)))
}

/// Returns the directory of this workspace's compiler.
fn sysroot(ws: &Workspace) -> Result<PathBuf> {
    let path = exec::read(rustc(ws).args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(path.trim()))
}

/// Returns a command of this workspace's compiler.
fn rustc(ws: &Workspace) -> Command {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(&ws.root);
    rustc
}

/// Returns the directory of Debian's source.
fn place(ws: &Workspace) -> PathBuf {
    ws.target.join("rust-src").join(COMPILER)
}

fn unpack(ws: &Workspace, to: &PathBuf) -> Result<()> {
    let deb = debian::download_from(ws, SUITE, PACKAGE, PACKAGE_VERSION)?;
    debian::verify(&deb, SHA256)?;
    // Only the library is unpacked: the package also has the compiler's source, which is six times as large.
    let half = to.with_extension("new");
    let _ = fs::remove_dir_all(&half);
    fs::create_dir_all(&half).with_context(|| format!("cannot make {}", half.display()))?;
    let mut files = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stream = files.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.arg("-x")
        .arg("-C")
        .arg(&half)
        .arg("--strip-components=4");
    tar.arg(format!("./usr/src/rustc-{COMPILER}/library"));
    let unpacked = tar.stdin(stream).status().context("cannot start tar")?;
    let read = files.wait().context("dpkg-deb did not end")?;
    if !unpacked.success() || !read.success() {
        bail!(
            "`dpkg-deb --fsys-tarfile {} | {}` failed",
            deb.display(),
            exec::line(&tar)
        );
    }
    let _ = fs::remove_dir_all(to);
    exec::run(Command::new("mv").arg(&half).arg(to), Output::OnFailure)
}
