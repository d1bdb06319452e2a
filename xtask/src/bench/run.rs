//! Runs `ebbtide-bench`, in this kernel or in a guest with ipvlan, and keeps its output files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::demo::test_environment;
use crate::exec::{self, Output};
use crate::setup::{debian, linker, rust_src};
use crate::vm::{self, Hardware, Kernel, Request};
use crate::workspace::Workspace;
use crate::{build, build_ebpf, here, ui};

/// The benchmark program.
const PROGRAM: &str = "ebbtide-bench";

/// The log level at which the agent logs the duration of each step of a request.
const LOG: (&str, &str) = ("RUST_LOG", "info,ebbtide_types::timing=debug");

/// Options of every benchmark.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Common {
    /// Run in user-mode Linux, which has ipvlan, instead of this kernel (as root)
    #[arg(long)]
    vm: bool,
    /// Run in Debian's stock kernel under QEMU
    #[arg(long, conflicts_with = "vm")]
    qemu: bool,
    /// Run in this kernel
    #[arg(long, value_enum, conflicts_with_all = ["vm", "qemu"])]
    kernel: Option<Kernel>,
    /// Run briefly, only to see that it works: the figures mean nothing
    #[arg(long)]
    short: bool,
    /// Also write the values to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Time out after this many seconds
    #[arg(long, value_name = "SECS", default_value_t = 3600)]
    timeout: u64,
    /// Do not build: measure the existing binaries
    #[arg(long)]
    no_build: bool,
}

/// One run of a benchmark.
#[derive(Debug)]
pub(crate) struct Run {
    what: &'static str,
    kernel: Option<Kernel>,
    /// The directory on the disk to measure.
    dir: Option<PathBuf>,
    /// How many Services kube-proxy has written rules for on the node.
    services: usize,
    /// Whether unoptimised programs are measured, whose figures mean nothing.
    unoptimised: bool,
    options: Common,
}

impl Run {
    /// Creates a run by the options.
    pub(crate) fn of(what: &'static str, options: &Common) -> Self {
        let kernel = match options {
            Common { qemu: true, .. } => Some(Kernel::Old),
            Common { vm: true, .. } => Some(Kernel::Uml),
            Common { kernel, .. } => *kernel,
        };
        Self {
            what,
            kernel,
            dir: None,
            services: 0,
            unoptimised: false,
            options: options.clone(),
        }
    }

    /// Sets the disk to measure to that of `dir`. In a guest, which has no disk, its memory is measured.
    pub(crate) fn on_disk(mut self, dir: &Path) -> Self {
        let there = self.kernel.map_or(dir, |_| Path::new("/tmp"));
        self.dir = Some(there.to_owned());
        self
    }

    /// Gives the benchmark's node kube-proxy's rules for `count` Services.
    pub(crate) fn beside_services(mut self, count: usize) -> Self {
        self.services = count;
        self
    }

    /// Returns the directory of the programs.
    fn programs(&self, ws: &Workspace) -> PathBuf {
        match self.unoptimised {
            true => ws.unoptimised(),
            false => ws.release(),
        }
    }

    fn arguments(&self, out: &str) -> Vec<String> {
        let mut arguments = vec![self.what.to_owned(), "--out".to_owned(), out.to_owned()];
        if self.options.short {
            arguments.push("--short".to_owned());
        }
        if self.services > 0 {
            arguments.extend(["--services".to_owned(), self.services.to_string()]);
        }
        if let Some(dir) = &self.dir {
            arguments.extend(["--dir".to_owned(), dir.to_string_lossy().into_owned()]);
        }
        arguments
    }
}

/// Runs every benchmark once, in its shortest form and with the tests' builds, if it can run here. This shows that the
/// benchmarks work.
pub(crate) fn each_once(ws: &Workspace) -> Result<()> {
    build::unoptimised_also(ws, PROGRAM, Output::OnFailure)?;
    let (root, ipvlan) = (exec::is_root()?, vm::this_kernel_will_do()?);
    // Packets take the same paths through macvlan; ADD and the agent need ipvlan.
    for (what, here) in [
        ("add", ipvlan),
        ("agent", ipvlan),
        ("datapath", root),
        ("programs", root),
        ("pool", true),
    ] {
        let options = Common {
            vm: !here,
            short: true,
            timeout: 900,
            no_build: true,
            ..Common::default()
        };
        let mut short = Run::of(what, &options);
        short.unoptimised = true;
        if what == "pool" {
            short = short.on_disk(&ws.target);
        }
        if run(ws, &short)? != ExitCode::SUCCESS {
            bail!("`cargo xtask bench {what} --short` failed");
        }
    }
    Ok(())
}

/// Builds, runs, and keeps the report and the plots in `target/bench`.
pub(crate) fn run(ws: &Workspace, run: &Run) -> Result<ExitCode> {
    debian::programs(ws, debian::GUEST)?;
    debian::programs(ws, debian::PEERS)?;
    match run.kernel {
        None if run.dir.is_none() && !exec::is_root()? => {
            bail!("network namespaces and eBPF take root: run as root, or with --vm");
        }
        None => {}
        Some(kernel) => kernel.ensure(ws)?,
    }
    if !run.options.no_build {
        build_all(ws)?;
    }
    let to = ws.target.join("bench");
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    let program = run.programs(ws).join(PROGRAM);
    let code = match run.kernel {
        None => here(ws, run, &program, &to)?,
        Some(kernel) => in_guest(ws, run, kernel, &program, &to)?,
    };
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    let report = to.join(format!("{}.md", run.what));
    ui::note(format_args!("report: {}", ws.shown(&report)));
    if let Some(file) = &run.options.json {
        let json = to.join(format!("{}.json", run.what));
        fs::copy(&json, file)
            .with_context(|| format!("cannot copy {} to {}", json.display(), file.display()))?;
    }
    Ok(code)
}

fn here(ws: &Workspace, run: &Run, program: &Path, to: &Path) -> Result<ExitCode> {
    let mut bench = here::command(program)?;
    bench
        .args(run.arguments(&to.to_string_lossy()))
        .envs(test_environment(ws, &run.programs(ws))?)
        .env(LOG.0, LOG.1);
    let status = bench
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(status.code().map_or(ExitCode::FAILURE, |code| {
        ExitCode::from(code.to_le_bytes()[0])
    }))
}

fn in_guest(
    ws: &Workspace,
    run: &Run,
    kernel: Kernel,
    program: &Path,
    to: &Path,
) -> Result<ExitCode> {
    let out = format!("{}/bench", vm::GUEST_OUT);
    let mut command = vec![program.to_string_lossy().into_owned()];
    command.extend(run.arguments(&out));
    let mut env = test_environment(ws, &run.programs(ws))?;
    env.push((LOG.0.to_owned(), LOG.1.to_owned()));
    ui::note(format_args!("  booting {kernel}"));
    let outcome = vm::start(
        ws,
        &Request {
            kernel,
            timeout: Duration::from_secs(run.options.timeout),
            command,
            env,
            hardware: Hardware::default(),
        },
    )?;
    let made = outcome.out.file("bench");
    for entry in fs::read_dir(&made).into_iter().flatten() {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))
            .with_context(|| format!("cannot copy {}", entry.path().display()))?;
    }
    Ok(ExitCode::from(outcome.status))
}

fn build_all(ws: &Workspace) -> Result<()> {
    let quiet = Output::OnFailure;
    rust_src::ensure(ws)?;
    linker::ensure(ws)?;
    ui::step("build the kernel's programs", || build_ebpf::run(ws, quiet))?;
    ui::step("build the agent and the benchmark", || {
        build::optimised(ws, PROGRAM, quiet)
    })?;
    ui::step("build the plugin", || {
        build::plugin(ws, Arch::here()?, quiet)
    })
}
