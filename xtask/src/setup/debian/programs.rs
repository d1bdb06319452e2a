//! The programs that are used, and the Debian packages that contain them.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{lists, retry};
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// A program and its package. A name with a slash is the path of a file.
pub(crate) type Program = (&'static str, &'static str);

/// The programs for compiling: bpf-linker and all others are linked by `cc`.
pub(crate) const BUILD: &[Program] = &[("cc", "build-essential")];

/// The program that determines whether this kernel has ipvlan.
pub(crate) const IP: &[Program] = &[("ip", "iproute2")];

/// The programs of the demo, wherever it runs. Its gateway's rules are for iptables-legacy.
pub(crate) const DEMO: &[Program] = &[("ip", "iproute2"), ("iptables-legacy-restore", "iptables")];

/// Further programs of the tests.
pub(crate) const TESTS: &[Program] = &[
    ("ping", "iputils-ping"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
    ("nft", "nftables"),
];

/// The programs that are used inside a guest (its root file system is this machine's), and to unpack kernels.
pub(crate) const GUEST: &[Program] = &[
    ("ip", "iproute2"),
    ("xtables-legacy-multi", "iptables"),
    ("ping", "iputils-ping"),
    ("depmod", "kmod"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
];

/// Further programs for a guest under QEMU. Modules are compressed since Debian's 6.12.
pub(crate) const QEMU: &[Program] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("xz", "xz-utils"),
];

/// The programs for a guest for arm64 under QEMU, and to unpack its kernel.
pub(crate) const QEMU_ARM64: &[Program] = &[
    ("qemu-system-aarch64", "qemu-system-arm"),
    ("depmod", "kmod"),
];

/// The programs of a cluster's node, besides those of Kubernetes.
pub(crate) const NODE: &[Program] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("conntrack", "conntrack"),
    ("etcd", "etcd-server"),
    ("busybox", "busybox-static"),
];

/// The program that unpacks zstd archives.
pub(crate) const ZSTD: &[Program] = &[("zstd", "zstd")];

/// The other plugins that `bench` measures.
pub(crate) const PEERS: &[Program] = &[
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
    ("/usr/sbin/xtables-nft-multi", "iptables"),
];

/// Returns those of `wanted` that are not installed.
pub(crate) fn missing(wanted: &[Program]) -> Vec<Program> {
    let is_there = |program: &str| match program.contains('/') {
        true => Path::new(program).is_file(),
        false => exec::find(program).is_some(),
    };
    let all = wanted.iter().copied();
    all.filter(|(program, _)| !is_there(program)).collect()
}

/// Returns the packages of `programs`, each once.
pub(crate) fn packages(programs: &[Program]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for (_, package) in programs {
        if !packages.contains(package) {
            packages.push(*package);
        }
    }
    packages
}

/// Installs the packages of missing programs.
pub(crate) fn programs(ws: &Workspace, wanted: &[Program]) -> Result<()> {
    let packages = packages(&missing(wanted));
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if exec::find("apt-get").is_none() {
        bail!("programs of these Debian packages are missing, and there is no apt-get: {names}");
    }
    if !exec::is_root()? {
        bail!(
            "programs of these Debian packages are missing: run as root: apt-get install {names}"
        );
    }
    ui::note(format_args!("setup: installing {names}"));
    let install = || {
        let mut install = Command::new("apt-get");
        install
            .args(["-qy", "--no-install-recommends", "install"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir(&ws.target);
        exec::run(&mut install, Output::OnFailure)
    };
    retry::with_lists_anew(install, lists::read_machines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_missing_if_neither_path_nor_file_has_it() {
        let wanted = [
            ("sh", "dash"),
            ("no-such-program", "a"),
            ("/no/such/file", "b"),
            ("/bin/sh", "dash"),
        ];
        assert_eq!(
            missing(&wanted),
            [("no-such-program", "a"), ("/no/such/file", "b")]
        );
    }

    #[test]
    fn a_package_of_two_programs_is_installed_once() {
        assert_eq!(packages(&[("a", "x"), ("b", "y"), ("c", "x")]), ["x", "y"]);
    }
}
