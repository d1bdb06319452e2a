//! moto, a server that acts as EC2, for the tests of the cloud controller: a Python package with what it needs, each by its
//! digest (`xtask/moto-requirements.txt`).
//!
//! It is optional. Where there is no Python, or no package is to be had, those tests are skipped, and say so.

use std::fs;

use anyhow::{Context as _, Result};

use super::python::{self, Packages};
use crate::ui;
use crate::workspace::Workspace;

/// The packages and their digests.
const REQUIREMENTS: &str = "xtask/moto-requirements.txt";

/// Installs it below the target directory (`tests/src/moto.rs` looks there), unless this version is there. A failure is
/// only said.
pub(crate) fn try_ensure(ws: &Workspace) {
    if let Err(error) = ensure(ws) {
        ui::note(format_args!(
            "setup: no moto, so the tests that need it are skipped: {error:#}"
        ));
    }
}

fn ensure(ws: &Workspace) -> Result<()> {
    let path = ws.root.join(REQUIREMENTS);
    let requirements = fs::read_to_string(&path);
    let requirements = requirements.with_context(|| format!("cannot read {}", path.display()))?;
    let packages = Packages {
        title: "moto (140 MB)",
        place: &ws.target.join("moto"),
        requirements: &requirements,
    };
    python::ensure(ws, packages)
}
