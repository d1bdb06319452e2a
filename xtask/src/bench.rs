//! `bench`: figures, measured on this machine.

mod node;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;

use node::{Node, Run};

use crate::build_ebpf;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

pub(crate) use node::each_once;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Options {
    /// ADD and DEL: one by one, many at once, many in a row; beside other plugins and the bare kernel
    Add(Node),
    /// The agent itself: memory, time until it is ready, CPU at rest, with more and more pods
    Agent(Node),
    /// What a packet pays for its reply's way: beside iptables, and beside nothing
    Datapath(Node),
    /// Durable allocations, beside host-local: per second, latency, memory, recovery
    Pool(Pool),
    /// The eBPF programs: size, stack, nanoseconds for a packet of each kind; needs root
    Programs(Programs),
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

/// Options of `bench programs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Programs {
    /// Write the figures to FILE as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Builds what is measured and what measures, optimised, and runs it.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    match options {
        Options::Add(options) => node::run(ws, &Run::of("add", options)),
        Options::Agent(options) => node::run(ws, &Run::of("agent", options)),
        Options::Datapath(options) => node::run(ws, &Run::of("datapath", options)),
        Options::Pool(options) => pool(ws, options).map(|()| ExitCode::SUCCESS),
        Options::Programs(options) => programs(ws, options).map(|()| ExitCode::SUCCESS),
    }
}

fn pool(ws: &Workspace, options: &Pool) -> Result<()> {
    let mut bench = built(ws, "ebbtide-bench")?;
    bench.arg("--dir");
    bench.arg(options.dir.as_ref().unwrap_or(&ws.target));
    if let Some(file) = &options.json {
        bench.arg("--json").arg(file);
    }
    exec::run(bench.args(&options.args), Output::Show)
}

fn programs(ws: &Workspace, options: &Programs) -> Result<()> {
    ui::step("build the programs", || {
        build_ebpf::run(ws, Output::OnFailure)
    })?;
    let mut bench = built(ws, "ebbtide-bench-programs")?;
    bench.env("EBBTIDE_EBPF_DIR", ws.ebpf());
    if let Some(file) = &options.json {
        bench.arg("--json").arg(file);
    }
    exec::run(&mut bench, Output::Show)
}

fn built(ws: &Workspace, binary: &str) -> Result<Command> {
    ui::step("build the benchmark", || {
        let mut cargo = ws.cargo("build");
        cargo.args(["--release", "--locked", "-p", "ebbtide-tests"]);
        exec::run(cargo.args(["--bin", binary]), Output::OnFailure)
    })?;
    Ok(Command::new(ws.release().join(binary)))
}
