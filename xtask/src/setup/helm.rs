//! Helm's own engine as a Python package, since Debian has no Helm.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::debian;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// The Python package with Helm 4's library, at exactly one version.
const PACKAGE: &str = "helm-python-sdk";
const VERSION: &str = "0.2.2";

/// The programs that create a virtual environment.
const PYTHON: &[(&str, &str)] = &[("python3", "python3-venv")];

/// Returns a Python that can import `helm_python`, after installing it if it is missing.
pub(crate) fn ensure(ws: &Workspace) -> Result<PathBuf> {
    let place = ws.target.join("helm").join(VERSION);
    let python = place.join("bin/python");
    let works = || exec::succeeds(Command::new(&python).args(["-c", "import helm_python"]));
    if works() {
        return Ok(python);
    }
    debian::programs(ws, PYTHON)?;
    ui::note(format_args!(
        "setup: installing {PACKAGE} {VERSION} (90 MB)"
    ));
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&place);
    exec::run(&mut venv, Output::OnFailure)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
    pip.args(["--only-binary=:all:", &format!("{PACKAGE}=={VERSION}")]);
    exec::run(&mut pip, Output::OnFailure)?;
    Ok(python)
}
