//! `bench`: figures, measured on this machine's disk.

use std::path::PathBuf;

use anyhow::Result;

use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Options {
    /// Durable allocations, beside host-local: per second, latency, memory, recovery
    Pool(Pool),
}

/// Options of `bench pool`.
#[derive(Debug, clap::Args)]
pub(crate) struct Pool {
    /// Write the figures to FILE as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure the disk of this directory [default: the target directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Passed to ebbtide-bench itself
    #[arg(last = true)]
    args: Vec<String>,
}

/// Builds `ebbtide-bench`, optimised, and runs it.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    let Options::Pool(options) = options;
    ui::step("build the benchmark", || {
        let mut cargo = ws.cargo("build");
        cargo.args(["--release", "--locked", "-p", "ebbtide-tests"]);
        cargo.args(["--bin", "ebbtide-bench"]);
        exec::run(&mut cargo, Output::OnFailure)
    })?;
    let mut bench = std::process::Command::new(ws.release().join("ebbtide-bench"));
    bench.arg("--dir");
    bench.arg(options.dir.as_ref().unwrap_or(&ws.target));
    if let Some(file) = &options.json {
        bench.arg("--json").arg(file);
    }
    exec::run(bench.args(&options.args), Output::Show)
}
