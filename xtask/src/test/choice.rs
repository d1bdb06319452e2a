//! Which test runs in which kernel.
//!
//! Everything takes several times as long under QEMU. A run that has the tests in this kernel and in
//! user-mode Linux repeats there only what can come to another end.

use anyhow::Result;

use super::lanes::{Batch, Place};
use super::suite::{Kind, Test};
use crate::exec;
use crate::vm::{self, Kernel};

/// The executable whose tests need ipvlan. The others need root, and any kernel will do.
const LAB: &str = "lab";
/// The executable whose tests need Kubernetes' programs.
const KUBE: &str = "kube";

/// Of [`STOCK`], what is worth its time every day: what only that kernel's verifier, JIT and nf_tables can
/// decide, and every kind of traffic once.
const DAILY: [&str; 4] = [
    "lab::nft",
    "lab::nft_proxy",
    "lab::rows",
    "native::programs",
];

/// What Debian's 6.1 can decide otherwise than user-mode Linux of the same source (no JIT, one CPU,
/// all built in), or than this kernel: its JIT and verifier, its modules, its netfilter.
const STOCK: [&str; 13] = [
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
    "native::programs",
    "native::responder",
    "native::service_proxy",
];

/// What the agent does with requests and files, whatever way a packet takes: no kernel of any source makes a
/// difference to it. Its own end does: where there is TCX, links outlive it and not filters.
const CONDUCT: [&str; 2] = ["lab::faults", "lab::lifecycle"];

/// What this machine can run in its own kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here {
    pub(super) root: bool,
    pub(super) ipvlan: bool,
}

impl Here {
    /// What it can do.
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

/// How much of what a kernel can decide otherwise runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Daily,
    Everything,
}

/// The tests of `all` that run in each place, in a run over `kernels`; and what is left out, to be told.
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
    // The slow ones first.
    for kernel in kernels.iter().filter(|kernel| kernel.pin().is_some()) {
        let choice = stock(all, *kernel, kernels, depth);
        notes.extend(choice.note(*kernel));
        put(Place::Guest(*kernel), choice.tests, 1);
    }
    if kernels.contains(&Kernel::Uml) {
        let (mine, guest) = all.iter().cloned().partition(|test| here.runs(test));
        // It has one processor: two of them share the tests where there are two.
        put(Place::Guest(Kernel::Uml), guest, 2);
        put(Place::Here, mine, 1);
    }
    (batches, notes)
}

/// The tests for `kernel`, one of Debian's in QEMU, in a run over `kernels`.
fn stock(all: &[Test], kernel: Kernel, kernels: &[Kernel], depth: Depth) -> Choice {
    let runs = |test: &Test| {
        let group = test.group();
        match (kernels.contains(&Kernel::Uml), kernel) {
            // A guest has no guests of its own, and no Kubernetes worth waiting for.
            _ if test.suite.name == KUBE => false,
            (false, _) => true,
            // The same source as user-mode Linux.
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

/// What [`stock`] chose.
#[derive(Debug)]
struct Choice {
    tests: Vec<Test>,
    left_out: Vec<Test>,
}

impl Choice {
    /// What was left out, why, and how to run it all the same; `None` if nothing was.
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
