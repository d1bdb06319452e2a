//! QEMU without KVM: Debian's stock kernel with everything that it has (JIT, BTF, two CPUs), emulated.

use std::fs;

use anyhow::{Context as _, Result};

use super::machine::{self, CONSOLE, Machine};
use super::{OutDir, Request, guest, initramfs};
use crate::exec;
use crate::setup::{debian, kernels};
use crate::workspace::Workspace;

/// The kernel's command line. A panic ends the machine (`-no-reboot`). Mitigations of hardware bugs only cost time
/// without hardware.
const APPEND: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check";

/// Returns the machine for `request`, with the pinned kernel of this name.
pub(super) fn machine<'o>(
    ws: &Workspace,
    kernel: &str,
    request: &Request,
    out: &'o OutDir,
) -> Result<Machine<'o>> {
    debian::programs(ws, debian::GUEST)?;
    debian::programs(ws, debian::QEMU)?;
    let kernel = kernels::stock(ws, kernel)?;
    let ways = guest::Ways {
        output: "/dev/vport0p1",
        mount_out: "mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,access=any out",
        modules: &kernel.modules,
    };
    guest::write(ws, request, out, &ways)?;
    let initrd = out.file("initramfs.cpio");
    fs::write(
        &initrd,
        initramfs::build(&kernel, &out.file(guest::SCRIPT))?,
    )
    .with_context(|| format!("cannot write {}", initrd.display()))?;

    let qemu = exec::find("qemu-system-x86_64").context("qemu-system-x86_64 is missing")?;
    let mut command = machine::bound_to_us(&qemu);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        // 5-level page tables only make walks longer here.
        .args([
            "-machine",
            "q35,accel=tcg",
            "-cpu",
            "max,la57=off",
            "-smp",
            "2",
            "-m",
            "3G",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", APPEND])
        // The kernel writes to a file, the command to stdout (a raw port, without a terminal).
        .args([
            "-chardev",
            &format!("file,id=console,path={}", out.file(CONSOLE).display()),
        ])
        .args(["-serial", "chardev:console", "-device", "virtio-serial-pci"])
        // QEMU's "stdio" would hang up when the empty stdin ends.
        .args(["-chardev", "file,id=output,path=/dev/stdout"])
        .args(["-device", "virtserialport,chardev=output,nr=1"]);
    share(&mut command, "root", "/", ",readonly=on,multidevs=remap");
    share(&mut command, "out", &out.file("").to_string_lossy(), "");
    Ok(Machine { command, out })
}

/// Makes the directory `path` a file system of the guest.
fn share(command: &mut std::process::Command, tag: &str, path: &str, options: &str) {
    command
        .arg("-fsdev")
        .arg(format!(
            "local,id={tag},path={path},security_model=none{options}"
        ))
        .arg("-device")
        .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
}
