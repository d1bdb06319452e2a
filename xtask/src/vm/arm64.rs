//! A machine with another CPU: 64-bit ARM under QEMU, without KVM. Nothing of this machine runs in it: all that it has is
//! in its initramfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::machine::{self, CONSOLE, Machine};
use super::{guest, initramfs, out_dir};
use crate::exec;
use crate::setup::kernels::Kernel;
use crate::ui;
use crate::workspace::Workspace;

/// What the machine is made of.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) kernel: Kernel,
    /// A directory with busybox, ip and iptables for it.
    pub(crate) root: PathBuf,
    /// Programs, for its `/ebbtide/bin`.
    pub(crate) programs: Vec<PathBuf>,
    /// Objects of the kernel's programs, for its `/ebbtide/ebpf`.
    pub(crate) objects: Vec<PathBuf>,
}

/// What no other module's dependencies name: the drivers of the port that the command writes to, and the checksum that
/// conntrack's library asks the kernel for by its name.
const FIRST: [&str; 3] = ["virtio_mmio", "virtio_console", "crc32c_generic"];

/// What comes before the command's status, on the last line of its output.
const STATUS: &str = "ebbtide-status:";

/// Process 1. As in other guests, and in normal hosts, reverse path filters are loose.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/ebbtide/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export EBBTIDE_BIN_DIR=/ebbtide/bin EBBTIDE_EBPF_DIR=/ebbtide/ebpf
mkdir -p /etc /proc /sys /dev /run/netns /run/lock /tmp /root /var
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=755 run /run && mkdir -p /run/netns /run/lock
ln -s ../run /var/run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in /modules/*; do insmod "$module"; done
for name in iptables ip6tables; do
    for part in '' -save -restore; do
        ln -sf xtables-legacy-multi /usr/sbin/$name$part
        ln -sf xtables-legacy-multi /usr/sbin/$name-legacy$part
    done
done
for name in all default; do
    echo 2 >/proc/sys/net/ipv4/conf/$name/rp_filter
    echo 1 >/proc/sys/net/ipv4/conf/$name/promote_secondaries
done
# A static busybox would load what this file names by default, of another version than its own.
printf 'hosts: files\nservices: files\n' >/etc/nsswitch.conf
ulimit -n 65536
echo ebbtide-arm64 >/proc/sys/kernel/hostname
ip link set lo up
(
    uname -srm
    sh -c @COMMAND@
    echo @STATUS@ $?
) </dev/null >/dev/vport0p1 2>&1
sync
poweroff -f
"#;

/// Boots the machine, runs `command` in its shell, prints the output, and returns the status.
pub(crate) fn run(ws: &Workspace, guest: &Guest, command: &str, timeout: Duration) -> Result<u8> {
    let out = out_dir(ws)?;
    let initrd = out.file("initramfs.cpio");
    fs::write(&initrd, archive(guest, command)?)
        .with_context(|| format!("cannot write {}", initrd.display()))?;
    let qemu = exec::find("qemu-system-aarch64").context("qemu-system-aarch64 is missing")?;
    let mut qemu = machine::bound_to_us(&qemu);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
        // Without authenticated pointers, which cost most of the time when they are emulated.
        .args(["-machine", "virt,gic-version=3,accel=tcg"])
        .args(["-cpu", "neoverse-n1", "-smp", "2", "-m", "2G", "-no-reboot"])
        .arg("-kernel")
        .arg(&guest.kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", "console=ttyAMA0 quiet panic=-1 mitigations=off"])
        // The kernel writes to a file, the command to stdout (a raw port, without a terminal).
        .args([
            "-chardev",
            &format!("file,id=console,path={}", out.file(CONSOLE).display()),
        ])
        .args(["-serial", "chardev:console"])
        .args(["-device", "virtio-serial-device"])
        .args(["-chardev", "file,id=output,path=/dev/stdout"])
        .args(["-device", "virtserialport,chardev=output,nr=1"]);
    let mut status = None;
    let machine = Machine {
        command: qemu,
        out: &out,
    };
    machine::run(machine, timeout, |output| {
        exec::each_line(output, |line| match line.strip_prefix(STATUS) {
            Some(number) => status = number.trim().parse().ok(),
            None => ui::line(line),
        });
    })?;
    match status {
        Some(status) => Ok(status),
        None => bail!(
            "the machine ended before the command did\n{}",
            machine::tail(&out)
        ),
    }
}

/// Returns the initramfs.
fn archive(guest: &Guest, command: &str) -> Result<Vec<u8>> {
    let mut archive = initramfs::Archive::default();
    archive.tree(&guest.root)?;
    for dir in ["ebbtide", "ebbtide/bin", "ebbtide/ebpf", "modules"] {
        archive.directory(dir);
    }
    let placed = guest.programs.iter().map(|path| (path, "ebbtide/bin"));
    let objects = guest.objects.iter().map(|path| (path, "ebbtide/ebpf"));
    for (path, place) in placed.chain(objects) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.program(&format!("{place}/{name}"), &initramfs::read(path)?);
    }
    let mut modules: Vec<&str> = FIRST.to_vec();
    modules.extend(guest::MODULES.split_whitespace());
    archive.modules(&guest.kernel, &modules)?;
    archive.program("init", init(command).as_bytes());
    Ok(archive.finish())
}

fn init(command: &str) -> String {
    INIT.replace("@COMMAND@", &exec::quote(command))
        .replace("@STATUS@", STATUS)
}

/// Whether the programs of a directory of packages are there, before anything boots.
pub(crate) fn check(root: &Path) -> Result<()> {
    for program in ["bin/busybox", "bin/ip", "usr/sbin/xtables-legacy-multi"] {
        if !root.join(program).is_file() {
            bail!("{} has no {program}", root.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_1_is_complete_and_a_shell_can_read_it() {
        let text = init("echo 'it is'; exit 3");
        assert!(!text.contains('@'), "{text}");
        assert!(
            text.contains(r"sh -c 'echo '\''it is'\''; exit 3'"),
            "{text}"
        );
        let read = std::process::Command::new("sh")
            .args(["-n", "-c", &text])
            .status();
        assert!(read.expect("sh runs").success());
    }
}
