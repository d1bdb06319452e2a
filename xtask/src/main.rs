//! The commands of this repository: `cargo xtask COMMAND`.
//!
//! There is one file for each task; `main` only dispatches. A task gets what it needs by itself (see [`setup`]), and
//! everything that it makes is below the target directory.

mod arch;
mod arm64;
mod bench;
mod build;
mod build_ebpf;
mod cargo;
mod crds;
mod deb;
mod demo;
mod deny;
mod e2e;
mod exec;
mod fuzz;
mod here;
mod image;
mod manifests;
mod older;
mod remap;
mod setup;
mod test;
mod ui;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use workspace::Workspace;

/// Builds, tests and measures Ebbtide. Missing tools are downloaded.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Download missing tools and test kernels (the other commands do so too)
    Setup(setup::Options),
    /// Run the demo on arm64, cross-built, under QEMU
    Arm64(arm64::Options),
    /// Build the eBPF programs into target/ebpf
    BuildEbpf,
    /// Build the eBPF programs and all release binaries
    Build(build::Options),
    /// Generate deploy/crds from the agent's types
    Crds,
    /// Benchmark, beside what people use today
    #[command(subcommand)]
    Bench(bench::Options),
    /// Build the Debian package, for machines without Kubernetes
    Deb(deb::Options),
    /// Check all dependencies: vulnerabilities, licences, sources, duplicates
    Deny(deny::Options),
    /// Run the demo: every path of traffic in the test VPC, with real pods and packets
    Demo(demo::Options),
    /// Test a real Kubernetes cluster of two machines with two NICs each
    E2e(e2e::Options),
    /// Fuzz every parser of external input
    Fuzz(fuzz::Options),
    /// Build the container image, an OCI archive (needs no Docker)
    Image(image::Options),
    /// Generate deploy/ebbtide.yaml from the Helm chart
    Manifests(manifests::Options),
    /// Build the programs of an older release, for the tests of upgrades
    Older(older::Options),
    /// Run all checks and tests
    Test(test::Options),
    /// Run a command in a kernel that has ipvlan
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(code) => code,
        Err(error) => {
            ui::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let ws = Workspace::find()?;
    match command {
        Command::Setup(options) => setup::run(&ws, &options),
        Command::BuildEbpf => build_ebpf::run(&ws, exec::Output::Show),
        Command::Build(options) => build::run(&ws, &options),
        Command::Crds => crds::run(&ws),
        Command::Deb(options) => deb::run(&ws, &options),
        Command::Deny(options) => deny::run(&ws, &options),
        Command::Image(options) => image::run(&ws, &options),
        Command::Manifests(options) => manifests::run(&ws, &options),
        Command::Older(options) => older::run(&ws, &options),
        Command::Arm64(options) => return arm64::run(&ws, &options),
        Command::Bench(options) => return bench::run(&ws, &options),
        Command::Demo(options) => return demo::run(&ws, &options),
        Command::E2e(options) => return e2e::run(&ws, &options),
        Command::Fuzz(options) => return fuzz::run(&ws, &options),
        Command::Test(options) => return test::run(&ws, &options),
        Command::Vm(options) => return vm::run(&ws, &options),
    }
    .map(|()| ExitCode::SUCCESS)
}
