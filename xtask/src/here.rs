//! Running in this kernel what may also run in a guest.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Result;

use crate::exec;

/// As a guest has it: pinned maps need a bpf file system, and a container often has none.
const WITH_BPFFS: &str = r#"
[ "$(stat -f -c %T /sys/fs/bpf)" = bpf_fs ] || mount -t bpf bpf /sys/fs/bpf || exit 1
exec "$@"
"#;

/// A command for `program`. For root it has mounts of its own and a bpf file system among them, so
/// that this machine's are left as they are.
///
/// # Errors
/// When we cannot find out who we are.
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

/// As [`command`], for a program that is to end when we do, however we end.
///
/// # Errors
/// When we cannot find out who we are.
pub(crate) fn bound_to_us(program: impl AsRef<OsStr>) -> Result<Command> {
    let inner = command(program)?;
    // setpriv is part of util-linux, as unshare is
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
