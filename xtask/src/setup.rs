//! `setup`: gets what the other commands need and this machine lacks.
//!
//! Everything is stored below the target directory, except Debian packages of programs, which are installed if the user
//! is root.

pub(crate) mod cross;
pub(crate) mod debian;
pub(crate) mod helm;
mod images;
pub(crate) mod installed;
pub(crate) mod kernels;
pub(crate) mod kube;
pub(crate) mod linker;
mod moto;
mod needs;
mod pinned;
mod pins;
mod prometheus;
mod python;
pub(crate) mod rust_src;
mod script;
pub(crate) mod xstate;

use std::path::PathBuf;
use std::thread;

use anyhow::{Result, bail};

pub(crate) use needs::Needs;

use crate::exec;
use crate::ui;
use crate::vm::{self, Kernel};
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
    /// Unpack a tar file with bin/kube-apiserver and the like in it, for the tests that want Kubernetes,
    /// and get what else they want
    #[arg(long, value_name = "ARCHIVE", conflicts_with_all = ["bump_kernels", "no_qemu"])]
    kube: Option<PathBuf>,
}

/// Gets everything that is missing.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if options.bump_kernels {
        return pins::bump(ws);
    }
    if let Some(archive) = &options.kube {
        kube::unpack(ws, archive)?;
        moto::try_ensure(ws);
        return debian::programs(ws, debian::NODE);
    }
    let kernels: &[Kernel] = if options.no_qemu {
        &[Kernel::Uml]
    } else {
        &[Kernel::Uml, Kernel::Old]
    };
    // Other commands may need a guest, whatever this kernel can do.
    prepare(ws, &Needs::new(false, &[], kernels))?;
    ui::note("setup: all there");
    Ok(())
}

/// Gets what tests in these kernels need. This kernel replaces user-mode Linux if it can.
pub(crate) fn for_tests(ws: &Workspace, kernels: &[Kernel]) -> Result<()> {
    let here = kernels.contains(&Kernel::Uml) && this_kernel_will_do(ws)?;
    let mut needs = Needs::new(here, &[debian::DEMO], kernels);
    needs.programs.extend(debian::TESTS);
    let has_kube = kube::is_there(ws);
    if has_kube {
        needs.programs.extend(debian::NODE);
    }
    prepare(ws, &needs)?;
    images::offer(ws);
    if has_kube {
        // With an API server and what stands for the cloud, the cloud controller can be tested.
        moto::try_ensure(ws);
    }
    prometheus::ensure(ws);
    Ok(())
}

/// As [`vm::this_kernel_will_do`], which needs `ip`: that is installed first, if it is missing and can be.
pub(crate) fn this_kernel_will_do(ws: &Workspace) -> Result<bool> {
    if exec::find("ip").is_none() && exec::find("apt-get").is_some() && exec::is_root()? {
        debian::programs(ws, debian::IP)?;
    }
    vm::this_kernel_will_do()
}

/// Gets what all builds need, and `needs`. What cannot be got is reported before anything begins.
pub(crate) fn prepare(ws: &Workspace, needs: &Needs) -> Result<()> {
    needs::check(ws, needs)?;
    debian::programs(ws, debian::BUILD)?;
    let build = || linker::ensure(ws).map(drop);
    let download = || {
        rust_src::ensure(ws)?;
        debian::programs(ws, &needs.programs)?;
        needs
            .kernels
            .iter()
            .try_for_each(|kernel| kernel.ensure(ws))
    };
    at_once(build, download)
}

/// Fails with everything that a guest needs and setup cannot get, if there is anything.
pub(crate) fn check_guest(ws: &Workspace, kernel: Kernel) -> Result<()> {
    needs::check(ws, &Needs::guest(kernel))
}

/// Runs both at the same time: one waits for the CPU, the other one for the network.
fn at_once(
    one: impl FnOnce() -> Result<()> + Send,
    other: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        (one.join(), other)
    });
    let one = one.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match (one, other) {
        (Err(one), Err(other)) => bail!("{one:#}\nand at the same time: {other:#}"),
        (one, other) => one.and(other),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn of_two_things_at_once_every_failure_is_told() {
        for (one, other) in [(false, false), (false, true), (true, false), (true, true)] {
            let end = |fails: bool, name: &'static str| {
                move || match fails {
                    true => bail!("{name} failed"),
                    false => Ok(()),
                }
            };
            let result = at_once(end(one, "build"), end(other, "download"));
            let text = result
                .err()
                .map_or_else(String::new, |error| error.to_string());
            assert_eq!(text.contains("build failed"), one, "{text}");
            assert_eq!(text.contains("download failed"), other, "{text}");
        }
    }

    #[test]
    fn two_things_at_once_do_not_follow_each_other() {
        let (to_other, from_one) = mpsc::channel();
        let (to_one, from_other) = mpsc::channel();
        let patience = std::time::Duration::from_secs(60);
        // Each ends only when the other one has begun.
        at_once(
            move || {
                to_other.send(())?;
                Ok(from_other.recv_timeout(patience)?)
            },
            || {
                to_one.send(())?;
                Ok(from_one.recv_timeout(patience)?)
            },
        )
        .expect("both began");
    }
}
