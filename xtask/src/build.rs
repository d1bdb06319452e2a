//! `build`: builds the eBPF objects, then all binaries.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::cargo;
use crate::exec::Output;
use crate::workspace::Workspace;
use crate::{build_ebpf, ui};

/// The files in `target/release` after a build.
const BINARIES: [&str; 4] = ["ebbtide", "ebbtide-agent", "ebbtidectl", "ebbtide-demo"];

/// Options of `build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Unoptimised, into target/debug: quicker to build
    #[arg(long)]
    debug: bool,
    /// For this architecture: agent, plugin and ebbtidectl, into target/cross/build
    #[arg(long, value_enum, conflicts_with = "debug")]
    arch: Option<Arch>,
}

/// The programs that are installed on nodes, all static.
pub(crate) const STATIC: [&str; 3] = ["ebbtide", "ebbtide-agent", "ebbtidectl"];

/// Builds everything and lists the files.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    build_ebpf::run(ws, Output::Show)?;
    if let Some(arch) = options.arch.filter(|arch| arch.is_foreign()) {
        agent(ws, arch, Output::Show)?;
        plugin(ws, arch, Output::Show)?;
        return list(ws, STATIC.map(|name| arch.release(ws).join(name)));
    }
    if options.debug {
        unoptimised(ws, Output::Show)?;
    } else {
        optimised(ws, "ebbtide-demo", Output::Show)?;
        plugin(ws, Arch::here()?, Output::Show)?;
    }
    let dir = ws
        .target
        .join(if options.debug { "debug" } else { "release" });
    let objects = ["ebbtide", "strict-vpc"].map(|name| ws.ebpf().join(name));
    list(
        ws,
        BINARIES
            .map(|name| dir.join(name))
            .into_iter()
            .chain(objects),
    )
}

/// Prints files with their sizes.
fn list(ws: &Workspace, paths: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    let mut rows = Vec::new();
    for path in paths {
        let size = fs::metadata(&path)
            .with_context(|| format!("{} was not built", path.display()))?
            .len();
        rows.push(vec![ws.shown(&path).to_string(), kib(size)]);
    }
    ui::line(ui::table(&rows).trim_end());
    Ok(())
}

/// Builds everything that the demo and the tests start into `target/debug`, in a third of the time of a release build.
pub(crate) fn unoptimised(ws: &Workspace, output: Output) -> Result<()> {
    cargo::run(&mut programs(ws, &BINARIES), output)
}

/// Builds one more program of the tests' crates into `target/debug`.
pub(crate) fn unoptimised_also(ws: &Workspace, program: &str, output: Output) -> Result<()> {
    cargo::run(&mut programs(ws, &[program]), output)
}

/// Builds the agent, its command line and a program of the tests' crates into `target/release`.
pub(crate) fn optimised(ws: &Workspace, program: &str, output: Output) -> Result<()> {
    let here = Arch::here()?;
    agent(ws, here, output)?;
    let mut command = here.cargo(ws, "build")?;
    command.args(["--locked", "--release", "--bin", program]);
    cargo::run(&mut command, output)
}

/// Returns the command that builds programs by their names. It does not name their packages: so the features are those
/// of all default members, as when the tests are built, and common dependencies are built once.
fn programs(ws: &Workspace, names: &[&str]) -> Command {
    let mut command = ws.cargo("build");
    command.arg("--locked");
    command.args(names.iter().flat_map(|name| ["--bin", name]));
    command
}

/// Builds the agent and its command line into the release directory. Both are static, so they run on any distribution,
/// and in an image with nothing else.
pub(crate) fn agent(ws: &Workspace, arch: Arch, output: Output) -> Result<()> {
    for program in ["ebbtide-agent", "ebbtidectl"] {
        static_program(ws, arch, "ebbtide-agent", program, "release", output)?;
    }
    Ok(())
}

/// Builds the CNI plugin, static and small, into the release directory.
pub(crate) fn plugin(ws: &Workspace, arch: Arch, output: Output) -> Result<()> {
    static_program(ws, arch, "ebbtide-plugin", "ebbtide", "plugin", output)?;
    let built = arch.output(ws).join("plugin/ebbtide");
    let release = arch.release(ws);
    let (half, to) = (release.join("ebbtide.new"), release.join("ebbtide"));
    fs::create_dir_all(&release)
        .and_then(|()| fs::copy(&built, &half).map(drop))
        // A running plugin cannot be overwritten, but it can be replaced.
        .and_then(|()| fs::rename(&half, &to))
        .with_context(|| format!("cannot copy {} to {}", built.display(), to.display()))
}

/// Builds the demo, static, into the release directory.
pub(crate) fn demo(ws: &Workspace, arch: Arch, output: Output) -> Result<()> {
    static_program(ws, arch, "ebbtide-demo", "ebbtide-demo", "release", output)
}

/// Builds one program without a dynamic loader.
fn static_program(
    ws: &Workspace,
    arch: Arch,
    package: &str,
    program: &str,
    profile: &str,
    output: Output,
) -> Result<()> {
    let mut command = arch.cargo(ws, "rustc")?;
    command
        .args(["--locked", "-p", package, "--bin", program])
        .args(["--profile", profile])
        .args(["--", "-C", "target-feature=+crt-static"]);
    cargo::run(&mut command, output)
}

fn kib(bytes: u64) -> String {
    format!("{:>8} KiB", bytes.div_ceil(1024))
}
