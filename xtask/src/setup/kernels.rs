//! The kernels that guests run, unpacked below the target directory and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::debian;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// A kernel image and its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What is started: a program (user-mode Linux) or a boot image.
    pub(crate) image: PathBuf,
    /// What is to be `/lib/modules/VERSION` in the guest.
    pub(crate) modules: PathBuf,
}

/// User-mode Linux: a kernel that is an ordinary process, 2 s to boot, native speed.
pub(crate) fn user_mode(ws: &Workspace) -> Result<Kernel> {
    let dir = ws.target.join("uml");
    let image = dir.join("usr/bin/linux.uml");
    if !image.exists() {
        ui::note("setup: getting Debian's user-mode-linux (41 MB)");
        debian::unpack(&debian::download(ws, "user-mode-linux")?, &dir)?;
    }
    let (_, modules) = only_entry(&dir.join("usr/lib/uml/modules"))?;
    Ok(Kernel { image, modules })
}

/// Debian's stock kernel, for QEMU.
pub(crate) fn stock(ws: &Workspace) -> Result<Kernel> {
    let kernels = ws.target.join("kernels");
    if newest(&kernels).is_none() {
        let package = debian::dependency(ws, "linux-image-amd64")?;
        ui::note(format_args!("setup: getting Debian's {package} (70 MB)"));
        let version = package.strip_prefix("linux-image-").unwrap_or(&package);
        let half = kernels.join(format!("half-{version}"));
        debian::unpack(&debian::download(ws, &package)?, &half)?;
        let mut depmod = Command::new(exec::find("depmod").unwrap_or_else(|| "depmod".into()));
        exec::run(depmod.arg("-b").arg(&half).arg(version), Output::OnFailure)?;
        let done = kernels.join(version);
        fs::rename(&half, &done).with_context(|| format!("cannot make {}", done.display()))?;
    }
    let dir = newest(&kernels).context("no kernel was unpacked")?;
    let (version, modules) = only_entry(&dir.join("lib/modules"))
        .or_else(|_| only_entry(&dir.join("usr/lib/modules")))?;
    Ok(Kernel {
        image: dir.join(format!("boot/vmlinuz-{version}")),
        modules,
    })
}

/// The newest complete kernel in `dir`.
fn newest(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let complete = entries.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
    complete
        .max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok())
        .map(|entry| entry.path())
}

/// Name and path of the one directory in `dir`.
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
