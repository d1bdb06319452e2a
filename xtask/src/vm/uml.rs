//! User-mode Linux: a kernel that is an ordinary process of this machine.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::machine::{self, Machine};
use super::{OutDir, Request, guest, memory};
use crate::setup::{debian, kernels, xstate};
use crate::workspace::Workspace;

/// The default memory in MiB. It is allocated as it is used, from the file system of `TMPDIR`.
pub(super) const MEMORY: u64 = 3072;

/// The first stage: this machine's root through hostfs, read-only, with an overlay in memory, becomes the root.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs -o mode=755 tmpfs /mnt && mkdir /mnt/upper /mnt/work /mnt/root || exit 1
insmod @MODULES@/kernel/fs/overlayfs/overlay.ko
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root || exit 1
cd /mnt/root && pivot_root . mnt || exit 1
exec chroot . sh -c 'umount -l /mnt; exec sh "$1"' sh @SCRIPT@
"#;

/// Returns the machine for `request`.
pub(super) fn machine<'o>(
    ws: &Workspace,
    request: &Request,
    out: &'o OutDir,
) -> Result<Machine<'o>> {
    let kernel = kernels::user_mode(ws)?;
    debian::programs(ws, debian::GUEST)?;
    let shared = out
        .file("")
        .to_string_lossy()
        .trim_end_matches('/')
        .to_owned();
    let ways = guest::Ways {
        output: "/dev/tty1",
        mount_out: &format!("stty -F /dev/tty1 raw -echo; mount -t hostfs -o {shared} none"),
        modules: &kernel.modules,
    };
    guest::write(ws, request, out, &ways)?;
    let init = out.file("init.sh");
    let text = INIT
        .replace("@MODULES@", &kernel.modules.to_string_lossy())
        .replace("@SCRIPT@", &out.file(guest::SCRIPT).to_string_lossy());
    fs::write(&init, text)
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", init.display()))?;

    let mut command = machine::bound_to_us(&kernel.image);
    command
        .arg(format!("mem={}M", request.hardware.memory))
        .args([
            "root=/dev/root",
            "rootfstype=hostfs",
            "ro",
            "quiet",
            "panic=1",
        ])
        // The kernel writes to stderr, the command to stdout.
        .args(["con=null", "con0=null,fd:2", "con1=null,fd:1"])
        .arg(format!("uml_dir={shared}/"))
        .arg(format!("init={}", init.display()))
        // See the kernel's Documentation/virt/uml/user_mode_linux_howto_v2.rst.
        .args(
            (0..)
                .zip(&request.hardware.nics)
                .map(|(number, tap)| format!("vec{number}:transport=tap,ifname={tap},depth=128")),
        )
        .env(
            "TMPDIR",
            memory::dir(request.hardware.memory, &out.file("")),
        );
    if let Some(library) = xstate::ensure(ws)? {
        xstate::note();
        command.env(
            "LD_PRELOAD",
            preload(&library, std::env::var_os("LD_PRELOAD")),
        );
    }
    Ok(Machine { command, out })
}

/// Returns the value of `LD_PRELOAD`: our library, before those that the user has set.
fn preload(library: &Path, others: Option<OsString>) -> OsString {
    let mut all = library.as_os_str().to_owned();
    if let Some(others) = others.filter(|others| !others.is_empty()) {
        all.push(":");
        all.push(others);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_preloads_is_kept_and_comes_after_ours() {
        for (others, expected) in [
            (None, "/x.so"),
            (Some(""), "/x.so"),
            (Some("/y.so"), "/x.so:/y.so"),
        ] {
            let value = preload(Path::new("/x.so"), others.map(OsString::from));
            assert_eq!(value, expected, "{others:?}");
        }
    }
}
