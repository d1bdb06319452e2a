//! Detects whether the host translated what a pod sent by its l3 interface.
//!
//! Such a packet passes the host's OUTPUT chain (`ipvlan_process_v4_outbound`), where a Service proxy changes its
//! destination if that is a load balancer's address. The answer comes to the NIC, where ipvlan would take it before the
//! host can reverse that. So the pod's program writes a digest of the destination into `tc_index`, which survives the
//! change of namespace (`skb_scrub_packet` leaves it alone), and the NIC's program compares. Of 65,536 translated
//! connections two have a digest of the new destination by chance, and are taken for untranslated.

use aya_ebpf::programs::TcContext;
use ebbtide_layout::digest;

use crate::packet::{Endpoints, Ip};

/// Records the destination's digest, in the pod at egress. Of a packet's fragments only the first has ports, and the
/// host reassembles them: each has the digest of the destination's address alone.
#[inline(always)]
pub(crate) fn note(ctx: &TcContext, ip: &Ip) {
    let ports = if ip.payload.fragment == 0 {
        ports(ctx, ip)
    } else {
        NONE
    };
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).tc_index = u32::from(digest(&ip.destination, ports)) };
}

/// Whether the host translated the packet, at the NIC. Clears `tc_index` for later classifiers.
#[inline(always)]
pub(crate) fn is(ctx: &TcContext, ip: &Ip) -> bool {
    // SAFETY: as in `note`.
    let noted = unsafe { (*ctx.skb.skb).tc_index };
    if noted == 0 {
        return false;
    }
    // SAFETY: as in `note`.
    unsafe { (*ctx.skb.skb).tc_index = 0 };
    noted != u32::from(digest(&ip.destination, ports(ctx, ip)))
        && noted != u32::from(digest(&ip.destination, NONE))
}

/// Whether a pod sent a packet by its interface, and the host translated its source to an address of the node, at the
/// NIC. Such a packet answers a request for a Service.
#[inline(always)]
pub(crate) fn is_a_pods(ctx: &TcContext) -> bool {
    // SAFETY: as in `note`.
    let noted = unsafe { (*ctx.skb.skb).tc_index };
    // SAFETY: as in `note`.
    unsafe { (*ctx.skb.skb).tc_index = 0 };
    noted != 0
}

const NONE: [u8; 4] = [0; 4];

#[inline(always)]
fn ports(ctx: &TcContext, ip: &Ip) -> [u8; 4] {
    match ip.endpoints(ctx) {
        Endpoints::Ports([a, b], [c, d]) => [a, b, c, d],
        Endpoints::EchoRequest([a, b]) | Endpoints::EchoReply([a, b]) => [a, b, 0, 0],
        Endpoints::Error | Endpoints::None => NONE,
    }
}
