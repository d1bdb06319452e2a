//! The library source of exactly this compiler, which is needed to build `core` for the kernel's target.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{debian, script};
use crate::exec::{self, Output};
use crate::remap;
use crate::ui;
use crate::workspace::Workspace;

/// Debian's package with the source, for users without rustup's component.
const PACKAGE: &str = "rust-src";
const PACKAGE_VERSION: &str = "1.95.0+dfsg1-2~bpo13+1";
const SUITE: &str = "trixie-backports";
const SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
/// The compiler version of that package.
const COMPILER: &str = "1.95.0";

/// The place of the source in a compiler's directory, the sysroot.
const BELOW: &str = "lib/rustlib/src/rust";

/// The place of the source.
#[derive(Debug)]
pub(crate) enum Source {
    /// The compiler's sysroot, where cargo looks: rustup's component.
    Sysroot,
    /// A sysroot below the target directory: [`like_a_sysroot`].
    Unpacked(PathBuf),
}

impl Source {
    /// Makes cargo use the source.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        if let Self::Unpacked(sysroot) = self {
            cargo
                .env("RUSTC", sysroot.join(COMPILER_BELOW))
                // Clippy is a compiler itself, and does not call the script.
                .env("SYSROOT", sysroot);
        }
    }

    /// Returns the compiler's flags for the crates that are built with it, by which its place is in no program.
    pub(crate) fn flags(&self, ws: &Workspace) -> Result<Vec<String>> {
        let real = match self {
            Self::Sysroot => sysroot(ws)?,
            Self::Unpacked(sysroot) => sysroot.clone(),
        };
        let library = real.join(BELOW);
        let mut flags = vec![remap::flag(&library, NAME)];
        // In the workspace cargo names sources by their relative paths.
        if let Ok(relative) = library.strip_prefix(&ws.root) {
            flags.push(remap::flag(relative, NAME));
        }
        Ok(flags)
    }
}

/// The name of the source's directory in programs.
const NAME: &str = "/rust-src";

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
    like_a_sysroot(ws)
}

/// Finds the source.
pub(super) fn find(ws: &Workspace) -> Result<Option<Source>> {
    let library = sysroot(ws)?.join(BELOW).join("library/Cargo.lock");
    if library.exists() {
        return Ok(Some(Source::Sysroot));
    }
    let is_there = place(ws).join("library/Cargo.lock").exists();
    is_there.then(|| like_a_sysroot(ws)).transpose()
}

/// Returns Debian's source in a sysroot of its own, with links to what is in the compiler's, which stays unchanged, and a
/// script that calls the compiler with it.
///
/// cargo has a variable for a source elsewhere, too. But it names the library's symbols after the path from the sysroot,
/// and without one after the whole path: the programs would differ from directory to directory.
fn like_a_sysroot(ws: &Workspace) -> Result<Source> {
    let real = sysroot(ws)?;
    let ours = ws.target.join("rust-src/sysroot");
    let parts = real.join("lib/rustlib");
    for part in fs::read_dir(&parts).with_context(|| format!("cannot list {}", parts.display()))? {
        let name = part?.file_name();
        if name != "src" {
            link(&parts.join(&name), &ours.join("lib/rustlib").join(name))?;
        }
    }
    link(&place(ws), &ours.join(BELOW))?;
    let compiler = |path: PathBuf| exec::quote(&path.to_string_lossy());
    let text = format!(
        "#!/bin/sh\nexec {} --sysroot {} \"$@\"\n",
        compiler(real.join(COMPILER_BELOW)),
        compiler(ours.clone())
    );
    script::write(&ours.join(COMPILER_BELOW), &text)?;
    Ok(Source::Unpacked(ours))
}

/// The compiler's program in a sysroot.
const COMPILER_BELOW: &str = "bin/rustc";

/// Makes `link` a link to `target`.
fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|there| there == target) {
        return Ok(());
    }
    let made = || {
        fs::create_dir_all(link.parent().unwrap_or(link))?;
        // Renamed into place: two commands may make it at the same time.
        let half = link.with_extension(format!("half-{}", std::process::id()));
        symlink(target, &half).and_then(|()| fs::rename(&half, link))
    };
    made().with_context(|| format!("cannot make {}", link.display()))
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
