//! What pods tried to send with addresses that are not their own.

/// Pods that can have tried at once; of more, those that have not for the longest time are forgotten.
pub const MAX_SPOOFERS: u32 = 256;

/// Packets that one pod sent with an address that is not its own, and that went nowhere. Both count
/// without a lock, and may miss one of two at once.
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
