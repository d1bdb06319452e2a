//! `e2e`: a real cluster with the image and the manifests of this repository.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::exec::{self, Output};
use crate::setup::{debian, helm, linker, rust_src};
use crate::vm::Kernel;
use crate::workspace::Workspace;
use crate::{build, build_ebpf, demo, here, image, ui};

/// The test's program, which also runs in the test's pods.
pub(crate) const PROGRAM: &str = "ebbtide-e2e";

/// Options of `e2e`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The cloud whose network is simulated
    #[arg(long, value_parser = ["aws", "alibaba", "all"], default_value = "all")]
    cloud: String,
    /// Also write the table to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Declare a pool for each NIC, instead of taking the addresses that the cloud's metadata tell
    #[arg(long)]
    pools: bool,
    /// End with the first row that has ROW in its name
    #[arg(long, value_name = "ROW")]
    until: Option<String>,
    /// Leave the cluster running until standard input ends
    #[arg(long)]
    stay: bool,
    /// Use the existing image in target/image
    #[arg(long)]
    no_build: bool,
}

/// Builds and runs the test, and returns its status.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    if !exec::is_root()? {
        bail!("e2e makes network namespaces and tap devices: run it as root");
    }
    debian::programs(ws, debian::GUEST)?;
    debian::programs(ws, debian::NODE)?;
    Kernel::Uml.ensure(ws)?;
    helm::program(ws)?;
    if !options.no_build {
        rust_src::ensure(ws)?;
        linker::ensure(ws)?;
        let quiet = Output::OnFailure;
        ui::step("build the kernel's programs", || build_ebpf::run(ws, quiet))?;
        ui::step("build the agent and its image", || {
            build::agent(ws, Arch::here()?, quiet)?;
            build::plugin(ws, Arch::here()?, quiet)?;
            image::for_tests(ws)
        })?;
    }
    ui::step("build the test", || {
        build::unoptimised_also(ws, PROGRAM, Output::OnFailure)
    })?;

    let mut e2e = here::command(ws.unoptimised().join(PROGRAM))?;
    e2e.envs(demo::test_environment(ws, &ws.release())?);
    if let Some(file) = &options.json {
        e2e.arg("--json").arg(file);
    }
    e2e.arg("--cloud").arg(match options.cloud.as_str() {
        "all" => "aws,alibaba",
        one => one,
    });
    if options.pools {
        e2e.arg("--pools");
    }
    if let Some(row) = &options.until {
        e2e.arg("--until").arg(row);
    }
    if options.stay {
        e2e.arg("--stay");
    }
    let status = e2e
        .status()
        .with_context(|| format!("cannot start {PROGRAM}"))?;
    Ok(ExitCode::from(
        status.code().map_or(1, |code| code.to_le_bytes()[0]),
    ))
}
