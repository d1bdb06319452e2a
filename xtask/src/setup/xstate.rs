//! The library to preload into user-mode Linux on a CPU with a larger register set than it knows.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// The size in bytes of the extended registers that user-mode Linux before 6.13 writes, on every CPU (`HOST_FP_SIZE`,
/// arch/x86/um/user-offsets.c). The host's kernel accepts the whole set only.
pub(crate) const WRITTEN: u32 = 2696;

/// The variable that forces the preload (`1`) or prevents it (`0`) on any CPU.
const FORCE: &str = "EBBTIDE_UML_WHOLE_XSTATE";

/// The package of the library, and the file that cargo builds.
const PACKAGE: &str = "ebbtide-xstate";
const LIBRARY: &str = "debug/libebbtide_xstate.so";

/// Returns the library to preload, after building it if it is missing; `None` if user-mode Linux needs none.
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

/// Reports that the library is used.
pub(crate) fn note() {
    ui::note(format_args!(
        "this CPU's register set has {} bytes, user-mode Linux writes {WRITTEN}: preloading {PACKAGE}, \
         which completes it",
        register_set()
    ));
}

/// Whether a register set of `size` bytes must be completed; `force` is the value of the variable.
fn is_needed(size: u32, force: Option<&str>) -> Result<bool> {
    match force {
        None | Some("") => Ok(size > WRITTEN),
        Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(other) => bail!("{FORCE}={other}: it is 1 (preload) or 0 (do not)"),
    }
}

/// Returns the size in bytes of this CPU's extended registers, of those that the kernel enabled (Intel's manual, volume
/// 1, 13.2: CPUID leaf 0xD, EBX); 0 without XSAVE.
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

/// Returns 0: there is no user-mode Linux for other CPUs.
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
            // With AMX.
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
        // x87 and SSE registers and the header have 576 bytes, AVX adds 256.
        let least = match (cpuinfo.contains(" xsave"), cpuinfo.contains(" avx ")) {
            (_, true) => 832,
            (true, _) => 576,
            _ => 0,
        };
        assert!(register_set() >= least, "{} < {least}", register_set());
    }
}
