//! Runs programs in this kernel that may also run in a guest.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Result;

use crate::exec;

/// A script that mounts a bpf file system, as a guest has it: pinned maps need one, and a container often has none.
const WITH_BPFFS: &str = r#"
[ "$(stat -f -c %T /sys/fs/bpf)" = bpf_fs ] || mount -t bpf bpf /sys/fs/bpf || exit 1
exec "$@"
"#;

/// Returns a command for `program`. For root it has a mount namespace with a bpf file system, so that the mounts of
/// this machine stay as they are.
///
/// # Errors
/// If the own user cannot be determined.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Result<Command> {
    if !exec::is_root()? {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", WITH_BPFFS, "sh"])
        .arg(program);
    Ok(command)
}

/// As [`command`], for a program that ends when xtask ends, for whatever reason.
///
/// # Errors
/// If the own user cannot be determined.
pub(crate) fn bound_to_us(program: impl AsRef<OsStr>) -> Result<Command> {
    let inner = command(program)?;
    // setpriv is part of util-linux, as unshare is.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]);
    command.arg(inner.get_program()).args(inner.get_args());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use xtask::skip::{Need, skip};

    use super::*;

    #[test]
    fn arguments_and_status_go_through() {
        let mut sh = command("sh").expect("id runs");
        let ran = sh
            .args(["-c", r#"printf '%s|' "$@"; exit 3"#, "sh", "a b", "$HOME"])
            .output()
            .expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "a b|$HOME|");
        assert_eq!(ran.status.code(), Some(3));
    }

    #[test]
    fn root_finds_a_bpf_file_system() {
        if !exec::is_root().expect("id runs") {
            return skip(Need::Root, "only root can mount");
        }
        let mut stat = command("stat").expect("id runs");
        let text = exec::read(stat.args(["-f", "-c", "%T", "/sys/fs/bpf"])).expect("stat runs");
        assert_eq!(text.trim(), "bpf_fs");
    }
}
