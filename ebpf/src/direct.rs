//! Follows what reaches a pod directly, past its veth: the latest path wins. Otherwise a client that used a NodePort, and
//! then the pod itself from the same port, would be answered by the veth.
//!
//! Who sees such packets: the NIC's program, those of the other pods on the NIC, whose packets ipvlan delivers without the
//! NIC, and `nic_ingress` in pods whose interface is another plugin's.
//!
//! The functions read addresses and ports from the packet again, few packets as there are: of what the caller has parsed, the
//! verifier would walk them once for each kind of packet.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use ebbtide_layout::{Flow, FlowKey, NodeAddress, OWNER_IN_L3, OWNER_IS_FOLLOWED, WHOLE, mapped};

use crate::{
    clock, extended,
    flow::{self, LocalEnd},
    flows::{self, known},
    host_maps,
    packet::{self, ACK, ETH_HLEN, ETH_P_IP, Ip, LATER, SYN},
    recent,
};

/// Whether a packet that reaches a pod may concern its flows. Of TCP only what opens a connection does.
#[inline(always)]
pub(crate) fn concerns(ctx: &TcContext, ip: &Ip, pod: u32) -> bool {
    if ip.payload.protocol == packet::TCP {
        ip.tcp_flags(ctx) & (SYN | ACK) == SYN
    } else {
        flows::has_any(pod) && ip.payload.fragment & LATER == 0
    }
}

/// Notes that a packet reaches a pod directly, with its transport header `at` this offset. Returns 1 if its flow, or its
/// connection, came by the veth before.
///
/// In l3 the flow is kept, with a note that it comes directly now: the host's conntrack still has it by the NodePort, and
/// would give the reply the node's address. So its replies take the host-stack bypass. A TCP connection that came by the
/// veth of late is noted as well, for its SYN-ACK. Not inlined: few packets concern a flow.
#[inline(never)]
pub(crate) fn came(skb: *mut __sk_buff, at: u32, protocol: u32, pod: u32, is_l3: u32) -> u32 {
    let mut key = flow::EMPTY;
    if !read(skb, at, protocol, LocalEnd::Destination, &mut key) {
        return 0;
    }
    arrived(&key, pod, is_l3)
}

/// As [`came`], for what a pod sends to another one that may be on the same NIC: ipvlan delivers it at once.
#[inline(never)]
pub(crate) fn came_beside(skb: *mut __sk_buff, at: u32, protocol: u32) -> u32 {
    let mut key = flow::EMPTY;
    if !read(skb, at, protocol, LocalEnd::Destination, &mut key) {
        return 0;
    }
    let Some(to) = host_maps::owner(&key.local) else {
        return 0;
    };
    let is_beside = |from: NodeAddress| from.ifindex == to.ifindex;
    if to.flags & OWNER_IS_FOLLOWED == 0 || !host_maps::owner(&key.remote).is_some_and(is_beside) {
        return 0;
    }
    arrived(&key, to.pod, to.flags & OWNER_IN_L3)
}

#[inline(always)]
fn arrived(key: &FlowKey, pod: u32, is_l3: u32) -> u32 {
    if key.protocol == packet::TCP {
        return u32::from(recent::begins_straight(key));
    }
    let Some(flow) = known(pod, key) else {
        return 0;
    };
    if is_l3 == 0 {
        // Another CPU may have removed it first.
        let _gone = flows::forget(pod, key);
        return 1;
    }
    if flow.straight != 0 {
        return 0;
    }
    now_by(flow, 1);
    1
}

/// Reads the key of a packet's flow, with its transport header `at` this offset. False if it has none.
#[inline(always)]
pub(crate) fn read(
    skb: *mut __sk_buff,
    at: u32,
    protocol: u32,
    end: LocalEnd,
    key: &mut FlowKey,
) -> bool {
    let (source, destination) = match end {
        LocalEnd::Source => (&mut key.local, &mut key.remote),
        LocalEnd::Destination => (&mut key.remote, &mut key.local),
    };
    let header = ETH_HLEN as u32;
    match extended::load::<2>(skb, header - 2) {
        Some(ETH_P_IP) => {
            let Some([a, b, c, d, e, f, g, h]) = extended::load::<8>(skb, header + 12) else {
                return false;
            };
            *source = mapped([a, b, c, d]);
            *destination = mapped([e, f, g, h]);
        }
        _ => {
            let is_read = extended::load_into(skb, header + 8, source)
                && extended::load_into(skb, header + 24, destination);
            if !is_read {
                return false;
            }
        }
    }
    key.protocol = protocol as u8;
    key.kind = WHOLE;
    let endpoints = packet::endpoints_at(skb, at, protocol as u8);
    flow::with_ports(&endpoints, end, true, key)
}

/// Notes that a known flow comes by another interface from now on: [`Flow::straight`].
#[inline(always)]
pub(crate) fn now_by(flow: &mut Flow, straight: u8) {
    flow.straight = straight;
    flow.since = clock::seconds();
    flow.packets = 1;
}
