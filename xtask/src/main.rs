//! The commands of this repository: `cargo xtask COMMAND`.
//!
//! There is one file for each task; `main` only dispatches. A task gets what it needs by itself (see [`setup`]), and
//! everything that it makes is below the target directory.

mod bench;
mod build;
mod build_ebpf;
mod cargo;
mod crds;
mod demo;
mod deny;
mod e2e;
mod exec;
mod fuzz;
mod here;
mod image;
mod manifests;
mod setup;
mod test;
mod ui;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use workspace::Workspace;

/// Ebbtide's tasks: what they need and is missing, they get by themselves.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Get the tools and test kernels that are missing (the other commands do it too)
    Setup(setup::Options),
    /// Build the programs for the kernel into target/ebpf
    BuildEbpf,
    /// Build the programs for the kernel and all release binaries
    Build(build::Options),
    /// Write deploy/crds anew from the agent's types
    Crds,
    /// Measure, beside what people use today: `bench add`, `bench pool`
    #[command(subcommand)]
    Bench(bench::Options),
    /// Look at all dependencies: known holes, licences, sources, twins
    Deny(deny::Options),
    /// Show every path of traffic on a test network, with real pods and packets
    Demo(demo::Options),
    /// Run a real cluster on two machines with two NICs each, and look at everything in it
    E2e(e2e::Options),
    /// Damage inputs at random, for everything that reads what comes from outside
    Fuzz(fuzz::Options),
    /// Pack the container image, an OCI archive (no Docker)
    Image(image::Options),
    /// Make deploy/ebbtide.yaml from the Helm chart
    Manifests(manifests::Options),
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
        Command::Deny(options) => deny::run(&ws, &options),
        Command::Image(options) => image::run(&ws, &options),
        Command::Manifests(options) => manifests::run(&ws, &options),
        Command::Bench(options) => return bench::run(&ws, &options),
        Command::Demo(options) => return demo::run(&ws, &options),
        Command::E2e(options) => return e2e::run(&ws, &options),
        Command::Fuzz(options) => return fuzz::run(&ws, &options),
        Command::Test(options) => return test::run(&ws, &options),
        Command::Vm(options) => return vm::run(&ws, &options),
    }
    .map(|()| ExitCode::SUCCESS)
}
