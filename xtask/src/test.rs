//! `test`: every check and every test, with a summary at the end.

mod choice;
mod integration;
mod libtest;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum as _;

use crate::exec::{self, Output};
use crate::ui::{self, Colour};
use crate::vm::Kernel;
use crate::workspace::Workspace;
use crate::{bench, build, build_ebpf, image, manifests};

use integration::Place;
use libtest::Count;

/// In which kernels the integration tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// In all there are.
    All,
    /// In this one. User-mode Linux: this kernel where it can, that one for the rest.
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

/// The kernels that are meant, each once, in a fixed order.
fn wanted(options: &[Kernels], fast: bool) -> Vec<Kernel> {
    if fast {
        return vec![Kernel::Uml];
    }
    let all = Kernel::value_variants().iter().copied();
    all.filter(|kernel| options.contains(&Kernels::All) || options.contains(&Kernels::One(*kernel)))
        .collect()
}

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the integration tests run; several with commas between
    #[arg(long, value_enum, value_delimiter = ',', default_value = "uml,6.1")]
    kernel: Vec<Kernels>,
    /// Only tests whose name contains S (unit and integration tests)
    #[arg(long, value_name = "S")]
    filter: Option<String>,
    /// Only the tests, and not in QEMU
    #[arg(long)]
    fast: bool,
    /// How many integration tests run at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: u32,
    /// Give up on a guest after so many seconds
    #[arg(long, value_name = "SECS", default_value_t = 3000)]
    timeout: u64,
}

/// The steps so far.
#[derive(Debug, Default)]
struct Report {
    steps: Vec<(String, Duration, bool)>,
    count: Count,
}

impl Report {
    /// Does a step that is a check or a build. Its output is shown if it fails.
    fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        let start = Instant::now();
        let result = ui::step(name, work);
        if let Err(error) = &result {
            ui::error(error);
        }
        self.steps
            .push((name.to_owned(), start.elapsed(), result.is_ok()));
        result.is_ok()
    }

    /// Does a step that runs tests: `work` returns whether all went well, and what libtest wrote.
    fn tests(&mut self, name: &str, work: impl FnOnce() -> Result<(bool, String)>) {
        ui::line(ui::paint(Colour::Bold, format_args!("\n{name}")));
        let start = Instant::now();
        let (ok, text) = work().unwrap_or_else(|error| {
            ui::error(&error);
            (false, String::new())
        });
        let mut count = libtest::count(&text);
        if !ok && count.failed == 0 {
            // Something ended without libtest's line: that is a failure, not nothing.
            count.failed = 1;
        }
        self.count.add(count);
        self.steps
            .push((name.to_owned(), start.elapsed(), ok && count.failed == 0));
    }

    /// Shows the table and the line that counts; whether all went well.
    fn finish(&self) -> bool {
        let rows: Vec<Vec<String>> = self
            .steps
            .iter()
            .map(|(name, time, ok)| {
                let word = if *ok {
                    ui::paint(Colour::Green, "ok")
                } else {
                    ui::paint(Colour::Red, "FAILED")
                };
                vec![name.clone(), format!("{:>7}", ui::seconds(*time)), word]
            })
            .collect();
        ui::line(format_args!("\n{}", ui::table(&rows)));
        if self.count.passed + self.count.failed == 0 {
            ui::line("no test ran: that is a failure, too");
        }
        ui::line(self.count);
        let ran = self.count.passed > 0 && self.count.failed == 0;
        ran && self.steps.iter().all(|(_, _, ok)| *ok)
    }
}

/// Runs everything that the options ask for; one failure does not keep the rest from running.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    let quiet = Output::OnFailure;
    let kernels = wanted(&options.kernel, options.fast);
    if !report.check("setup", || integration::setup(ws, &kernels)) {
        report.finish();
        return Ok(ExitCode::FAILURE);
    }
    if !options.fast {
        report.check("format", || {
            exec::run(ws.cargo("fmt").arg("--check"), quiet)
        });
    }
    let programs = report.check("build the kernel's programs", || build_ebpf::run(ws, quiet));
    if programs && !options.fast {
        report.check("clippy", || clippy(ws));
        report.check("the manifests and the Helm chart", || manifests::check(ws));
        report.check("clippy of the kernel's programs", || {
            build_ebpf::clippy(ws, quiet)
        });
    }
    if programs {
        report.tests("unit tests", || unit(ws, options));
    }
    let built = programs
        && report.check("build the agent and its image", || {
            build::binaries(ws, quiet)?;
            build::plugin(ws, quiet)?;
            image::for_tests(ws)
        });
    if built {
        run_integration(ws, options, &mut report, &kernels);
        if options.filter.is_none() {
            report.check("each benchmark, once", || bench::each_once(ws));
        }
    }
    Ok(if report.finish() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn clippy(ws: &Workspace) -> Result<()> {
    let mut clippy = ws.cargo("clippy");
    clippy.args(["--locked", "--all-targets", "--", "-D", "warnings"]);
    exec::run(&mut clippy, Output::OnFailure)
}

fn unit(ws: &Workspace, options: &Options) -> Result<(bool, String)> {
    let mut test = ws.cargo("test");
    test.args(["--quiet", "--locked", "--lib", "--bins", "--no-fail-fast"]);
    if let Some(filter) = &options.filter {
        test.arg("--").arg(filter);
    }
    exec::tee(&mut test)
}

fn run_integration(ws: &Workspace, options: &Options, report: &mut Report, kernels: &[Kernel]) {
    let mut found = Vec::new();
    report.check("build the integration tests", || {
        found = integration::build(ws)?;
        Ok(())
    });
    let runs = integration::Runs {
        filter: options.filter.as_deref(),
        threads: options.threads,
        timeout: Duration::from_secs(options.timeout),
    };
    let mut places = Vec::new();
    for kernel in kernels {
        match (kernel, choice::everyday(&found)) {
            (Kernel::Uml, Ok(found)) => places.extend(found),
            (Kernel::Uml, Err(error)) => report.tests("integration tests", || Err(error)),
            _ => {
                let choice = choice::stock(&found, *kernel, kernels);
                if let Some(note) = choice.note(*kernel) {
                    ui::note(note);
                }
                places.push((Place::Guest(*kernel), choice.tests));
            }
        }
    }
    for (place, tests) in places {
        if !tests.is_empty() {
            let name = format!("integration tests in {place}");
            report.tests(&name, || runs.run(ws, place, &tests));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_that_is_meant_is_booted_once() {
        let one = Kernels::One;
        let all = vec![
            Kernel::Uml,
            Kernel::Floor,
            Kernel::Old,
            Kernel::Stable,
            Kernel::Newest,
        ];
        for (options, fast, expected) in [
            (vec![Kernels::All], false, all.clone()),
            (vec![Kernels::All, one(Kernel::Old)], false, all),
            (vec![one(Kernel::Newest)], false, vec![Kernel::Newest]),
            (vec![Kernels::All], true, vec![Kernel::Uml]),
        ] {
            assert_eq!(wanted(&options, fast), expected, "{options:?}");
        }
    }
}
