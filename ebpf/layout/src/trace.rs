//! The data that the traced programs share with the agent: the filter, and the events.

use crate::Address;

/// Maximum number of a pod's addresses in a trace: four dual-stack interfaces.
pub const TRACED_ADDRESSES: usize = 8;

/// Size of the ring buffer in bytes.
pub const TRACE_BYTES: usize = 1 << 18;

/// The unspecified address, which stands for any.
pub const ANY: Address = [0; 16];

/// Selects the packets to trace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// When the trace ends, in nanoseconds of `CLOCK_BOOTTIME`, whatever happens to the agent.
    pub until: u64,
    /// The pod's addresses; the rest is [`ANY`]. At the NICs only packets with one of them, or with the peer's, are
    /// traced.
    pub pod: [Address; TRACED_ADDRESSES],
    /// The remote address, or [`ANY`].
    pub peer: Address,
    /// A port of either side; zero for any.
    pub port: [u8; 2],
    /// IP protocol number; zero for any.
    pub protocol: u8,
    /// Always zero.
    pub pad: [u8; 5],
}

/// The effect of a program on a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceEvent {
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// Internal to the program: its counter of learned flows before.
    pub before: u64,
    /// The packet's source.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
    /// The source port. Zero for protocols without ports; the identifier of an ICMP echo, in both ports.
    pub source_port: [u8; 2],
    /// As [`TraceEvent::source_port`].
    pub destination_port: [u8; 2],
    /// Interface, in the namespace of the program.
    pub ifindex: u32,
    /// `skb->mark` before.
    pub mark_before: u32,
    /// `skb->mark` after.
    pub mark_after: u32,
    /// The program's return value (include/uapi/linux/pkt_cls.h).
    pub verdict: i32,
    /// Bytes, with the Ethernet header; that of all segments for a GSO packet.
    pub length: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Traced`].
    pub program: u8,
    /// 1 if a flow was remembered (or, on the NIC's ingress in the pod, forgotten); at the host's end of the veth, towards
    /// the pod, if the frame has the number of a NIC.
    pub learned: u8,
    /// 1 if the frame requests the host-stack bypass (`HOST_BYPASS_MAC`).
    pub host_bypass: u8,
    /// Always zero.
    pub pad: [u8; 4],
}

/// The program that an event is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Traced {
    /// `veth_ingress`, in the pod.
    VethIngress = 0,
    /// `nic_egress`, in the pod.
    NicEgress = 1,
    /// `nic_ingress`, in the pod.
    NicIngress = 2,
    /// `host_nic_ingress`.
    HostNicIngress = 3,
    /// `host_nic_egress`.
    HostNicEgress = 4,
    /// `host_veth_egress`.
    HostVethEgress = 5,
    /// `host_veth_ingress`.
    HostVethIngress = 6,
}

impl Traced {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::VethIngress,
        Self::NicEgress,
        Self::NicIngress,
        Self::HostNicIngress,
        Self::HostNicEgress,
        Self::HostVethEgress,
        Self::HostVethIngress,
    ];

    /// Returns the program's name in the objects.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VethIngress => "veth_ingress",
            Self::NicEgress => "nic_egress",
            Self::NicIngress => "nic_ingress",
            Self::HostNicIngress => "host_nic_ingress",
            Self::HostNicEgress => "host_nic_egress",
            Self::HostVethEgress => "host_veth_egress",
            Self::HostVethIngress => "host_veth_ingress",
        }
    }
}

const _: () = {
    assert!(size_of::<TraceFilter>() == 160 && size_of::<TraceEvent>() == 80);
};

#[cfg(not(target_arch = "bpf"))]
mod pod {
    use super::{TraceEvent, TraceFilter};

    // SAFETY: `repr(C)`, no padding (asserted by size above), every bit pattern is valid.
    unsafe impl aya::Pod for TraceFilter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TraceEvent {}
}
