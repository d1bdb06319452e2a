//! Checks what a guarded pod sends to its neighbours on the link: only its own addresses, and nothing that is a
//! router's or a DHCP server's to send.
//!
//! The functions are not inlined and read by a helper, which reaches what direct access does not: such packets are few.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use ebbtide_layout::{Address, mac_words, mapped};

use crate::{
    extended::{load, load_into},
    maps,
    packet::{ETH_HLEN, ICMPV6, Ip, LATER, UDP},
};

/// Internet Group Management Protocol.
const IGMP: u8 = 2;

/// ICMPv6 (RFC 4861; RFC 2710, RFC 3810).
const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_2: u8 = 143;
/// RFC 4286.
const MULTICAST_ROUTER_ADVERTISEMENT: u8 = 151;

/// Ports of DHCP (RFC 2131) and DHCPv6 (RFC 8415): the client's and the server's.
const CLIENT: u16 = 68;
const SERVER: u16 = 67;
const CLIENT6: u16 = 546;
const SERVER6: u16 = 547;

/// Whether `address` is this pod's.
#[inline(always)]
fn is_own(address: &Address, pod: u32) -> bool {
    maps::pod(address).is_some_and(|owner| u32::from(owner.pod) == pod)
}

/// Whether the pod has the address that a neighbour message is about.
#[inline(always)]
fn has_target(skb: *mut __sk_buff, at: u32, pod: u32) -> bool {
    let mut target: Address = [0; 16];
    load_into(skb, at + 8, &mut target) && is_own(&target, pod)
}

/// Returns 1 if an ICMPv6 message with an address of the pod is none of a router's, and advertises no other's address.
/// Returns 0 if its type cannot be read.
#[inline(never)]
pub(crate) fn advertises(skb: *mut __sk_buff, at: u32, pod: u32) -> u32 {
    let Some([kind]) = load::<1>(skb, at) else {
        return 0;
    };
    u32::from(match kind {
        ROUTER_ADVERTISEMENT | REDIRECT | MULTICAST_ROUTER_ADVERTISEMENT => false,
        ADVERTISEMENT => has_target(skb, at, pod),
        _ => true,
    })
}

/// Returns 1 if a packet without a specific host as its source is one that a host without an address sends: a DHCP
/// request, duplicate address detection, a router solicitation, or joining a group.
///
/// A link-local address may be anybody's, a gateway's above all. A pod has none, and its neighbours would trust what it
/// sends with one. So it may only join groups with it.
#[inline(never)]
pub(crate) fn from_nobody(skb: *mut __sk_buff, ip: &Ip, pod: u32) -> u32 {
    if !ip.is_multicast() || ip.payload.fragment & LATER != 0 {
        return 0;
    }
    let at = ip.payload.at;
    let is_unspecified = ip.source[0] == 0;
    u32::from(match ip.payload.protocol {
        IGMP => ip.is_v4(),
        UDP => {
            let Some(ports) = load::<4>(skb, at) else {
                return 0;
            };
            let ports = ends(ports);
            ports == (CLIENT, SERVER) || ports == (CLIENT6, SERVER6)
        }
        ICMPV6 => {
            let Some([kind]) = load::<1>(skb, at) else {
                return 0;
            };
            match kind {
                LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_2 => true,
                ROUTER_SOLICITATION => is_unspecified,
                SOLICITATION => is_unspecified && has_target(skb, at, pod),
                _ => false,
            }
        }
        _ => false,
    })
}

#[inline(always)]
fn ends([a, b, c, d]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// Whether a datagram is from a DHCP server to a client.
#[inline(always)]
pub(crate) fn serves_dhcp(ctx: &TcContext, ip: &Ip) -> bool {
    if ip.payload.fragment & LATER != 0 {
        return false;
    }
    // One without readable ports is a fragment of something worse than a datagram.
    ip.start::<4>(ctx).is_none_or(|ports| {
        let ports = ends(ports);
        ports == (SERVER, CLIENT) || ports == (SERVER6, CLIENT6)
    })
}

/// Returns 1 if an ARP packet is the pod's own: its sender is the pod's address, or it probes for that (RFC 5227).
/// `by_nic`: its link-layer address must be that of the pod's interface, too.
#[inline(never)]
pub(crate) fn is_own_arp(skb: *mut __sk_buff, pod: u32, by_nic: u32) -> u32 {
    let Some(arp) = load::<28>(skb, ETH_HLEN as u32) else {
        return 0;
    };
    let Some(from) = load::<6>(skb, 6) else {
        return 0;
    };
    // Ethernet, IPv4, addresses of six and four bytes; a request or a reply.
    let is_plain = arp[0] == 0
        && arp[1] == 1
        && arp[2] == 8
        && arp[3] == 0
        && arp[4] == 6
        && arp[5] == 4
        && arp[6] == 0
        && (arp[7] == 1 || arp[7] == 2);
    if !is_plain {
        return 0;
    }
    let mut sender = [arp[14], arp[15], arp[16], arp[17]];
    if u32::from_ne_bytes(sender) == 0 {
        sender = [arp[24], arp[25], arp[26], arp[27]];
    }
    let Some(owner) = maps::pod(&mapped(sender)) else {
        return 0;
    };
    if u32::from(owner.pod) != pod {
        return 0;
    }
    let from = mac_words(from);
    let said = mac_words([arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]]);
    let is_its_mac = by_nic == 0 || owner.mac == [0; 2] || owner.mac == from;
    u32::from(from == said && is_its_mac)
}
