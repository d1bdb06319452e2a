//! Settings below `/proc/sys`. The `net` part belongs to the namespace of the thread that looks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{Error, model::Sysctl};

/// Where settings are, unless [`set_root`] says otherwise.
pub const ROOT: &str = "/proc/sys";

static OTHER_ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Looks for settings below `root` from now on: a container without privileges has its own
/// `/proc/sys` read-only, and the host's in another place. The first call wins.
pub fn set_root(root: PathBuf) {
    let _ = OTHER_ROOT.set(root);
}

/// Where settings are.
#[must_use]
pub fn root() -> &'static Path {
    OTHER_ROOT.get().map_or(Path::new(ROOT), PathBuf::as_path)
}

fn path(sysctl: &Sysctl) -> PathBuf {
    root().join(&sysctl.path)
}

/// Whether there is nothing to set: a kernel without IPv6 has none of its settings, and none of
/// what they are to prevent.
#[must_use]
pub fn is_moot(sysctl: &Sysctl) -> bool {
    sysctl.path.starts_with("net/ipv6/") && !root().join("net/ipv6").exists()
}

/// The current value, without its newline.
///
/// # Errors
/// When the setting does not exist or cannot be read.
pub fn read(sysctl: &Sysctl) -> Result<String, Error> {
    match fs::read_to_string(path(sysctl)) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(e) => Err(Error::new(format_args!("read sysctl {}", sysctl.path), e)),
    }
}

/// Writes the setting unless it has the value already (so that a read-only `/proc/sys` does no
/// harm where nothing needs to change).
///
/// # Errors
/// When the setting does not exist or cannot be written.
pub fn write(sysctl: &Sysctl) -> Result<(), Error> {
    if is_moot(sysctl) || read(sysctl).is_ok_and(|value| value == sysctl.value) {
        return Ok(());
    }
    fs::write(path(sysctl), &sysctl.value).map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                " (mount the host's /proc/sys writable and name it: --sysctl-dir)"
            }
            io::ErrorKind::NotFound => " (the kernel or the link does not have it)",
            _ => "",
        };
        Error::new(format_args!("set {sysctl}{hint}"), e)
    })
}
