//! `test`: runs every check and every test, and prints a summary.

mod board;
mod choice;
mod lanes;
mod suite;
mod summary;
mod told;
mod why;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use crate::arch::Arch;
use crate::exec::{self, Output};
use crate::ui::{self, Colour};
use crate::vm::Kernel;
use crate::workspace::Workspace;
use crate::{bench, build, build_ebpf, cargo, deny, e2e, image, manifests, setup};

use board::Board;
use choice::{Depth, Here};
use lanes::{Batch, Place, Ways};
use suite::{Kind, Test};
use summary::{Summary, Terms};

/// The kernels in which the integration tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// In all of them.
    All,
    /// In this one. For user-mode Linux: in the running kernel where possible, the rest in user-mode Linux.
    One(Kernel),
}

impl clap::ValueEnum for Kernels {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::One(Kernel::Uml),
            Self::One(Kernel::Floor),
            Self::One(Kernel::Old),
            Self::One(Kernel::Stable),
            Self::One(Kernel::Newest),
            Self::All,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::All => Some(clap::builder::PossibleValue::new("all").help("All of these")),
            Self::One(kernel) => kernel.to_possible_value(),
        }
    }
}

/// The test that takes longest, with a cluster of its own. It runs with everything, or if its name is given.
const END_TO_END: &str = "kube::e2e";

/// The kernels of a run that names none.
const DAILY: [Kernels; 2] = [Kernels::One(Kernel::Uml), Kernels::One(Kernel::Old)];

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The kernels of the integration tests, comma-separated [default: uml,6.1]
    #[arg(long, value_enum, value_delimiter = ',')]
    kernel: Option<Vec<Kernels>>,
    /// Run only tests whose full name (lab::rows::...) contains S
    #[arg(long, value_name = "S")]
    filter: Option<String>,
    /// Run only tests, and not in QEMU
    #[arg(long, conflicts_with = "everything")]
    fast: bool,
    /// Run in all kernels, each with all tests that may differ there, and the end-to-end test of a cluster: takes hours
    #[arg(long)]
    everything: bool,
    /// How often a failed test is tried again; one that then passes is reported as flaky
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: u32,
    /// Fail tests that are skipped because one of these is missing, comma-separated
    #[arg(long, value_name = "NEED", value_delimiter = ',')]
    require: Vec<xtask::need::Need>,
    /// Run the tests whose name contains NAME N times, while other processes keep all processors busy
    #[arg(long, num_args = 2, value_names = ["N", "NAME"], conflicts_with_all = ["filter", "everything"])]
    stress: Option<Vec<String>>,
    /// The number of guests and test scripts that run at once [default: one per processor and 4 GiB of memory]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Time out a guest after this many seconds
    #[arg(long, value_name = "SECS", default_value_t = 3000)]
    timeout: u64,
}

/// The result of parsing the options.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    kernels: Vec<Kernel>,
    filter: Option<String>,
    /// The number of runs of each test.
    times: usize,
}

impl Options {
    fn wanted(&self) -> Result<Wanted> {
        let mut filter = self.filter.clone();
        let mut times = 1;
        if let Some([count, name]) = self.stress.as_deref() {
            times = count
                .parse()
                .ok()
                .filter(|count| *count > 0)
                .with_context(|| format!("--stress {count} {name}: {count} is no count"))?;
            filter = Some(name.clone());
        }
        let named = self.kernel.as_deref();
        let is_fast = |kernel: &Kernels| *kernel == Kernels::One(Kernel::Uml);
        if self.fast && !named.unwrap_or_default().iter().all(is_fast) {
            bail!(
                "--fast runs nothing in QEMU: leave it out to run tests in another kernel than uml"
            );
        }
        Ok(Wanted {
            kernels: kernels(named.unwrap_or(&DAILY), self.fast, self.everything),
            filter,
            times,
        })
    }

    /// Returns how much runs in kernels that make little difference.
    fn depth(&self) -> Depth {
        match self.everything || self.is_part() {
            true => Depth::Everything,
            false => Depth::Daily,
        }
    }

    /// Whether this run is for some tests only.
    fn is_part(&self) -> bool {
        self.filter.is_some() || self.stress.is_some()
    }

    /// Whether the run includes checks of the code.
    fn checks(&self) -> bool {
        !self.fast && !self.is_part()
    }
}

/// Returns the selected kernels, each once, in a fixed order.
fn kernels(options: &[Kernels], fast: bool, everything: bool) -> Vec<Kernel> {
    if fast {
        return vec![Kernel::Uml];
    }
    let all = everything || options.contains(&Kernels::All);
    Kernel::value_variants()
        .iter()
        .copied()
        .filter(|kernel| all || options.contains(&Kernels::One(*kernel)))
        .collect()
}

/// Whether a test belongs to a run with or without `everything`.
fn is_everyday(test: &Test, everything: bool, filter: Option<&str>) -> bool {
    everything
        || test.group() != END_TO_END
        || filter.is_some_and(|filter| END_TO_END.contains(filter) || filter.contains("e2e"))
}

/// The steps until now.
#[derive(Debug, Default)]
struct Report {
    steps: Vec<(String, Duration, bool)>,
    boards: Vec<Board>,
}

impl Report {
    /// Runs a check or a build. Its output is shown if it fails.
    fn check<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let result = ui::step(name, work);
        if let Err(error) = &result {
            ui::error(error);
        }
        self.steps
            .push((name.to_owned(), start.elapsed(), result.is_ok()));
        result.ok()
    }

    /// Runs tests.
    fn tests(&mut self, ws: &Workspace, name: &str, batches: &[Batch], ways: Ways, at_once: usize) {
        if batches.is_empty() {
            return;
        }
        ui::line(ui::paint(Colour::Bold, format_args!("\n{name}")));
        let start = Instant::now();
        let (boards, ok) = match lanes::run(ws, batches, ways, at_once) {
            Ok(boards) => (boards, true),
            Err(error) => {
                ui::error(&error);
                (Vec::new(), false)
            }
        };
        ui::line(format_args!(
            "{name}: {}, {}",
            Summary::of(&boards, &Terms::default()),
            ui::seconds(start.elapsed())
        ));
        self.boards.extend(boards);
        self.steps.push((name.to_owned(), start.elapsed(), ok));
    }

    /// Prints where the time went, which tests did not simply pass, and the final line. Returns whether everything
    /// succeeded.
    fn finish(&self, terms: &Terms) -> bool {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: String, tests: String, time: Duration, word: String| {
            rows.push(vec![name, tests, format!("{:>8}", ui::seconds(time)), word]);
        };
        for (name, time, ok) in &self.steps {
            let word = if *ok {
                ui::paint(Colour::Green, "ok")
            } else {
                ui::paint(Colour::Red, "FAILED")
            };
            row(name.clone(), String::new(), *time, word);
        }
        for board in &self.boards {
            for boot in board.boots() {
                if board.place != Place::Here {
                    row(
                        format!("  boot of {}", board.place),
                        String::new(),
                        *boot,
                        String::new(),
                    );
                }
            }
            for (group, count, time) in board.groups() {
                row(
                    format!("  {group}, in {}", board.place),
                    count.to_string(),
                    time,
                    String::new(),
                );
            }
        }
        ui::line(format_args!("\n{}", ui::table(&rows)));
        let summary = Summary::of(&self.boards, terms);
        for line in &summary.lines {
            ui::line(line);
        }
        if self.boards.is_empty() {
            ui::line("no test ran: that is a failure, too");
        }
        ui::line(&summary);
        summary.is_ok() && self.steps.iter().all(|(_, _, ok)| *ok)
    }
}

/// Runs everything that the options select. A failure does not prevent the rest from running.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    let wanted = options.wanted()?;
    let terms = Terms {
        flaky_passes: options.retries > 0,
        required: options
            .require
            .iter()
            .map(|need| need.name().to_owned())
            .collect(),
    };
    let mut report = Report::default();
    run_steps(ws, options, &wanted, &mut report);
    Ok(if report.finish(&terms) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the steps. Returns early if a step fails that later ones need.
fn run_steps(
    ws: &Workspace,
    options: &Options,
    wanted: &Wanted,
    report: &mut Report,
) -> Option<()> {
    let quiet = Output::OnFailure;
    report.check("setup", || setup::for_tests(ws, &wanted.kernels))?;
    if options.checks() {
        report.check("format", || {
            exec::run(ws.cargo("fmt").arg("--check"), quiet)
        });
    }
    report.check("build the kernel's programs", || build_ebpf::run(ws, quiet))?;
    if options.checks() {
        report.check("clippy", || clippy(ws));
        report.check("clippy of the kernel's programs", || {
            build_ebpf::clippy(ws, quiet)
        });
        report.check("the manifests and the Helm chart", || manifests::check(ws));
        let dependencies = format!("dependencies, by the advisories of {}", deny::as_of(ws));
        report.check(&dependencies, || deny::check(ws, quiet));
    }
    report.check("build the agent and the demo", || {
        build::unoptimised(ws, quiet)
    })?;
    let all = report.check("build the tests", || tests(ws, options, wanted))?;
    if !options.is_part() {
        // libtest cannot list examples of the documentation: rustdoc builds and runs them itself.
        report.check("examples in the documentation", || {
            exec::run(
                ws.cargo("test").args(["--locked", "--quiet", "--doc"]),
                quiet,
            )
        });
    }
    let is_end_to_end = all.iter().any(|test| test.group() == END_TO_END);
    if is_end_to_end {
        report.check("Helm", || setup::helm::program(ws))?;
    }
    // The cluster of the end-to-end test runs the released image.
    if options.checks() || is_end_to_end {
        report.check("build the release and its image", || {
            build::agent(ws, Arch::here()?, quiet)?;
            build::plugin(ws, Arch::here()?, quiet)?;
            image::for_tests(ws)?;
            build::unoptimised_also(ws, e2e::PROGRAM, quiet)
        })?;
    }
    run_tests(ws, options, wanted, report, all);
    if options.checks() {
        report.check("each benchmark, once", || bench::each_once(ws));
    }
    Some(())
}

fn clippy(ws: &Workspace) -> Result<()> {
    let mut clippy = ws.cargo("clippy");
    clippy.args(["--locked", "--all-targets", "--", "-D", "warnings"]);
    cargo::run(&mut clippy, Output::OnFailure)
}

/// Builds the tests, and returns those of this run.
fn tests(ws: &Workspace, options: &Options, wanted: &Wanted) -> Result<Vec<Test>> {
    let filter = wanted.filter.as_deref();
    let mut all = suite::build(ws, filter)?;
    let before = all.len();
    all.retain(|test| is_everyday(test, options.everything, filter));
    if all.len() < before {
        ui::note(format_args!(
            "not in this run: {END_TO_END} (with --everything, or --filter {END_TO_END})"
        ));
    }
    if all.is_empty() {
        bail!(
            "no test has {:?} in its name",
            wanted.filter.as_deref().unwrap_or_default()
        );
    }
    Ok(all)
}

fn run_tests(
    ws: &Workspace,
    options: &Options,
    wanted: &Wanted,
    report: &mut Report,
    all: Vec<Test>,
) {
    let at_once = options.jobs.unwrap_or_else(lanes::at_once);
    let stress = options.stress.is_some();
    let ways = Ways {
        // A failed test is tried again even if that does not count, to learn whether it always fails.
        tries: if stress {
            1
        } else {
            options.retries.max(1) + 1
        },
        load: if stress { processors() } else { 0 },
        timeout: Duration::from_secs(options.timeout),
    };
    let (unit, integration): (Vec<Test>, Vec<Test>) = all
        .into_iter()
        .flat_map(|test| vec![test; wanted.times])
        .partition(|test| test.suite.kind == Kind::Unit);
    if !unit.is_empty() {
        let batch = Batch {
            place: Place::Here,
            tests: unit,
            lanes: at_once,
        };
        report.tests(ws, "unit tests", &[batch], ways, at_once);
    }
    let Some(here) = report.check("what this kernel can run", Here::find) else {
        return;
    };
    let (batches, notes) = choice::batches(&integration, &wanted.kernels, options.depth(), here);
    for note in notes {
        ui::note(note);
    }
    report.tests(ws, "integration tests", &batches, ways, at_once);
}

fn processors() -> u32 {
    std::thread::available_parallelism()
        .ok()
        .and_then(|count| u32::try_from(count.get()).ok())
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::suite::tests::test;
    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &[&str]) -> Options {
        let line = std::iter::once(&"test").chain(words);
        Line::try_parse_from(line).expect("a line of ours").options
    }

    #[test]
    fn each_kernel_that_is_meant_is_booted_once() {
        let one = Kernels::One;
        let all: Vec<Kernel> = Kernel::value_variants().to_vec();
        for (options, fast, everything, expected) in [
            (vec![Kernels::All], false, false, all.clone()),
            (
                vec![Kernels::All, one(Kernel::Old)],
                false,
                false,
                all.clone(),
            ),
            (
                vec![one(Kernel::Newest)],
                false,
                false,
                vec![Kernel::Newest],
            ),
            (vec![one(Kernel::Newest)], false, true, all),
            (vec![Kernels::All], true, false, vec![Kernel::Uml]),
        ] {
            assert_eq!(kernels(&options, fast, everything), expected, "{options:?}");
        }
    }

    #[test]
    fn a_fast_run_refuses_kernels_that_it_would_leave_out() {
        for (kernel, is_fast) in [
            ("uml", true),
            ("5.10", false),
            ("uml,6.1", false),
            ("all", false),
        ] {
            let wanted = options(&["--fast", "--kernel", kernel]).wanted();
            assert_eq!(wanted.is_ok(), is_fast, "{kernel}");
        }
        let wanted = options(&["--fast"]).wanted().expect("no kernel is named");
        assert_eq!(wanted.kernels, [Kernel::Uml]);
        let wanted = options(&[]).wanted().expect("no kernel is named");
        assert_eq!(wanted.kernels, [Kernel::Uml, Kernel::Old]);
    }

    #[test]
    fn stress_takes_a_count_and_a_name() {
        let wanted = options(&["--stress", "20", "rows"]).wanted().expect("20");
        assert_eq!((wanted.times, wanted.filter.as_deref()), (20, Some("rows")));
        for count in ["0", "many"] {
            let error = options(&["--stress", count, "rows"]).wanted();
            let error = error.expect_err("no count").to_string();
            assert!(error.contains(count) && error.contains("rows"), "{error}");
        }
    }

    #[test]
    fn the_end_to_end_test_runs_with_everything_or_by_its_name() {
        let e2e = test(Kind::Integration, "kube::e2e::x", "");
        let other = test(Kind::Integration, "kube::api::x", "");
        for (everything, filter, expected) in [
            (false, None, false),
            (true, None, true),
            (false, Some("kube::"), true),
            (false, Some("e2e"), true),
            (false, Some("rows"), false),
        ] {
            let runs = is_everyday(&e2e, everything, filter);
            assert_eq!(runs, expected, "{everything} {filter:?}");
            assert!(is_everyday(&other, everything, filter));
        }
    }
}
