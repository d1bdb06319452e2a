//! `demo`: builds everything and runs the demonstration on real packets, in this kernel or in a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::exec::Output;
use crate::setup::{self, Needs, debian};
use crate::vm::{self, Hardware, Kernel, Request};
use crate::workspace::Workspace;
use crate::{build, build_ebpf, here, ui};

/// The clouds, as the demo itself names them.
const CLOUDS: [&str; 5] = ["aws", "alibaba", "azure", "gcp", "tencent"];

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also write the table to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The cloud whose metadata tell the agents the addresses for pods (default: aws)
    #[arg(long, value_name = "CLOUD", value_parser = CLOUDS)]
    cloud: Option<String>,
    /// Declare pools, and ask no cloud
    #[arg(long, conflicts_with = "cloud")]
    pools: bool,
    /// Show cargo's output
    #[arg(short, long)]
    verbose: bool,
    /// Use a guest with Debian's stock kernel under QEMU (6.1, unless --kernel says another)
    #[arg(long)]
    qemu: bool,
    /// Use a guest with this kernel
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Time out after this many seconds
    #[arg(long, value_name = "SECS", default_value_t = 600)]
    timeout: u64,
    /// Passed to the demo itself
    #[arg(last = true)]
    args: Vec<String>,
}

impl Options {
    /// Returns the arguments of the demo itself, besides the file.
    fn passed_on(&self) -> Vec<String> {
        let mut passed = Vec::new();
        if let Some(cloud) = &self.cloud {
            passed.extend(["--cloud".to_owned(), cloud.clone()]);
        }
        if self.pools {
            passed.push("--pools".to_owned());
        }
        passed.extend(self.args.iter().cloned());
        passed
    }
}

/// Builds and runs the demo, and returns its status.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    let kernel = Kernel::chosen(options.kernel, options.qemu);
    let direct =
        kernel == Kernel::Uml && options.kernel.is_none() && setup::this_kernel_will_do(ws)?;
    setup::prepare(ws, &Needs::new(direct, &[debian::DEMO], &[kernel]))?;
    build_all(
        ws,
        if options.verbose {
            Output::Show
        } else {
            Output::OnFailure
        },
    )?;

    let mut command = vec![
        ws.unoptimised()
            .join("ebbtide-demo")
            .to_string_lossy()
            .into_owned(),
    ];
    let mut env = test_environment(ws, &ws.unoptimised())?;
    if ui::coloured() {
        env.push(("CLICOLOR_FORCE".to_owned(), "1".to_owned()));
    }
    if direct {
        ui::note("  running in this kernel");
        let mut demo = here::command(&command[0])?;
        if let Some(file) = &options.json {
            demo.arg("--json").arg(file);
        }
        let status = demo.args(options.passed_on()).envs(env).status();
        let status = status.with_context(|| format!("cannot start {}", command[0]))?;
        return Ok(ExitCode::from(
            status.code().map_or(1, |code| code.to_le_bytes()[0]),
        ));
    }
    ui::note(format_args!("  booting {kernel}"));
    if options.json.is_some() {
        command.extend(["--json".to_owned(), format!("{}/demo.json", vm::GUEST_OUT)]);
    }
    command.extend(options.passed_on());
    let timeout = Duration::from_secs(options.timeout);
    let outcome = vm::start(
        ws,
        &Request {
            kernel,
            timeout,
            command,
            env,
            hardware: Hardware::default(),
        },
    )?;
    if let Some(file) = &options.json {
        keep(&outcome.out.file("demo.json"), file)?;
    }
    Ok(ExitCode::from(outcome.status))
}

/// Returns the variables for the demo and the tests: the directories of the binaries (`programs`), of the objects, and
/// of xtask.
pub(crate) fn test_environment(ws: &Workspace, programs: &Path) -> Result<Vec<(String, String)>> {
    let own = std::env::current_exe().context("cannot find out where this program is")?;
    let own = own.parent().map(Path::to_path_buf).unwrap_or_default();
    let variable =
        |name: &str, path: PathBuf| (name.to_owned(), path.to_string_lossy().into_owned());
    Ok(vec![
        variable("EBBTIDE_BIN_DIR", programs.to_owned()),
        variable("EBBTIDE_EBPF_DIR", ws.ebpf()),
        variable("EBBTIDE_XTASK_DIR", own),
    ])
}

/// Builds everything that the demo runs, with a line for each step.
fn build_all(ws: &Workspace, output: Output) -> Result<()> {
    ui::step("build the kernel's programs", || {
        build_ebpf::run(ws, output)
    })?;
    ui::step("build the agent and the demo", || {
        build::unoptimised(ws, output)
    })
}

fn keep(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| {
        format!(
            "cannot copy the demo's {} to {}",
            from.display(),
            to.display()
        )
    })
}
