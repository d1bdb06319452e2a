//! Explains why a machine died: by its output, with this machine's properties and what to try next.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::memory::Room;
use super::{Kernel, OutDir, Request, machine, memory, this_kernel_will_do};
use crate::exec;
use crate::setup::xstate;

/// A cause of death.
#[derive(Debug)]
struct Cause {
    /// Texts that are all in the machine's output.
    signs: &'static [&'static str],
    /// What happened.
    what: &'static str,
    /// The first thing to try; empty if there is nothing.
    cure: &'static str,
}

/// The known causes, the most certain ones first. The texts are from the sources of the kernels (arch/um/os-Linux),
/// QEMU, the dynamic loader, and the shell that starts them.
static CAUSES: &[Cause] = &[
    Cause {
        signs: &["Attempted to kill init", "put_fp_registers"],
        what: "user-mode Linux could not set the extended registers of the guest's first process: \
               this CPU's register set is larger than it knows, and the host's kernel takes it whole \
               or not at all",
        cure: "`EBBTIDE_UML_WHOLE_XSTATE=1` in the environment: a library is preloaded that \
               completes the set",
    },
    Cause {
        signs: &["ptrace: Operation not permitted"],
        what: "user-mode Linux may not use ptrace here: a container's seccomp filter or the host's \
               kernel.yama.ptrace_scope forbids it",
        cure: "in a container: `--cap-add SYS_PTRACE` or `--security-opt seccomp=unconfined`; on a \
               host: `sysctl kernel.yama.ptrace_scope=1`",
    },
    Cause {
        signs: &["check_ptrace"],
        what: "the host's ptrace does not do what user-mode Linux needs: a sandbox that emulates \
               system calls (gVisor), or a filter",
        cure: "outside of the sandbox it runs",
    },
    Cause {
        signs: &["ptrace failed"],
        what: "the host's ptrace does not do what user-mode Linux needs: a sandbox or a filter",
        cure: "outside of the sandbox it runs",
    },
    Cause {
        signs: &["must be not mounted noexec"],
        what: "the file system that the guest's memory would be in is mounted noexec",
        cure: "`mount -o remount,exec /dev/shm`, or a target directory (CARGO_TARGET_DIR) on a file \
               system that may be executed",
    },
    Cause {
        signs: &["Bus error - the host /dev/shm or /tmp mount"],
        what: "the file system that the guest's memory is in ran out of space",
        cure: "free some, or a smaller guest: `cargo xtask vm --memory MIB`",
    },
    Cause {
        signs: &["No space left on device"],
        what: "the file system that the guest's files or memory are in is full",
        cure: "free some, or a target directory (CARGO_TARGET_DIR) elsewhere",
    },
    Cause {
        signs: &["setup_physmem - mapping", "failed"],
        what: "this machine did not let user-mode Linux map its memory: a limit on address space \
               (`ulimit -v`, a cgroup)",
        cure: "raise it, or a smaller guest: `cargo xtask vm --memory MIB`",
    },
    Cause {
        signs: &["Too few physical memory"],
        what: "the guest has too little memory to boot",
        cure: "`cargo xtask vm --memory` with more MiB",
    },
    Cause {
        signs: &["cannot set up guest memory"],
        what: "QEMU did not get the guest's 3 GiB of memory",
        cure: "end what needs much memory, or raise the limit on address space (`ulimit -v`)",
    },
    Cause {
        signs: &["Unable to mount root fs"],
        what: "the kernel has no root file system: it cannot read this machine's files (a kernel \
               without hostfs, or an initramfs that it cannot read)",
        cure: "remove target/uml or target/kernels, and setup gets the kernels anew",
    },
    Cause {
        signs: &["Requested init", "failed"],
        what: "the kernel could not start the guest's first script: what is below the target \
               directory cannot be read by it, or has no `sh`",
        cure: "",
    },
    Cause {
        signs: &["virtio: no channels available"],
        what: "QEMU did not give the guest this machine's files: it may lack virtio-9p",
        cure: "Debian's qemu-system-x86 has it",
    },
    Cause {
        signs: &["Out of memory"],
        what: "the guest ran out of memory",
        cure: "`cargo xtask vm --memory` with more MiB",
    },
    Cause {
        signs: &["deadlocked on memory"],
        what: "the guest ran out of memory",
        cure: "`cargo xtask vm --memory` with more MiB",
    },
    Cause {
        signs: &["Failed to allocate"],
        what: "the guest has too little memory to boot",
        cure: "`cargo xtask vm --memory` with more MiB",
    },
    Cause {
        signs: &["version `GLIBC_", "not found"],
        what: "the kernel, which is a program of Debian's, wants a newer glibc than this system has",
        cure: "",
    },
    Cause {
        signs: &["error while loading shared libraries"],
        what: "a shared library of the program that is the machine is missing",
        cure: "",
    },
    Cause {
        signs: &["Exec format error"],
        what: "the program that is the machine is for another CPU, or was not downloaded whole",
        cure: "remove target/uml or target/kernels, and setup gets the kernels anew",
    },
    Cause {
        signs: &["Permission denied", "linux.uml"],
        what: "the target directory is on a file system that may not be executed (noexec)",
        cure: "a target directory (CARGO_TARGET_DIR) elsewhere",
    },
    Cause {
        signs: &["qemu-system-x86_64: "],
        what: "QEMU gave up before the kernel did, with the words below",
        cure: "",
    },
];

/// Returns the cause that matches a machine's output.
fn cause(said: &str) -> Option<&'static Cause> {
    let fits = |cause: &&Cause| cause.signs.iter().all(|sign| said.contains(sign));
    CAUSES.iter().find(fits)
}

/// The properties of this machine that guests depend on.
#[derive(Debug)]
struct Here {
    cpu: String,
    /// The size of the extended registers in bytes.
    register_set: u32,
    /// The directory of a user-mode Linux' memory, and its properties.
    memory: (PathBuf, Room),
    root: bool,
    /// Whether this kernel has ipvlan; only root can determine it.
    ipvlan: bool,
}

impl Here {
    fn look(request: &Request, out: &OutDir) -> Self {
        let needed = request.hardware.memory;
        let own = out.file("");
        let dir = memory::dir(needed, &own);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: cpu(&cpuinfo).to_owned(),
            register_set: xstate::register_set(),
            memory: (dir.to_owned(), Room::of(dir)),
            root: exec::is_root().unwrap_or(false),
            ipvlan: this_kernel_will_do().unwrap_or(false),
        }
    }

    fn line(&self) -> String {
        let (dir, room) = &self.memory;
        let who = match (self.root, self.ipvlan) {
            (false, _) => "we are not root (only root can tell whether this kernel has ipvlan)",
            (true, false) => "we are root, this kernel has no ipvlan",
            (true, true) => "we are root, this kernel has ipvlan",
        };
        format!(
            "this machine: {}, a register set of {} bytes (user-mode Linux writes {}); {} MiB free in \
             {}{}; {who}",
            self.cpu,
            self.register_set,
            xstate::WRITTEN,
            room.free,
            dir.display(),
            if room.exec {
                ""
            } else {
                ", which is mounted noexec"
            },
        )
    }
}

/// Returns the CPU's name from `/proc/cpuinfo`.
fn cpu(cpuinfo: &str) -> &str {
    let mut lines = cpuinfo.lines();
    lines
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("a CPU without a name", |(_, name)| name.trim())
}

/// Returns the message about a machine that ended before its command did; `text` is its output to us.
pub(super) fn it_died(request: &Request, out: &OutDir, text: &str) -> String {
    let mut said = dump(text).to_owned();
    for name in ["machine.log", machine::CONSOLE] {
        said.push_str(&String::from_utf8_lossy(
            &fs::read(out.file(name)).unwrap_or_default(),
        ));
    }
    let here = Here::look(request, out);
    message(cause(&said), request.kernel, &machine::tail(out), &here)
}

/// Returns the kernel's log, which a dying user-mode Linux writes to the command's output. The command's own output
/// tells nothing.
fn dump(text: &str) -> &str {
    text.rfind("kmsg_dump:").map_or("", |begin| &text[begin..])
}

fn message(cause: Option<&Cause>, kernel: Kernel, tail: &str, here: &Here) -> String {
    let mut text = "the machine ended before the command did".to_owned();
    if let Some(cause) = cause {
        let _ = write!(text, ": {}", cause.what);
    }
    let _ = write!(
        text,
        "\n{tail}\n{}\nwhat to try, in this order:",
        here.line()
    );
    let other = match kernel {
        Kernel::Uml => "`--qemu`: Debian's stock kernel instead of user-mode Linux",
        _ => "without --qemu and --kernel: user-mode Linux instead of QEMU",
    };
    let direct = if here.root && here.ipvlan {
        "`cargo xtask demo` and `test` without --qemu and --kernel: this kernel has ipvlan, and they \
         need no guest"
    } else {
        "as root in a kernel with ipvlan (`modprobe ipvlan`) `cargo xtask demo` and `test` need no \
         guest"
    };
    let cure = cause.map_or("", |cause| cause.cure);
    for one in [cure, other, direct].iter().filter(|one| !one.is_empty()) {
        let _ = write!(text, "\n  - {one}");
    }
    text
}

/// Fails on a CPU for which there is no guest kernel.
pub(crate) fn guests_run_on(arch: &str) -> Result<()> {
    if arch != "x86_64" {
        bail!(
            "user-mode Linux and Debian's kernels that are pinned are for x86-64, and this machine is \
             {arch}: there is no guest for it. What remains: as root in a kernel with ipvlan \
             (`modprobe ipvlan`) `cargo xtask demo` and `test` need no guest"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
