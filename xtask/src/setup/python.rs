//! Python packages, each in a virtual environment of its own below the target directory.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::debian;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// The programs that create a virtual environment.
const PYTHON: &[(&str, &str)] = &[("python3", "python3-venv")];

/// Packages for one purpose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packages<'a> {
    /// What they are called where progress is told, with their size.
    pub(super) title: &'a str,
    /// The directory of the environment.
    pub(super) place: &'a Path,
    /// The packages with their versions, as in a requirements file, by digest where there are digests.
    pub(super) requirements: &'a str,
}

/// Installs packages, unless exactly these are there.
///
/// # Errors
/// If they are not to be had, or one has another digest.
pub(super) fn ensure(ws: &Workspace, packages: Packages<'_>) -> Result<()> {
    let Packages {
        title,
        place,
        requirements,
    } = packages;
    // Written last: what is half installed has none.
    let mark = place.join("installed.txt");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == requirements) {
        return Ok(());
    }
    debian::programs(ws, PYTHON)?;
    ui::note(format_args!("setup: installing {title}"));
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(place);
    exec::run(&mut venv, Output::OnFailure)?;
    let wanted = place.join("wanted.txt");
    let written = |path: &Path| format!("cannot write {}", path.display());
    fs::write(&wanted, requirements).with_context(|| written(&wanted))?;
    let mut pip = Command::new(place.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
    pip.args(["--disable-pip-version-check", "--only-binary=:all:", "-r"]);
    exec::run(pip.arg(&wanted), Output::OnFailure)?;
    fs::write(&mark, requirements).with_context(|| written(&mark))
}
