//! The time at which a flow was learned. Read only then: it costs as much as a lookup.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;

/// Returns the seconds since boot, including suspend (`CLOCK_BOOTTIME`).
#[inline(always)]
pub(crate) fn seconds() -> u32 {
    // SAFETY: a helper call without arguments.
    let nanoseconds = unsafe { bpf_ktime_get_boot_ns() };
    (nanoseconds / 1_000_000_000) as u32
}
