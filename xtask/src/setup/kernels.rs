//! The kernels of guests, unpacked below the target directory and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::debian;
use super::pins::{self, Pins};
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// A kernel image and its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The file to start: a program (user-mode Linux) or a boot image.
    pub(crate) image: PathBuf,
    /// The directory that becomes `/lib/modules/VERSION` in the guest.
    pub(crate) modules: PathBuf,
}

/// The pinned name of the stock kernel that is tested by default.
pub(crate) const DEFAULT: &str = "6.1";

/// The path of the program in Debian's package of user-mode Linux.
const UML: &str = "usr/bin/linux.uml";

/// Whether a kernel needs no download. `name` is its pinned name, or `None` for user-mode Linux.
pub(crate) fn is_there(ws: &Workspace, name: Option<&str>) -> Result<bool> {
    Ok(match name {
        None => ws.target.join("uml").join(UML).exists(),
        Some(name) => {
            let pins = Pins::read()?;
            let release = pins.kernel(name)?.release().to_owned();
            ws.target.join("kernels").join(release).exists()
        }
    })
}

/// Returns user-mode Linux: a kernel that is an ordinary process, boots in 2 s, and runs at native speed.
pub(crate) fn user_mode(ws: &Workspace) -> Result<Kernel> {
    let dir = ws.target.join("uml");
    let image = dir.join(UML);
    if !image.exists() {
        ui::note("setup: getting Debian's user-mode-linux (41 MB)");
        debian::unpack(&[debian::download(ws, "user-mode-linux")?], &dir)?;
    }
    let (_, modules) = only_entry(&dir.join("usr/lib/uml/modules"))?;
    Ok(Kernel { image, modules })
}

/// Returns one of Debian's stock kernels for QEMU; `name` is its pinned name.
///
/// An archive drops old versions. Then another one with the same pinned name is used, and a note says how to pin it.
pub(crate) fn stock(ws: &Workspace, name: &str) -> Result<Kernel> {
    let pins = Pins::read()?;
    let pin = pins.kernel(name)?;
    let wanted = ws.target.join("kernels").join(pin.release());
    let dir = if wanted.exists() {
        wanted
    } else {
        get(ws, &pin).or_else(|error| instead(ws, &pin, &error))?
    };
    found(&dir)
}

/// Downloads and unpacks a kernel.
fn get(ws: &Workspace, pin: &pins::Kernel<'_>) -> Result<PathBuf> {
    let release = pin.release();
    ui::note(format_args!(
        "setup: getting Debian's kernel {release} (70 to 160 MB)"
    ));
    let mut debs = Vec::new();
    for package in &pin.packages {
        let deb = debian::download_from(ws, package.suite, package.name, package.version)?;
        debian::verify(&deb, package.sha256)?;
        debs.push(deb);
    }
    let kernels = ws.target.join("kernels");
    let half = kernels.join(format!("half-{release}"));
    debian::unpack(&debs, &half)?;
    index_modules(&half, release)?;
    let done = kernels.join(release);
    fs::rename(&half, &done).with_context(|| format!("cannot make {}", done.display()))?;
    Ok(done)
}

/// Makes the index of the modules' dependencies in a directory of unpacked packages.
fn index_modules(half: &Path, release: &str) -> Result<()> {
    if !half.join("lib").exists() {
        // depmod looks for modules there only.
        std::os::unix::fs::symlink("usr/lib", half.join("lib"))
            .context("cannot make a link to the modules")?;
    }
    let mut depmod = Command::new(exec::find("depmod").unwrap_or_else(|| "depmod".into()));
    exec::run(depmod.arg("-b").arg(half).arg(release), Output::OnFailure)
}

/// Returns the kernel in a directory of unpacked packages, which has no index of its modules yet.
pub(super) fn unpacked(dir: &Path) -> Result<Kernel> {
    let kernel = found(dir)?;
    if !kernel.modules.join("modules.dep").exists() {
        let release = kernel.modules.file_name().unwrap_or_default();
        index_modules(dir, &release.to_string_lossy())?;
    }
    Ok(kernel)
}

/// Returns a kernel in place of a pinned one that cannot be downloaded: the one that its suite has now.
fn instead(ws: &Workspace, pin: &pins::Kernel<'_>, error: &anyhow::Error) -> Result<PathBuf> {
    ui::note(format_args!(
        "setup: the pinned kernel {} cannot be had ({error:#}); taking what Debian serves now: \
         `cargo xtask setup --bump-kernels` pins it",
        pin.release()
    ));
    let text = pins::served(ws, pin)?;
    let pins = Pins::parse(&text)?;
    let pin = pins.kernel(pin.name)?;
    let dir = ws.target.join("kernels").join(pin.release());
    if dir.exists() {
        return Ok(dir);
    }
    get(ws, &pin)
}

fn found(dir: &Path) -> Result<Kernel> {
    let (version, modules) = only_entry(&dir.join("lib/modules"))?;
    let inside = modules.join("vmlinuz");
    let boot = dir.join(format!("boot/vmlinuz-{version}"));
    Ok(Kernel {
        image: if boot.exists() { boot } else { inside },
        modules,
    })
}

/// Returns name and path of the only directory in `dir`.
fn only_entry(dir: &Path) -> Result<(String, PathBuf)> {
    let entry = fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .find_map(Result::ok)
        .with_context(|| format!("{} is empty", dir.display()))?;
    Ok((
        entry.file_name().to_string_lossy().into_owned(),
        entry.path(),
    ))
}
