//! The data that the eBPF programs and the agent share byte for byte: the keys and values of the maps, the hooks, and
//! the fixed link-layer addresses of the veth pair.
//!
//! Every type is `repr(C)` without implicit padding, and holds packet fields in network byte order as byte arrays, so
//! that neither side ever swaps anything.

#![cfg_attr(not(test), no_std)]

mod answer;
mod bucket;
mod digest;
mod host;
mod limit;
mod metadata;
mod spoofed;
mod trace;

pub use answer::Answer;
pub use bucket::{
    BUCKETS_PER_POD, Bucket, BucketKey, FLOWS_PER_BUCKET, MAX_BUCKETS, POD_NUMBERS, SPARE, place,
};
pub use digest::{digest, hash};
pub use host::{
    DEFAULT_NIC_MARKS, DEFAULT_NODE_PORTS, HostConfig, HostHook, MAX_NICS, NIC_IS_STRICT,
    NIC_IS_STRICT6, NIC_SUBNET_SHIFT, Nic, NicCounters, NodeAddress, OWNER_FORWARDS,
    OWNER_HAS_GATEWAY, OWNER_IN_L3, OWNER_IS_FOLLOWED, OWNER_IS_POD, reply_bit,
};
pub use limit::{HORIZON, Limit, Limits, MAX_LIMITED, nanoseconds};
pub use metadata::{AZURE_AGENT, AZURE_HOST, METADATA, METADATA_ENDS, METADATA_PORT};
pub use spoofed::{MAX_SPOOFERS, Spoofed, TO_METADATA};
pub use trace::{ANY, TRACE_BYTES, TRACED_ADDRESSES, TraceEvent, TraceFilter, Traced};

/// Link-layer address of the pod's end of every veth pair. Each pair is a link of its own, so one address serves all;
/// it is locally administered, and set explicitly so that udev's `MACAddressPolicy` leaves it alone (it only replaces
/// addresses that the kernel chose at random, `NET_ADDR_RANDOM`).
pub const POD_MAC: [u8; 6] = [0x02, 0xeb, 0xb0, 0x00, 0x00, 0x02];

/// Link-layer address of the host's end of every veth pair; see [`POD_MAC`].
pub const HOST_MAC: [u8; 6] = [0x02, 0xeb, 0xb0, 0x00, 0x00, 0x01];

/// The byte of a veth pair's link-layer addresses that holds the number of a NIC ([`Nic::number`]): in a frame to the pod
/// that of the NIC by which its packet came in, in a frame from the pod that of the NIC by which the reply is to leave.
/// Zero for none. A packet's mark does not survive the change of namespace (`skb_scrub_packet`, net/core/skbuff.c), its
/// frame does.
pub const NIC_BYTE: usize = 4;

/// Source of a frame from the pod that requests the host-stack bypass: the host sends it out by the NIC that has the
/// pod's address, as the pod's own interface would have.
pub const HOST_BYPASS_MAC: [u8; 6] = [0x02, 0xeb, 0xb0, 0x00, 0x00, 0x03];

/// The bit of `skb->mark` for "came in by the veth", unless configured otherwise.
/// Away from kube-proxy (0x4000, 0x8000), Calico (0xffff0000), Cilium (0x0f00), Istio (0x539),
/// AWS VPC CNI (0x80), Terway (0x10) and Spiderpool (0x1).
pub const DEFAULT_MARK: u32 = 0x1000;

/// The bit of `skb->mark` for "its replies take the host-stack bypass", unless configured otherwise. Used in pods only,
/// like [`DEFAULT_MARK`], and chosen by the same criteria.
pub const DEFAULT_HOST_BYPASS_MARK: u32 = 0x2000;

/// The bits of `skb->mark` for the number of the NIC by which a request came in ([`Nic::number`]), unless configured
/// otherwise: adjacent, as many as hold as many NICs as [`DEFAULT_NIC_MARKS`]. Used in pods only, and chosen by the same
/// criteria as [`DEFAULT_MARK`]; apart from Tailscale (0xff0000) and WireGuard (0xca6c), too, which run in pods.
pub const DEFAULT_POD_NICS: u32 = 0x0f00_0000;

/// Slots of the whole node for the TCP connections that last began or ended over a veth.
pub const RECENT_PLACES: u32 = 1 << 16;

/// How long such a record is valid, in seconds: a little longer than the host's conntrack remembers a connection that
/// is not established (300 s after a retransmission, 120 s after the end; `tcp_timeouts`,
/// net/netfilter/nf_conntrack_proto_tcp.c).
pub const RECENT_SECONDS: u32 = 310;

/// Maximum number of pod addresses per node (two per dual-stack interface).
pub const MAX_ADDRESSES: u32 = 8192;

/// An address of either family; IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
pub type Address = [u8; 16];

/// Returns `a.b.c.d` as an [`Address`].
///
/// # Examples
///
/// ```
/// use std::net::Ipv4Addr;
///
/// let key = ebbtide_layout::mapped([192, 0, 2, 7]);
/// assert_eq!(key, Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets());
/// ```
#[inline(always)]
#[must_use]
pub const fn mapped(v4: [u8; 4]) -> Address {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// Identifies a flow from the pod's view. Aligned so that the compiler does not copy it by bytes.
///
/// # Examples
///
/// ```
/// use ebbtide_layout::{FlowKey, mapped};
///
/// // A DNS answer to this pod, as the pod's programs look it up.
/// let key = FlowKey {
///     local: mapped([172, 31, 16, 4]),
///     remote: mapped([10, 96, 0, 10]),
///     local_port: 40_000u16.to_be_bytes(),
///     remote_port: 53u16.to_be_bytes(),
///     protocol: 17,
///     ..FlowKey::default()
/// };
/// assert_eq!(key.kind, ebbtide_layout::WHOLE);
/// ```
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The pod's address.
    pub local: Address,
    /// The remote address; of a forwarded flow the one after the host's translation.
    pub remote: Address,
    /// The pod's port; the identifier of an ICMP echo; zero for protocols without ports.
    pub local_port: [u8; 2],
    /// The remote port, zero where [`FlowKey::local_port`] is an identifier.
    pub remote_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// [`WHOLE`], or other bits.
    pub kind: u8,
    /// Always zero.
    pub pad: [u8; 2],
}

/// [`FlowKey::kind`]: a flow that came in by the veth, and that the mark cannot serve: all but TCP, and of TCP what the
/// pod forwards.
pub const WHOLE: u8 = 0;

/// A bit of [`FlowKey::kind`]: the fragments of one packet, which take the path of its first. The ports are the packet's
/// identification; the protocol is zero for IPv6.
pub const FRAGMENTS: u8 = 1;

/// A bit of [`FlowKey::kind`]: what the host forwards for the pod. The host must process answers before the pod gets
/// them.
pub const FORWARDED: u8 = 2;

/// A remembered flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The flow.
    pub key: FlowKey,
    /// When it was learned, in seconds since boot (`CLOCK_BOOTTIME`).
    pub since: u32,
    /// The number of the NIC by which it came in ([`Nic::number`]); zero for none.
    pub nic: u8,
    /// 1 if it once came in by the veth, and now by the pod's own interface. Then the host's conntrack may still have the
    /// first path, and must not see the replies. Else zero.
    pub straight: u8,
    /// Always zero.
    pub pad: [u8; 2],
    /// Packets since then, in both directions. Counted without a lock: one of two concurrent packets may be missed.
    pub packets: u64,
}

/// The hook of a program in the pod's namespace. The discriminant indexes [`PodCounters::hooks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// `veth0`, into the pod: marks packets, and remembers flows that the mark cannot serve.
    VethIngress = 0,
    /// The ipvlan interface, out of the pod: redirects remembered flows to the veth.
    NicEgress = 1,
    /// The ipvlan interface, into the pod: forgets a flow whose input interface changed.
    NicIngress = 2,
}

impl Hook {
    /// All hooks, in the order of [`PodCounters::hooks`].
    pub const ALL: [Self; 3] = [Self::VethIngress, Self::NicEgress, Self::NicIngress];
}

/// Counters of one hook, in packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets the program saw; at [`Hook::NicIngress`] of TCP only those that open a connection.
    pub seen: u64,
    /// Packets that got the mark.
    pub marked: u64,
    /// Flows newly remembered, or remembered again because their input interface changed.
    pub learned: u64,
    /// Packets sent out by the interface their flow came in on, instead of by this one.
    pub redirected: u64,
    /// Packets passed unchanged.
    pub passed: u64,
    /// Packets dropped.
    pub dropped: u64,
}

impl Counters {
    /// Adds what another CPU counted.
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.marked += other.marked;
        self.learned += other.learned;
        self.redirected += other.redirected;
        self.passed += other.passed;
        self.dropped += other.dropped;
    }
}

/// Counters of one pod address, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodCounters {
    /// Indexed by [`Hook`].
    pub hooks: [Counters; 3],
    /// The number of the pod that has the address. This and the following fields are the same on every CPU, and here
    /// because this entry is looked up for each packet anyway.
    pub pod: u16,
    /// [`POD_IN_L3`], [`POD_IS_EXEMPT`], [`POD_FOLLOWS_TCP`], [`POD_METADATA`], [`POD_NO_METADATA`].
    pub flags: u16,
    /// The pod's end of the veth pair, for the host-stack bypass. Zero without one: then nothing takes the bypass.
    pub veth: u32,
    /// The link-layer address that the pod's interface sends with, as returned by [`mac_words`]. Zero if it does not
    /// reach the wire (ipvlan l3), or is not known.
    pub mac: [u32; 2],
}

/// Converts a link-layer address to two words, for comparison with a packet's bytes.
#[inline(always)]
#[must_use]
pub const fn mac_words(mac: [u8; 6]) -> [u32; 2] {
    let [a, b, c, d, e, f] = mac;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, 0, 0]),
    ]
}

/// [`PodCounters::flags`]: what the pod sends by its interface passes the host's netfilter (ipvlan l3:
/// `ipvlan_process_v4_outbound`, drivers/net/ipvlan/ipvlan_core.c).
pub const POD_IN_L3: u16 = 1;

/// [`PodCounters::flags`]: all that the pod sends by its interface takes the host-stack bypass.
pub const POD_IS_EXEMPT: u16 = 2;

/// [`PodCounters::flags`]: the pod's TCP connections are tracked like its other flows, since its sockets do not take
/// the mark of their SYN.
pub const POD_FOLLOWS_TCP: u16 = 4;

/// [`PodCounters::flags`]: the pod reaches none of the clouds' metadata services, by its node either.
pub const POD_NO_METADATA: u16 = 8;

/// [`PodCounters::flags`]: the lowest of the bits of [`POD_METADATA`].
pub const POD_METADATA_SHIFT: u32 = 4;

/// [`PodCounters::flags`]: a bit for each of [`METADATA`], which the pod does not reach by its own interface.
pub const POD_METADATA: u16 = 0x1ff << POD_METADATA_SHIFT;

const _: () = {
    assert!(METADATA.len() == POD_METADATA.count_ones() as usize);
    assert!(size_of::<FlowKey>() == 40 && align_of::<FlowKey>() == 8);
    assert!(size_of::<Flow>() == 56 && align_of::<Flow>() == 8);
    assert!(POD_MAC[NIC_BYTE] == 0 && HOST_MAC[NIC_BYTE] == 0 && HOST_BYPASS_MAC[NIC_BYTE] == 0);
    assert!(size_of::<Counters>() == 48 && align_of::<Counters>() == 8);
    assert!(size_of::<PodCounters>() == 160 && align_of::<PodCounters>() == 8);
};

#[cfg(not(target_arch = "bpf"))]
mod pod {
    use super::{Flow, FlowKey, PodCounters};

    // SAFETY: `repr(C)`, no padding (asserted by size above), every bit pattern is valid.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodCounters {}
}
