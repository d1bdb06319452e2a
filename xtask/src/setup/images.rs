//! The programs that clouds' images run on a node: Debian's packages in `xtask/images.pins`, unpacked and never installed.

use anyhow::{Result, bail};

use super::pinned::Pins;
use crate::ui;
use crate::workspace::Workspace;

/// The pins with which this xtask was built.
pub(super) const PINS: Pins = Pins {
    file: "xtask/images.pins",
    text: include_str!("../../images.pins"),
    below: "images",
};

/// Gets those that are missing. Without them their tests are skipped, so what cannot be had is only noted.
pub(super) fn offer(ws: &Workspace) {
    if let Err(error) = get(ws) {
        ui::note(format_args!(
            "setup: not all programs of clouds' images can be had; tests beside them are skipped: {error:#}"
        ));
    }
}

fn get(ws: &Workspace) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("they are for x86-64");
    }
    for directory in PINS.directories()? {
        PINS.get(ws, directory)?;
    }
    Ok(())
}
