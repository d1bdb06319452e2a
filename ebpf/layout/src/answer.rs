//! The data of the responder to ARP requests and neighbour solicitations.

/// The answer for an address: by which NIC, and with which link-layer address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The NIC, in the host. Requests by any other get no answer.
    pub ifindex: u32,
    /// The NIC's link-layer address.
    pub mac: [u8; 6],
    /// Always zero.
    pub pad: [u8; 6],
    /// Number of answers sent.
    pub count: u64,
}

const _: () = assert!(size_of::<Answer>() == 24);

#[cfg(not(target_arch = "bpf"))]
mod pod {
    use super::Answer;

    // SAFETY: `repr(C)`, no padding (asserted by size above), every bit pattern is valid.
    unsafe impl aya::Pod for Answer {}
}
