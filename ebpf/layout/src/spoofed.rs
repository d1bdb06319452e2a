//! Counts what pods tried to send and must not: with addresses that are not their own, or to a metadata service.

/// Maximum number of counted pods, twice for those that did both; beyond it, the one that tried least recently is
/// forgotten.
pub const MAX_SPOOFERS: u32 = 256;

/// Added to a pod's number, the key of its dropped packets to the clouds' metadata services.
pub const TO_METADATA: u32 = 1 << 16;

/// Dropped packets of one pod: with an address that is not its own, or with [`TO_METADATA`] in the key. Counted without a lock: one of two concurrent
/// packets may be missed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spoofed {
    /// By its interfaces.
    pub by_nic: u64,
    /// By its veth.
    pub by_veth: u64,
}

const _: () = assert!(size_of::<Spoofed>() == 16);

// SAFETY: `repr(C)`, no padding (asserted by size above), every bit pattern is valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Spoofed {}
