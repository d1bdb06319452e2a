//! What user-mode Linux wants preloaded on a CPU with more registers than it knows.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// Bytes of extended registers that user-mode Linux before 6.13 writes, on every CPU
/// (`HOST_FP_SIZE`, arch/x86/um/user-offsets.c). The host's kernel takes the whole set or nothing.
pub(crate) const WRITTEN: u32 = 2696;

/// `1` and `0` preload and do not, whatever the CPU.
const FORCE: &str = "EBBTIDE_UML_WHOLE_XSTATE";

/// The package that is preloaded, and the file that cargo makes of it.
const PACKAGE: &str = "ebbtide-xstate";
const LIBRARY: &str = "debug/libebbtide_xstate.so";

/// The library to preload, built if it is not there; `None` where user-mode Linux needs none.
pub(crate) fn ensure(ws: &Workspace) -> Result<Option<PathBuf>> {
    let size = register_set();
    let force = std::env::var(FORCE).ok();
    if !is_needed(size, force.as_deref())? {
        return Ok(None);
    }
    let mut build = ws.cargo("build");
    build.args(["--quiet", "--locked", "--package", PACKAGE]);
    exec::run(&mut build, Output::OnFailure)?;
    Ok(Some(ws.target.join(LIBRARY)))
}

/// Says that the library is in use.
pub(crate) fn note() {
    ui::note(format_args!(
        "this CPU's register set has {} bytes, user-mode Linux writes {WRITTEN}: preloading {PACKAGE}, \
         which completes it",
        register_set()
    ));
}

/// Whether a register set of `size` bytes must be completed; `force` is the variable's value.
fn is_needed(size: u32, force: Option<&str>) -> Result<bool> {
    match force {
        None | Some("") => Ok(size > WRITTEN),
        Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(other) => bail!("{FORCE}={other}: it is 1 (preload) or 0 (do not)"),
    }
}

/// How many bytes this CPU's extended registers have, of those that the kernel has switched on
/// (Intel's manual, volume 1, 13.2: CPUID leaf 0xD, EBX). 0 where there is no XSAVE.
#[cfg(target_arch = "x86_64")]
pub(crate) fn register_set() -> u32 {
    use std::arch::x86_64::{__cpuid, __cpuid_count, __get_cpuid_max};
    const OSXSAVE: u32 = 1 << 27;
    const XSTATE: u32 = 0xd;
    if __get_cpuid_max(0).0 < XSTATE || __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    __cpuid_count(XSTATE, 0).ebx
}

/// Other CPUs have no user-mode Linux.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn register_set() -> u32 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_completed_by_its_size_unless_somebody_insists() {
        for (size, force, expected) in [
            (0, None, Some(false)),
            (832, None, Some(false)),
            (2696, None, Some(false)),
            (2697, None, Some(true)),
            // with AMX
            (11008, None, Some(true)),
            (11008, Some(""), Some(true)),
            (11008, Some("0"), Some(false)),
            (832, Some("1"), Some(true)),
            (832, Some("yes"), None),
        ] {
            assert_eq!(is_needed(size, force).ok(), expected, "{size} {force:?}");
        }
    }

    #[test]
    fn the_size_is_what_the_kernel_hands_out() {
        let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo") else {
            println!("skipped: no /proc/cpuinfo");
            return;
        };
        // x87 and SSE registers and the header are 576 bytes, AVX's are 256 more.
        let least = match (cpuinfo.contains(" xsave"), cpuinfo.contains(" avx ")) {
            (_, true) => 832,
            (true, _) => 576,
            _ => 0,
        };
        assert!(register_set() >= least, "{} < {least}", register_set());
    }
}
