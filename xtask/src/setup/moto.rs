//! moto, a server that acts as EC2, for the tests of the cloud controller: a Python package with what it needs, each by its
//! digest (`xtask/moto-requirements.txt`).
//!
//! It is optional. Where there is no Python, or no package is to be had, those tests are skipped, and say so.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// The packages and their digests.
const REQUIREMENTS: &str = "xtask/moto-requirements.txt";

/// Installs it below the target directory (`tests/tests/kube/moto.rs` looks there), unless this version is there. A
/// failure is only said.
pub(crate) fn try_ensure(ws: &Workspace) {
    if let Err(error) = ensure(ws) {
        ui::note(format_args!(
            "setup: no moto, so the tests that need it are skipped: {error:#}"
        ));
    }
}

fn ensure(ws: &Workspace) -> Result<()> {
    let requirements = ws.root.join(REQUIREMENTS);
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let place = ws.target.join("moto");
    // Written last: what is half installed has none.
    let mark = place.join("installed.txt");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    ui::note("setup: installing moto (140 MB)");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&place);
    exec::run(&mut venv, Output::OnFailure)?;
    let mut pip = Command::new(place.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    pip.args(["--require-hashes", "--only-binary=:all:", "-r"]);
    exec::run(pip.arg(&requirements), Output::OnFailure)?;
    fs::write(&mark, wanted).with_context(|| format!("cannot write {}", mark.display()))
}
