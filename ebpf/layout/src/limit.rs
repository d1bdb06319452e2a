//! A pod's limits of bandwidth, and how far they are used.

/// Pods with a limit at most.
pub const MAX_LIMITED: u32 = 1 << 16;

/// How far ahead of its time a packet may wait at egress, in nanoseconds; one that would wait longer is dropped. Less than
/// what the queueing discipline `fq` takes (10 s: `horizon`, net/sched/sch_fq.c).
pub const HORIZON: u64 = 2_000_000_000;

/// The limit of one direction.
///
/// Programs on several CPUs use it at once, without a lock: Linux 5.10 has no atomic operation for programs but addition.
/// `next` is advanced by addition, so no packet's time is lost while the limit holds packets back. Where it is idle, `next`
/// is set, and of two packets that do this in the same instant one may be free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second; zero for no limit.
    pub rate: u64,
    /// How long the rate takes for the burst, in nanoseconds.
    pub burst: u64,
    /// When all that was sent would have left at this rate: `CLOCK_MONOTONIC`, in nanoseconds.
    pub next: u64,
    /// Packets passed.
    pub passed: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// The limits of a pod's network namespace. All interfaces of Ebbtide's in it share them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Out of the pod.
    pub egress: Limit,
    /// Into the pod.
    pub ingress: Limit,
}

/// The number of nanoseconds in which `rate` bits per second carry `bytes`; 1 GiB or more count as 1 GiB. No packet is
/// that long.
#[inline(always)]
#[must_use]
pub const fn nanoseconds(bytes: u32, rate: u64) -> u64 {
    const BITS: u64 = 8_000_000_000;
    const MOST: u32 = 1 << 30;
    if rate == 0 {
        return 0;
    }
    let bytes = if bytes < MOST { bytes } else { MOST };
    // Less than 2^30 * 2^33.
    (bytes as u64 * BITS).wrapping_div(rate)
}

const _: () = assert!(size_of::<Limit>() == 40 && size_of::<Limits>() == 80);

// SAFETY: `repr(C)`, no padding (asserted by size above), every bit pattern is valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Limits {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_takes_as_long_as_its_bits() {
        for (bytes, rate, expected) in [
            (1250, 10_000_000, 1_000_000),
            (1500, 1_000, 12_000_000_000),
            (65_536, 1_000_000_000_000_000, 0),
            (512 << 10, 1_000, 4_194_304_000_000),
            (1, 0, 0),
            (1 << 30, 1_000, 8_589_934_592_000_000),
            (u32::MAX, 1_000, 8_589_934_592_000_000),
        ] {
            assert_eq!(nanoseconds(bytes, rate), expected, "{bytes} {rate}");
        }
    }
}
