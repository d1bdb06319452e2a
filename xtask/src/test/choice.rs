//! Chooses the tests for each kernel.
//!
//! Everything takes several times as long under QEMU. A run with tests in this kernel and in user-mode Linux repeats
//! only those there that may have another result.

use anyhow::Result;

use super::lanes::{Batch, Place};
use super::suite::{Kind, Test};
use crate::exec;
use crate::vm::{self, Kernel};

/// The executable whose tests need ipvlan. The others need root and any kernel.
const LAB: &str = "lab";
/// The executable whose tests need Kubernetes' programs.
const KUBE: &str = "kube";

/// The part of [`STOCK`] that runs every day: what depends on that kernel's verifier, JIT and nf_tables, and every kind
/// of traffic once.
const DAILY: [&str; 5] = [
    "lab::nft",
    "lab::nft_proxy",
    "lab::rows",
    "native::limits",
    "native::programs",
];

/// The tests whose result in Debian's 6.1 may differ from that in user-mode Linux of the same source (no JIT, one CPU,
/// no modules), or in this kernel: they depend on JIT and verifier, modules, or netfilter.
const STOCK: [&str; 15] = [
    "lab::crowd",
    "lab::masquerade",
    "lab::modes",
    "lab::mtu",
    "lab::nft",
    "lab::nft_proxy",
    "lab::nics",
    "lab::rows",
    "native::chained",
    "native::host_programs",
    "native::limits",
    "native::metadata_guard",
    "native::programs",
    "native::responder",
    "native::service_proxy",
];

/// Tests of how the agent handles requests and files, which depend on no kernel. The agent's own end does: with TCX,
/// links outlive it, and filters do not.
const CONDUCT: [&str; 2] = ["lab::faults", "lab::lifecycle"];

/// The abilities of this machine's own kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here {
    pub(super) root: bool,
    pub(super) ipvlan: bool,
}

impl Here {
    /// Determines what this kernel can do.
    pub(super) fn find() -> Result<Self> {
        Ok(Self {
            root: exec::is_root()?,
            ipvlan: vm::this_kernel_will_do()?,
        })
    }

    fn runs(self, test: &Test) -> bool {
        self.ipvlan || (self.root && test.suite.name != LAB)
    }
}

/// How many of the tests that depend on a kernel run in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Daily,
    Everything,
}

/// Returns the tests of `all` for each place, in a run over `kernels`, and notes about those left out.
pub(super) fn batches(
    all: &[Test],
    kernels: &[Kernel],
    depth: Depth,
    here: Here,
) -> (Vec<Batch>, Vec<String>) {
    let mut batches = Vec::new();
    let mut notes = Vec::new();
    let mut put = |place, tests: Vec<Test>, lanes| {
        if !tests.is_empty() {
            batches.push(Batch {
                place,
                tests,
                lanes,
            });
        }
    };
    // The slow kernels come first.
    for kernel in kernels.iter().filter(|kernel| kernel.pin().is_some()) {
        let choice = stock(all, *kernel, kernels, depth);
        notes.extend(choice.note(*kernel));
        put(Place::Guest(*kernel), choice.tests, 1);
    }
    if kernels.contains(&Kernel::Uml) {
        let (mine, guest) = all.iter().cloned().partition(|test| here.runs(test));
        // It has one processor, so two machines share the tests if there are two processors.
        put(Place::Guest(Kernel::Uml), guest, 2);
        put(Place::Here, mine, 1);
    }
    (batches, notes)
}

/// Returns the tests for `kernel`, one of Debian's under QEMU, in a run over `kernels`.
fn stock(all: &[Test], kernel: Kernel, kernels: &[Kernel], depth: Depth) -> Choice {
    let runs = |test: &Test| {
        let group = test.group();
        match (kernels.contains(&Kernel::Uml), kernel) {
            // A guest cannot have guests, and Kubernetes takes too long in it.
            _ if test.suite.name == KUBE => false,
            (false, _) => true,
            // It has the same source as user-mode Linux.
            (true, Kernel::Old) if depth == Depth::Daily => DAILY.contains(&group.as_str()),
            (true, Kernel::Old) => STOCK.contains(&group.as_str()),
            (true, _) => !CONDUCT.contains(&group.as_str()),
        }
    };
    let (tests, left_out) = all
        .iter()
        .filter(|test| test.suite.kind == Kind::Integration)
        .cloned()
        .partition(runs);
    Choice { tests, left_out }
}

/// The choice that [`stock`] made.
#[derive(Debug)]
struct Choice {
    tests: Vec<Test>,
    left_out: Vec<Test>,
}

impl Choice {
    /// Returns what was left out, why, and how to run it; `None` if nothing was.
    fn note(&self, kernel: Kernel) -> Option<String> {
        let mut groups: Vec<String> = self.left_out.iter().map(Test::group).collect();
        groups.dedup();
        if groups.is_empty() {
            return None;
        }
        Some(format!(
            "not in {kernel}, which makes little difference to them or cannot carry them: {} (`--kernel {}` \
             alone runs those that it can)",
            groups.join(", "),
            kernel.pin().unwrap_or("uml")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::tests::test;
    use super::*;

    const ALL: [&str; 7] = [
        "kube::api::x",
        "lab::faults::x",
        "lab::modes::x",
        "lab::restart::x",
        "lab::rows::x",
        "native::netlink::x",
        "native::programs::x",
    ];

    fn all() -> Vec<Test> {
        let integration = |name: &&str| test(Kind::Integration, name, "");
        ALL.iter().map(integration).collect()
    }

    fn names(tests: &[Test]) -> Vec<String> {
        tests.iter().map(Test::to_string).collect()
    }

    #[test]
    fn a_kernel_repeats_what_it_can_decide_otherwise_and_by_itself_runs_everything() {
        let everywhere = [Kernel::Uml, Kernel::Old, Kernel::Stable];
        let alone = [
            "lab::faults::x",
            "lab::modes::x",
            "lab::restart::x",
            "lab::rows::x",
            "native::netlink::x",
            "native::programs::x",
        ];
        let daily = ["lab::rows::x", "native::programs::x"];
        let stock_ones = ["lab::modes::x", "lab::rows::x", "native::programs::x"];
        for (kernel, kernels, depth, expected) in [
            (Kernel::Old, &everywhere[..2], Depth::Daily, &daily[..]),
            (Kernel::Old, &everywhere, Depth::Everything, &stock_ones),
            (Kernel::Stable, &everywhere, Depth::Daily, &alone[1..]),
            (Kernel::Old, &[Kernel::Old], Depth::Daily, &alone),
            (Kernel::Newest, &[Kernel::Newest], Depth::Daily, &alone),
        ] {
            let choice = stock(&all(), kernel, kernels, depth);
            assert_eq!(names(&choice.tests), expected, "{kernel} of {kernels:?}");
            let note = choice.note(kernel).unwrap_or_default();
            for test in all() {
                let is_named = note.contains(&test.group());
                let runs = expected.contains(&test.to_string().as_str());
                assert_eq!(is_named, !runs, "{test}: {note}");
            }
        }
    }

    #[test]
    fn this_kernel_runs_what_it_can_and_user_mode_linux_the_rest() {
        for (root, ipvlan, expected) in [
            (
                true,
                false,
                ["kube::api::x", "native::netlink::x", "native::programs::x"].as_slice(),
            ),
            (true, true, &ALL),
            (false, false, &[]),
        ] {
            let here = Here { root, ipvlan };
            let (batches, _) = batches(&all(), &[Kernel::Uml], Depth::Daily, here);
            let here = batches.iter().find(|batch| batch.place == Place::Here);
            let here = here.map_or(Vec::new(), |batch| names(&batch.tests));
            assert_eq!(here, expected, "root {root}, ipvlan {ipvlan}");
            let run: usize = batches.iter().map(|batch| batch.tests.len()).sum();
            assert_eq!(run, ALL.len(), "each test once");
        }
    }

    #[test]
    fn what_is_chosen_by_name_is_there() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests");
        for name in STOCK.into_iter().chain(DAILY).chain(CONDUCT) {
            let (suite, module) = name.split_once("::").expect("SUITE::MODULE");
            let file = format!("{dir}/{suite}/{module}.rs");
            assert!(std::path::Path::new(&file).exists(), "{file}");
        }
    }
}
