//! `crds`: what the API server is told of the agent's types.

use anyhow::Result;

use crate::exec::{self, Output};
use crate::workspace::Workspace;

/// Writes `deploy/crds` anew. The agent does it itself, so that this crate needs none of its types.
pub(crate) fn run(ws: &Workspace) -> Result<()> {
    let mut cargo = ws.cargo("run");
    cargo.args([
        "--locked",
        "-p",
        "ebbtide-agent",
        "--bin",
        "ebbtide-agent",
        "--",
        "crds",
        "deploy/crds",
    ]);
    exec::run(&mut cargo, Output::OnFailure)
}
