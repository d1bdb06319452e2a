//! Which test executables run in which kernel.
//!
//! Everything takes twice as long under QEMU. A run that has the tests in this kernel and in user-mode Linux
//! repeats there only what can come to another end.

use anyhow::Result;

use super::integration::{Executable, Place};
use crate::exec;
use crate::vm::{self, Kernel};

/// Tests of this name need no ipvlan: any kernel will do, if we are root in it.
const NATIVE: &str = "native_";

/// What Debian's 6.1 can decide otherwise than user-mode Linux of the same source (no JIT, one CPU,
/// all built in), or than this kernel: its JIT and verifier, its modules, its netfilter.
const STOCK: [&str; 10] = [
    "masquerade",
    "modes",
    "mtu",
    "native_chained",
    "native_host_programs",
    "native_programs",
    "native_responder",
    "nft",
    "nics",
    "rows",
];

/// What the agent does with requests and files, whatever way a packet takes: no kernel of any source makes a
/// difference to it. Its own end does: where there is TCX, links outlive it and not filters.
const CONDUCT: [&str; 2] = ["faults", "lifecycle"];

/// Where each test runs every day: here what can, in user-mode Linux the rest.
pub(super) fn everyday(all: &[Executable]) -> Result<[(Place, Vec<Executable>); 2]> {
    let (root, ipvlan) = (exec::is_root()?, vm::this_kernel_will_do()?);
    let here = |test: &Executable| ipvlan || (root && test.name.starts_with(NATIVE));
    let (here, guest) = all.iter().cloned().partition(here);
    Ok([(Place::Here, here), (Place::Guest(Kernel::Uml), guest)])
}

/// The tests for `kernel`, one of Debian's in QEMU, in a run over `kernels`.
pub(super) fn stock(all: &[Executable], kernel: Kernel, kernels: &[Kernel]) -> Choice {
    let runs = |test: &Executable| {
        let name = test.name.as_str();
        match (kernels.contains(&Kernel::Uml), kernel) {
            (false, _) => true,
            // The same source as user-mode Linux.
            (true, Kernel::Old) => STOCK.contains(&name),
            (true, _) => !CONDUCT.contains(&name),
        }
    };
    let (tests, left_out) = all.iter().cloned().partition(runs);
    Choice { tests, left_out }
}

/// What [`stock`] chose.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) tests: Vec<Executable>,
    left_out: Vec<Executable>,
}

impl Choice {
    /// What was left out, why, and how to run it all the same; `None` if nothing was.
    pub(super) fn note(&self, kernel: Kernel) -> Option<String> {
        if self.left_out.is_empty() {
            return None;
        }
        let names: Vec<&str> = self
            .left_out
            .iter()
            .map(|test| test.name.as_str())
            .collect();
        Some(format!(
            "not in {kernel}, as this run has them in this kernel or in {}, and {kernel} makes no difference to \
             them: {} (`--kernel {}` alone runs them)",
            Kernel::Uml,
            names.join(", "),
            kernel.pin().unwrap_or("uml")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executables(names: &[&str]) -> Vec<Executable> {
        let executable = |name: &&str| Executable {
            name: (*name).to_owned(),
            path: String::new(),
        };
        names.iter().map(executable).collect()
    }

    #[test]
    fn a_kernel_repeats_what_it_can_decide_otherwise_and_by_itself_runs_everything() {
        let all = [
            "faults",
            "native_netlink",
            "native_programs",
            "restart",
            "rows",
        ];
        let everywhere = [Kernel::Uml, Kernel::Old, Kernel::Stable];
        for (kernel, kernels, expected) in [
            (
                Kernel::Old,
                &everywhere[..2],
                &["native_programs", "rows"][..],
            ),
            (Kernel::Old, &everywhere, &["native_programs", "rows"]),
            (
                Kernel::Stable,
                &everywhere,
                &["native_netlink", "native_programs", "restart", "rows"],
            ),
            (Kernel::Old, &[Kernel::Old], &all),
            (Kernel::Newest, &[Kernel::Newest], &all),
        ] {
            let choice = stock(&executables(&all), kernel, kernels);
            assert_eq!(
                choice.tests,
                executables(expected),
                "{kernel} of {kernels:?}"
            );
            let note = choice.note(kernel).unwrap_or_default();
            for name in all {
                let is_named = note.contains(name);
                assert_eq!(is_named, !expected.contains(&name), "{name}: {note}");
            }
        }
    }

    #[test]
    fn what_is_chosen_by_name_is_there() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests");
        for name in STOCK.into_iter().chain(CONDUCT) {
            let file = format!("{dir}/{name}.rs");
            assert!(std::path::Path::new(&file).exists(), "{file}");
        }
    }
}
