//! Whether a packet leaves by a NIC for want of a better way: by the main table's default route.
//!
//! A route of somebody's own (to a storage network, to a tunnel's far end) may lead out by one NIC what has another
//! one's address, and means it.

use aya_ebpf::{helpers::bpf_fib_lookup, programs::TcContext};
use ebbtide_layout::Address;

use crate::{host_maps as maps, packet::Ip};

/// `BPF_FIB_LOOKUP_OUTPUT` (include/uapi/linux/bpf.h): as of a packet that leaves by the link.
const OUTPUT: u32 = 1 << 1;

/// `AF_INET` and `AF_INET6` (include/linux/socket.h).
const V4: u8 = 2;
const V6: u8 = 10;

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h) without its unions: the verifier of some kernels refuses to
/// have half of one set.
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    ports: [u16; 2],
    length: u16,
    ifindex: u32,
    tos: u32,
    source: [u32; 4],
    /// What is asked for; afterwards the next hop, if there is one.
    destination: [u32; 4],
    neighbour: [u32; 4],
}

const _: () = assert!(size_of::<Lookup>() == 64);

/// Whether the route by which the packet leaves by the NIC has the next hop of the main table's default route there.
#[inline(always)]
pub(crate) fn leaves(ctx: &TcContext, ip: &Ip, ifindex: u32) -> bool {
    let Some(nic) = maps::nic(ifindex) else {
        return false;
    };
    let is_v4 = ip.is_v4();
    let mut lookup = Lookup {
        family: if is_v4 { V4 } else { V6 },
        protocol: 0,
        ports: [0; 2],
        length: 0,
        ifindex,
        tos: 0,
        source: words(ip.source, is_v4),
        destination: words(ip.destination, is_v4),
        neighbour: [0; 4],
    };
    // What it returns tells of the neighbour and the MTU as well; the next hop is filled in before.
    // SAFETY: the context is valid while the program runs; the helper reads and writes as many bytes as it is told,
    // all of them initialised.
    let _of_the_neighbour = unsafe {
        bpf_fib_lookup(
            ctx.skb.skb.cast(),
            (&raw mut lookup).cast(),
            size_of::<Lookup>() as i32,
            OUTPUT,
        )
    };
    if is_v4 {
        nic.gateway4 != 0 && lookup.destination[0] == nic.gateway4
    } else {
        nic.gateway6 != [0; 4] && lookup.destination == nic.gateway6
    }
}

/// An address as the helper takes it: of IPv4 the first word alone.
#[inline(always)]
fn words(address: Address, is_v4: bool) -> [u32; 4] {
    if is_v4 {
        let [.., a, b, c, d] = address;
        return [u32::from_ne_bytes([a, b, c, d]), 0, 0, 0];
    }
    // SAFETY: both are sixteen bytes, and every bit pattern is an address.
    unsafe { core::mem::transmute::<Address, [u32; 4]>(address) }
}
