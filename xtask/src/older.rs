//! `older`: the programs of an older release, for the tests of upgrades and downgrades.
//!
//! They are built from that release's own sources, by its own `build-ebpf` and lock file, so they are what a node of that
//! release runs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exec::{self, Output};
use crate::workspace::Workspace;
use crate::{cargo, ui};

/// The commit of the last release, v0.1.0. A clone may come without tags.
const LAST: &str = "bc8797c92f2ff553cb050550b81eb0f4872cb64c";

/// What a node has of a release.
const PROGRAMS: [&str; 3] = ["ebbtide", "ebbtide-agent", "ebbtidectl"];

/// Downloads and unpacked tools, which the older sources verify as they do their own.
const SHARED: [&str; 3] = ["downloads", "tools", "rust-src"];

/// Options of `older`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The release's tag or commit [default: v0.1.0]
    #[arg(default_value = LAST, hide_default_value = true)]
    revision: String,
}

/// Builds the programs into `target/older`.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    let place = ws.target.join("older");
    let sources = check_out(ws, &options.revision)?;
    let target = sources.join("target");
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    for name in SHARED {
        let (ours, theirs) = (ws.target.join(name), target.join(name));
        if ours.exists() && !theirs.exists() {
            std::os::unix::fs::symlink(&ours, &theirs)
                .with_context(|| format!("cannot link {}", theirs.display()))?;
        }
    }
    let older = Workspace {
        root: sources,
        target,
    };
    let mut programs = older.cargo("xtask");
    programs.arg("build-ebpf").env_remove("CARGO_TARGET_DIR");
    cargo::run(&mut programs, Output::OnFailure)?;
    let mut build = older.cargo("build");
    build
        .args([
            "--locked",
            "--package=ebbtide-agent",
            "--package=ebbtide-plugin",
            "--bins",
        ])
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("CARGO_TARGET_DIR");
    cargo::run(&mut build, Output::OnFailure)?;
    for program in PROGRAMS {
        let (from, to) = (older.unoptimised().join(program), place.join(program));
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    ui::line(format_args!(
        "{}: {} of {}",
        ws.shown(&place),
        PROGRAMS.join(", "),
        options.revision
    ));
    Ok(())
}

/// Unpacks the sources of a revision into a directory of their own, and returns that.
fn check_out(ws: &Workspace, revision: &str) -> Result<PathBuf> {
    let git = || {
        let mut git = Command::new("git");
        git.current_dir(&ws.root);
        git
    };
    let commit = format!("{revision}^{{commit}}");
    let commit = exec::read(git().args(["rev-parse", "--verify", "--quiet", &commit]))
        .with_context(|| {
            format!(
                "{revision} is not in this checkout (a shallow clone lacks older commits: git fetch --unshallow --tags)"
            )
        })?;
    let sources = ws.target.join("older").join(commit.trim());
    fs::create_dir_all(&sources).with_context(|| format!("cannot make {}", sources.display()))?;
    let archive = ws.target.join("older/sources.tar");
    let mut pack = git();
    pack.args(["archive", "--format=tar", "--output"])
        .arg(&archive)
        .arg(commit.trim());
    exec::run(&mut pack, Output::OnFailure)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(&sources);
    exec::run(&mut tar, Output::OnFailure)?;
    Ok(sources)
}
