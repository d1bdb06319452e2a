//! `arm64`: the demo on arm64, in Debian's kernel for it under QEMU: agents, pods, and every path of traffic.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::arch::Arch;
use crate::exec::Output;
use crate::setup::{Needs, cross, debian, prepare};
use crate::vm::arm64::{self, Guest};
use crate::workspace::Workspace;
use crate::{build, build_ebpf, ui};

/// Options of `arm64`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run what was built before, as it is
    #[arg(long)]
    no_build: bool,
    /// Time out after this many seconds
    #[arg(long, value_name = "SECS", default_value_t = 3600)]
    timeout: u64,
    /// Another command than the demo, in the guest's shell
    #[arg(long, value_name = "COMMAND", default_value = "ebbtide-demo")]
    run: String,
}

/// Builds for arm64, boots, runs the command, and returns its status.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    prepare(ws, &Needs::new(false, &[], &[]))?;
    debian::programs(ws, debian::QEMU_ARM64)?;
    let arch = Arch::Arm64;
    if !options.no_build {
        ui::step("build the kernel's programs", || {
            build_ebpf::run(ws, Output::OnFailure)
        })?;
        ui::step("build the agent and the plugin", || {
            build::agent(ws, arch, Output::OnFailure)?;
            build::plugin(ws, arch, Output::OnFailure)
        })?;
        ui::step("build the demo", || {
            build::demo(ws, arch, Output::OnFailure)
        })?;
    }
    let programs = build::STATIC.iter().chain(&["ebbtide-demo"]);
    let guest = Guest {
        kernel: cross::kernel(ws)?,
        root: cross::root(ws)?,
        programs: programs.map(|name| arch.release(ws).join(name)).collect(),
        objects: ["ebbtide", "trace", "strict-vpc"]
            .map(|name| ws.ebpf().join(name))
            .to_vec(),
    };
    ui::note("  booting Debian's kernel for arm64, emulated: some minutes");
    let timeout = Duration::from_secs(options.timeout);
    Ok(ExitCode::from(arm64::run(
        ws,
        &guest,
        &options.run,
        timeout,
    )?))
}
