//! `setup`: gets what the other commands need and is missing, and nothing when all is there.
//!
//! Everything goes below the target directory, except Debian packages of programs, which are
//! installed when we are root.

pub(crate) mod debian;
pub(crate) mod helm;
pub(crate) mod kernels;
pub(crate) mod linker;
pub(crate) mod rust_src;

use anyhow::Result;

use crate::ui;
use crate::workspace::Workspace;

/// Options of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only what building and user-mode Linux need: no QEMU and no kernel for it
    #[arg(long)]
    no_qemu: bool,
}

/// Gets all that is missing.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    rust_src::ensure(ws)?;
    linker::ensure(ws)?;
    kernels::user_mode(ws)?;
    debian::programs(ws, debian::GUEST)?;
    if !options.no_qemu {
        debian::programs(ws, debian::QEMU)?;
        kernels::stock(ws)?;
    }
    ui::note("setup: all there");
    Ok(())
}
