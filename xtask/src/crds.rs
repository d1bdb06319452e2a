//! `crds`: generates the CustomResourceDefinitions of the agent's types.

use anyhow::Result;

use crate::cargo;
use crate::exec::Output;
use crate::workspace::Workspace;

/// Writes `deploy/crds`. The agent generates the files itself, so that this crate needs none of its types.
pub(crate) fn run(ws: &Workspace) -> Result<()> {
    let mut run = ws.cargo("run");
    run.args([
        "--locked",
        "--bin",
        "ebbtide-agent",
        "--",
        "crds",
        "deploy/crds",
    ]);
    cargo::run(&mut run, Output::OnFailure)
}
