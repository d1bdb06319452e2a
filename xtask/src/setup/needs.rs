//! Reports what a command needs and this machine cannot get, all at once, before anything begins.
//!
//! Setup gets most things ([`super::prepare`]). This module is about the rest: programs without root or apt-get,
//! Debian's kernels without Debian's archive, guests on another CPU.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::debian::{self, Program, System};
use super::{kernels, rust_src};
use crate::exec;
use crate::ui;
use crate::vm::{self, Kernel};
use crate::workspace::Workspace;

/// The needs of a command.
#[derive(Debug)]
pub(crate) struct Needs {
    /// Whether it builds the kernel's programs.
    builds: bool,
    pub(super) programs: Vec<Program>,
    /// The kernels of its guests.
    pub(super) kernels: Vec<Kernel>,
}

impl Needs {
    /// Returns the needs of a command that builds everything and uses guests with these kernels. With `here` it may use
    /// this kernel in place of user-mode Linux, with these programs.
    pub(crate) fn new(here: bool, programs: &[&[Program]], kernels: &[Kernel]) -> Self {
        let in_place = |kernel: &&Kernel| !(here && **kernel == Kernel::Uml);
        let kernels: Vec<Kernel> = kernels.iter().filter(in_place).copied().collect();
        let mut all = vec![debian::BUILD];
        if here {
            all.extend(programs);
        }
        if !kernels.is_empty() {
            all.push(debian::GUEST);
        }
        if kernels.iter().any(|kernel| kernel.pin().is_some()) {
            all.push(debian::QEMU);
        }
        Self {
            builds: true,
            programs: all.concat(),
            kernels,
        }
    }

    /// Returns the needs of one guest, without a build.
    pub(super) fn guest(kernel: Kernel) -> Self {
        let mut needs = Self::new(false, &[], &[kernel]);
        needs.builds = false;
        needs.programs.retain(|one| !debian::BUILD.contains(one));
        needs
    }
}

/// What is missing.
#[derive(Debug, Default)]
struct Missing {
    programs: Vec<Program>,
    /// Whether the compiler's library source is missing.
    source: bool,
    kernels: Vec<Kernel>,
}

/// What this machine can do.
#[derive(Debug)]
struct Machine {
    arch: &'static str,
    system: System,
    apt: bool,
    root: bool,
    /// Whether everything can run in this kernel; `None` if that cannot be determined without `ip`.
    ipvlan: Option<bool>,
}

impl Machine {
    fn look() -> Result<Self> {
        let known = exec::find("ip").is_some();
        Ok(Self {
            arch: std::env::consts::ARCH,
            system: System::read(),
            apt: exec::find("apt-get").is_some(),
            root: exec::is_root()?,
            ipvlan: known.then(vm::this_kernel_will_do).transpose()?,
        })
    }

    /// Returns those parts of `missing` that setup cannot get here.
    fn out_of_reach(&self, missing: Missing) -> Missing {
        let debians = self.apt && !self.system.is_ubuntu();
        let is_far = |kernel: &Kernel| {
            vm::guests_run_on(self.arch).is_err()
                || match kernel.pin() {
                    None => !self.apt,
                    Some(_) => !debians,
                }
        };
        Missing {
            programs: if self.apt && self.root {
                Vec::new()
            } else {
                missing.programs
            },
            source: missing.source && !debians,
            kernels: missing.kernels.into_iter().filter(is_far).collect(),
        }
    }
}

/// Fails with everything that setup cannot get, if there is anything.
pub(super) fn check(ws: &Workspace, needs: &Needs) -> Result<()> {
    let mut missing = Missing {
        programs: debian::missing(&needs.programs),
        source: needs.builds && rust_src::find(ws)?.is_none(),
        kernels: Vec::new(),
    };
    for kernel in &needs.kernels {
        if !kernels::is_there(ws, kernel.pin())? {
            missing.kernels.push(*kernel);
        }
    }
    if missing.programs.is_empty() && missing.kernels.is_empty() && !missing.source {
        return Ok(());
    }
    let machine = Machine::look()?;
    if machine.apt && machine.system.is_ubuntu() {
        ui::note(format_args!(
            "setup: this is {}: packages of the same names as Debian's are tried, and nobody has \
             tried that yet",
            machine.system.name
        ));
    }
    match refusal(missing, !needs.kernels.is_empty(), &machine) {
        Some(text) => bail!(text),
        None => Ok(()),
    }
}

/// Returns the message about what setup cannot get; `guest` tells whether a guest is needed.
fn refusal(missing: Missing, guest: bool, machine: &Machine) -> Option<String> {
    let missing = machine.out_of_reach(missing);
    let mut items = String::new();
    if !missing.programs.is_empty() {
        let _ = write!(items, "\n  - {}", programs(&missing.programs, machine));
    }
    if missing.source {
        items.push_str(
            "\n  - the source of the compiler's library: `rustup component add rust-src`",
        );
    }
    for kernel in &missing.kernels {
        let _ = write!(items, "\n  - {}", kernel_of(*kernel, machine));
    }
    if items.is_empty() {
        return None;
    }
    let why = match (machine.apt, missing.programs.is_empty()) {
        (false, _) => "has no apt-get, by which setup gets what is missing",
        (true, false) => "has apt-get, but we are not root",
        (true, true) => "has not all that is needed, and setup cannot get it",
    };
    let mut text = format!("{} {why}. Missing:{items}", machine.system.name);
    if !missing.kernels.is_empty() {
        let _ = write!(text, "\n{}", remains(machine));
    } else if !guest {
        text.push_str("\nWith these everything runs in this kernel, without a guest");
    }
    Some(text)
}

/// Describes missing programs and where to get them.
fn programs(missing: &[Program], machine: &Machine) -> String {
    let packages = debian::packages(missing).join(" ");
    if machine.apt {
        return format!("programs: run as root: apt-get install {packages}");
    }
    let names: Vec<String> = missing
        .iter()
        .map(|(program, package)| format!("{program} ({package})"))
        .collect();
    format!(
        "programs, in brackets by Debian's packages; install your distribution's own: {}",
        names.join(", ")
    )
}

/// Describes a guest's kernel and where to get it.
fn kernel_of(kernel: Kernel, machine: &Machine) -> String {
    if vm::guests_run_on(machine.arch).is_err() {
        return format!(
            "{kernel}: it is for x86-64, and this machine is {}",
            machine.arch
        );
    }
    match kernel.pin() {
        None => format!("{kernel}, the guest's kernel: Debian's package user-mode-linux"),
        Some(_) => format!(
            "{kernel}: a package of Debian's archive (`--no-qemu`, or `--kernel uml`, does without)"
        ),
    }
}

/// Describes what can be done without a guest.
fn remains(machine: &Machine) -> String {
    let here = match (machine.root, machine.ipvlan) {
        (true, Some(true)) => {
            return "What remains: everything runs in this kernel, which has ipvlan, as root, which \
                    we are, without a guest: leave --kernel and --qemu away (`test --kernel uml`)"
                .to_owned();
        }
        (true, Some(false)) => "we are root, but this kernel has no ipvlan",
        (true, None) => "we are root; whether this kernel has it cannot be told without `ip`",
        (false, _) => "we are not root",
    };
    format!(
        "What remains: as root in a kernel with ipvlan (`modprobe ipvlan`) everything runs in this \
         kernel, without a guest; {here}"
    )
}

#[cfg(test)]
mod tests;
