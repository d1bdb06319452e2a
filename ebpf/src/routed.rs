//! Detects whether a specific route of the node sends a packet out by a NIC.
//!
//! Such a route (to a storage network, to a tunnel's far end) may send packets with another NIC's address out by this
//! one on purpose. The main table's default route is no such choice: it applies for want of a better route.

use aya_ebpf::{helpers::bpf_fib_lookup, programs::TcContext};
use ebbtide_layout::Address;

use crate::{
    host_maps as maps,
    packet::{self, Ip},
};

/// `LOOPBACK_IFINDEX` (include/net/flow.h): the input link of the node's own packets, for its rules.
const LOOPBACK: u32 = 1;

/// `AF_INET` and `AF_INET6` (include/linux/socket.h).
const V4: u8 = 2;
const V6: u8 = 10;

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h) without its unions: the verifier of some kernels refuses one that
/// is half set.
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    ports: [u16; 2],
    length: u16,
    ifindex: u32,
    tos: u32,
    source: [u32; 4],
    /// The requested destination; afterwards the next hop, if there is one.
    destination: [u32; 4],
    neighbour: [u32; 4],
}

const _: () = assert!(size_of::<Lookup>() == 64);

/// Whether the node's routes send the packet out by this NIC, and not by the main table's default route. Also true for
/// a packet with foreign bits in its mark: they may route it, which the lookup ignores before Linux 6.10.
#[inline(always)]
pub(crate) fn is_meant(ctx: &TcContext, ip: &Ip, ifindex: u32) -> bool {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.skb.skb).mark } & !maps::nic_marks() != 0 {
        return true;
    }
    let Some(nic) = maps::nic(ifindex) else {
        return false;
    };
    let is_v4 = ip.is_v4();
    let mut lookup = Lookup {
        family: if is_v4 { V4 } else { V6 },
        protocol: 0,
        ports: [0; 2],
        length: 0,
        ifindex: LOOPBACK,
        tos: 0,
        source: words(ip.source, is_v4),
        destination: words(ip.destination, is_v4),
        neighbour: [0; 4],
    };
    // The return value also depends on the neighbour and the MTU; the next hop is filled in before.
    // SAFETY: as above; the helper reads and writes as many bytes as it is told,
    // all of them initialised.
    let _of_the_neighbour = unsafe {
        bpf_fib_lookup(
            ctx.skb.skb.cast(),
            (&raw mut lookup).cast(),
            size_of::<Lookup>() as i32,
            0,
        )
    };
    // If nothing was found, or the loopback does not forward, the fields are unchanged.
    let is_default = if is_v4 {
        lookup.destination[0] == nic.gateway4
    } else {
        lookup.destination == nic.gateway6
    };
    let is_found = lookup.ifindex != LOOPBACK;
    is_found && lookup.ifindex == ifindex && !is_default
}

/// Converts an address for the helper: of IPv4 the first word alone.
#[inline(always)]
fn words(address: Address, is_v4: bool) -> [u32; 4] {
    if is_v4 {
        return [packet::v4_word(address), 0, 0, 0];
    }
    packet::words(address)
}
