//! Debian's Prometheus and promtool, unpacked below the target directory and never installed: an installed one would start.

use anyhow::Result;

use super::debian;
use crate::ui;
use crate::workspace::Workspace;

/// The package. apt verifies what it downloads.
const PACKAGE: &str = "prometheus";

/// Gets it, for the tests that read the agent's metrics with it (`tests/vpc/src/workspace.rs`). Without it they are skipped,
/// so a failure is only told.
pub(crate) fn ensure(ws: &Workspace) {
    let to = ws.target.join("prometheus");
    if to.join("usr/bin/promtool").exists() {
        return;
    }
    ui::note("setup: getting Debian's prometheus (19 MB)");
    let got = || -> Result<()> { debian::unpack(&[debian::download(ws, PACKAGE)?], &to) };
    if let Err(e) = got() {
        ui::note(format_args!(
            "setup: without it, tests that need it are skipped: {e:#}"
        ));
    }
}
