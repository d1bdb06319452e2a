//! User-mode Linux: a kernel that is an ordinary process of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::machine::{self, Machine};
use super::{OutDir, Request, guest};
use crate::exec;
use crate::setup::{debian, kernels};
use crate::workspace::Workspace;

/// MiB, if nobody says otherwise. Taken as they are used, from the file system of `TMPDIR`.
pub(super) const MEMORY: u64 = 3072;

/// First stage: the root is this machine's through hostfs, read-only; an overlay in memory over it
/// becomes the root.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs -o mode=755 tmpfs /mnt && mkdir /mnt/upper /mnt/work /mnt/root || exit 1
insmod @MODULES@/kernel/fs/overlayfs/overlay.ko
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root || exit 1
cd /mnt/root && pivot_root . mnt || exit 1
exec chroot . sh -c 'umount -l /mnt; exec sh "$1"' sh @SCRIPT@
"#;

/// The machine for `request`.
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
        // the kernel speaks on stderr, the command on stdout
        .args(["con=null", "con0=null,fd:2", "con1=null,fd:1"])
        .arg(format!("uml_dir={shared}/"))
        .arg(format!("init={}", init.display()))
        // the kernel's Documentation/virt/uml/user_mode_linux_howto_v2.rst
        .args(
            (0..)
                .zip(&request.hardware.nics)
                .map(|(number, tap)| format!("vec{number}:transport=tap,ifname={tap},depth=128")),
        )
        .env("TMPDIR", memory_dir(out, request.hardware.memory));
    Ok(Machine { command, out })
}

/// Where the guest's memory lives: in memory, if there is enough of it (a container's /dev/shm
/// often has 64 MB, and running out of it kills the guest).
fn memory_dir(out: &OutDir, needed: u64) -> PathBuf {
    let mut df = std::process::Command::new("df");
    let free = exec::read(df.args(["--output=avail", "--block-size=1M", "/dev/shm"]))
        .ok()
        .and_then(|text| text.split_whitespace().last()?.parse::<u64>().ok());
    if free.is_some_and(|free| free >= needed) {
        "/dev/shm".into()
    } else {
        out.file("")
    }
}
