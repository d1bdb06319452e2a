//! `setup`: gets what the other commands need and is missing, and nothing when all is there.
//!
//! Everything goes below the target directory, except Debian packages of programs, which are
//! installed when we are root.

pub(crate) mod debian;
pub(crate) mod helm;
pub(crate) mod kernels;
pub(crate) mod linker;
mod pins;
pub(crate) mod rust_src;
pub(crate) mod xstate;

use anyhow::Result;

use crate::ui;
use crate::workspace::Workspace;

/// Options of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only what building and user-mode Linux need: no QEMU and no kernel for it
    #[arg(long)]
    no_qemu: bool,
    /// Pin the kernels that Debian serves now, in xtask/kernels.pins, and get nothing
    #[arg(long)]
    bump_kernels: bool,
}

/// Gets all that is missing.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if options.bump_kernels {
        return pins::bump(ws);
    }
    rust_src::ensure(ws)?;
    linker::ensure(ws)?;
    kernels::user_mode(ws)?;
    debian::programs(ws, debian::GUEST)?;
    if !options.no_qemu {
        debian::programs(ws, debian::QEMU)?;
        kernels::stock(ws, kernels::DEFAULT)?;
    }
    ui::note("setup: all there");
    Ok(())
}
