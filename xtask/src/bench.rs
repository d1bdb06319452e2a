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
    /// ADD and DEL, one by one, concurrently and in sequence, beside other plugins and the bare kernel
    Add(Common),
    /// The agent: memory, time until ready, idle CPU, by the number of pods
    Agent(Common),
    /// The cost of reply routing per packet, beside iptables and beside nothing
    Datapath {
        #[command(flatten)]
        common: Common,
        /// Give the node kube-proxy's rules for this many Services (its iptables mode)
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        services: usize,
    },
    /// Durable allocations: throughput, latency, memory and recovery, beside host-local
    Pool {
        #[command(flatten)]
        common: Common,
        /// Measure the disk of this directory [default: the target directory]
        #[arg(long, value_name = "DIR", conflicts_with_all = ["vm", "qemu", "kernel"])]
        dir: Option<PathBuf>,
    },
    /// The eBPF programs: nanoseconds by kind of packet, instructions, machine code, stack
    Programs(Common),
}

/// Builds the benchmark and the programs that it measures, optimised, and runs it.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    let run = match options {
        Options::Add(common) => Run::of("add", common),
        Options::Agent(common) => Run::of("agent", common),
        Options::Datapath { common, services } => {
            Run::of("datapath", common).beside_services(*services)
        }
        Options::Pool { common, dir } => {
            Run::of("pool", common).on_disk(dir.as_deref().unwrap_or(&ws.target))
        }
        Options::Programs(common) => Run::of("programs", common),
    };
    run::run(ws, &run)
}
