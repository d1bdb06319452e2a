//! Marks requests for strict reverse path filtering (RFC 3704) on a NIC, by the kernel (IPv4) or a firewall (both).
//!
//! A request for a Service that comes in by a NIC without the main table's default route has a reverse path by that NIC
//! only in the NIC's own table. The kernel looks it up with the packet's mark where `src_valid_mark` is on
//! (`__fib_validate_source`, net/ipv4/fib_frontend.c), a firewall's rule if it names the mark (iptables' `--validmark`,
//! nft's `fib saddr . mark . iif`); so the request needs a mark.
//!
//! What comes from the NIC's own IPv4 subnet needs none: the main table leads back to it by the NIC. It must have none
//! either: a rule leads the reverse path of what leaves by the NIC again, from that subnet, to the NIC's own table, and
//! would match it (`reverse_path` in the agent).
//!
//! A mark survives decapsulation: `skb_scrub_packet` clears it between namespaces only. So a packet that may carry
//! another one is not marked.

use aya_ebpf::{
    bindings::{
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Ipv6,
    },
    helpers::{bpf_sk_lookup_udp, bpf_sk_release},
    programs::TcContext,
};
use ebbtide_layout::{NIC_IS_STRICT, NIC_IS_STRICT6, Nic};

use crate::{
    host_maps as maps,
    packet::{self, Endpoints, Ip, LATER},
};

/// `BPF_F_CURRENT_NETNS` (include/uapi/linux/bpf.h), as the helper takes it: the namespace of the packet.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a packet for the node, in by a strict NIC, may be a request for a Service (or an ICMP message about one),
/// and carries no other packet.
///
/// UDP with a socket in the host may be a tunnel's (VXLAN, Geneve, GUE, ESP, L2TP ...), whose sockets are found like
/// any other's, and is not marked. Node ports are excepted: kube-proxy itself held sockets on them, before 1.24.
#[inline(always)]
pub(crate) fn wants_mark(ctx: &TcContext, ip: &Ip, nic: &Nic) -> bool {
    let (strict, is_beside) = if ip.is_v4() {
        (NIC_IS_STRICT, nic.is_beside(packet::v4_word(ip.source)))
    } else {
        (NIC_IS_STRICT6, false)
    };
    if nic.flags & strict == 0 || is_beside || ip.payload.fragment & LATER != 0 {
        return false;
    }
    match ip.payload.protocol {
        packet::TCP | packet::SCTP | packet::ICMP | packet::ICMPV6 => true,
        packet::UDP => match ip.endpoints(ctx) {
            Endpoints::Ports(source, destination) => {
                maps::is_node_port(u16::from_be_bytes(destination))
                    || !has_udp_socket(ctx, ip, source, destination)
            }
            _ => false,
        },
        _ => false,
    }
}

/// Whether the host has a UDP socket for this packet.
#[inline(always)]
fn has_udp_socket(ctx: &TcContext, ip: &Ip, source: [u8; 2], destination: [u8; 2]) -> bool {
    let sport = u16::from_ne_bytes(source);
    let dport = u16::from_ne_bytes(destination);
    if ip.is_v4() {
        return is_taken(
            ctx,
            Ipv4 {
                saddr: packet::v4_word(ip.source),
                daddr: packet::v4_word(ip.destination),
                sport,
                dport,
            },
        );
    }
    is_taken(
        ctx,
        Ipv6 {
            saddr: packet::words(ip.source),
            daddr: packet::words(ip.destination),
            sport,
            dport,
        },
    )
}

/// The types that the helper accepts as a `bpf_sock_tuple`, by their size.
trait Ends {}
impl Ends for Ipv4 {}
impl Ends for Ipv6 {}

#[inline(always)]
fn is_taken<T: Ends>(ctx: &TcContext, mut ends: T) -> bool {
    // SAFETY: the context is valid while the program runs; the helper reads as many bytes as it is told, all of
    // them initialised, and tells the family by their number.
    unsafe {
        let socket = bpf_sk_lookup_udp(
            ctx.skb.skb.cast(),
            (&raw mut ends).cast(),
            size_of::<T>() as u32,
            CURRENT_NETNS,
            0,
        );
        if socket.is_null() {
            return false;
        }
        let _always_zero = bpf_sk_release(socket.cast());
    }
    true
}
