//! `fuzz`: fuzzing for as long as one wants. The tests run a few inputs each time.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::demo::test_environment;
use crate::exec::Output;
use crate::setup::{self, Needs, debian};
use crate::workspace::Workspace;
use crate::{build, build_ebpf, here, ui};

/// Options of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Passed on: names, --seconds, --seed, --input, --list (`cargo xtask fuzz -- --help`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Builds and runs the fuzzer, and returns its status. Harmful inputs are kept in `target/fuzz`.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::prepare(ws, &Needs::new(true, &[debian::DEMO], &[]))?;
    ui::step("build the kernel's programs", || {
        build_ebpf::run(ws, Output::OnFailure)
    })?;
    ui::step("build the agent", || {
        build::unoptimised(ws, Output::OnFailure)
    })?;
    ui::step("build the readers", || {
        build::unoptimised_also(ws, "ebbtide-fuzz", Output::OnFailure)
    })?;
    let program = ws.unoptimised().join("ebbtide-fuzz");
    let status = here::command(&program)?
        .args(&options.args)
        .envs(test_environment(ws, &ws.unoptimised())?)
        .env("EBBTIDE_FUZZ_DIR", ws.target.join("fuzz"))
        .status();
    let status = status.with_context(|| format!("cannot start {}", program.display()))?;
    Ok(ExitCode::from(
        status.code().map_or(1, |code| code.to_le_bytes()[0]),
    ))
}
