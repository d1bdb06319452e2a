//! `bench`: benchmarks on this machine.

mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use run::{Common, Run};

use crate::workspace::Workspace;

pub(crate) use run::each_once;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Options {
    /// ADD and DEL: one by one, many at once, many in a row; beside other plugins and the bare kernel
    Add(Common),
    /// The agent itself: memory, time until it is ready, CPU at rest, with more and more pods
    Agent(Common),
    /// What a packet pays for its reply's way: beside iptables, and beside nothing
    Datapath(Common),
    /// Durable allocations, beside host-local: per second, latency, memory, recovery
    Pool {
        #[command(flatten)]
        common: Common,
        /// Measure the disk of this directory [default: the target directory]
        #[arg(long, value_name = "DIR", conflicts_with_all = ["vm", "qemu", "kernel"])]
        dir: Option<PathBuf>,
    },
    /// The eBPF programs: nanoseconds for a packet of each kind, instructions, machine code, stack
    Programs(Common),
}

/// Builds the benchmark and the programs that it measures, optimised, and runs it.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    let run = match options {
        Options::Add(common) => Run::of("add", common),
        Options::Agent(common) => Run::of("agent", common),
        Options::Datapath(common) => Run::of("datapath", common),
        Options::Pool { common, dir } => {
            Run::of("pool", common).on_disk(dir.as_deref().unwrap_or(&ws.target))
        }
        Options::Programs(common) => Run::of("programs", common),
    };
    run::run(ws, &run)
}
