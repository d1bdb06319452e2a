//! Answers ARP requests and neighbour solicitations for the pods of this node, on networks that send them. An ipvlan
//! child in l3 mode does not answer the requests that it gets (`IFF_NOARP`). A cloud sends none.
//!
//! The answer is written over the request and sent back by the NIC it came in by.

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::HashMap,
    helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_change_tail},
    macros::btf_map,
    programs::TcContext,
};
use ebbtide_layout::{Address, Answer, MAX_ADDRESSES, mapped};

use crate::{
    PASS,
    packet::{self, ETH_HLEN},
};

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): uses memory for existing entries only.
const NO_PREALLOC: usize = 1;

/// The addresses that requests are answered for.
#[btf_map]
static ANSWERS: HashMap<Address, Answer, { MAX_ADDRESSES as usize }, NO_PREALLOC> = HashMap::new();

/// Ethernet and ARP for IPv4 over Ethernet (RFC 826).
const ARP_LEN: usize = ETH_HLEN + 28;
const ETH_P_ARP: [u8; 2] = [0x08, 0x06];
/// Hardware type Ethernet, protocol IPv4, addresses of six and four bytes, request.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_REPLY: u8 = 2;

/// Ethernet, IPv6, and a neighbour advertisement with the target's link-layer address
/// (RFC 4861, 4.4).
const ADVERTISEMENT_LEN: usize = ETH_HLEN + 40 + 32;
/// As much of a solicitation as matters: options may follow (RFC 4861, 4.3).
const SOLICITATION_LEN: usize = ETH_HLEN + 40 + 24;
const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// "All nodes", the destination of answers to a host without an address yet (RFC 4861, 7.2.4).
const ALL_NODES: Address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Answers a frame that came in by a NIC, if it is an ARP request or a neighbour solicitation for a pod of this node.
/// Other frames pass.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext) -> i32 {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        return PASS;
    }
    match bytes::<2>(ctx, ETH_HLEN - 2) {
        Some(ETH_P_ARP) => arp(ctx.skb.skb),
        Some(ETH_P_IPV6) => solicitation(ctx.skb.skb),
        _ => PASS,
    }
}

/// Answers an ARP request. Not inlined, since both together need more than the 512 bytes of stack that there are.
#[inline(never)]
fn arp(skb: *mut __sk_buff) -> i32 {
    answer_arp(&TcContext::new(skb)).unwrap_or(PASS)
}

/// Answers a neighbour solicitation; see [`arp`].
#[inline(never)]
fn solicitation(skb: *mut __sk_buff) -> i32 {
    answer_solicitation(&TcContext::new(skb)).unwrap_or(PASS)
}

/// Returns the link-layer address for `target`, if requests for it are answered where `ctx` came in.
#[inline(always)]
fn known(ctx: &TcContext, target: &Address) -> Option<[u8; 6]> {
    let answer = ANSWERS.get_ptr_mut(target)?;
    // SAFETY: with BPF_F_NO_PREALLOC what is removed while we look is freed after a grace period;
    // the fields are only read, but for the count, which may miss one of two at once.
    unsafe {
        if (*answer).ifindex != (*ctx.skb.skb).ifindex {
            return None;
        }
        (*answer).count += 1;
        Some((*answer).mac)
    }
}

/// Reads `N` bytes at `offset`, if the packet's linear part holds them.
#[inline(always)]
fn bytes<const N: usize>(ctx: &TcContext, offset: usize) -> Option<[u8; N]> {
    packet::read(ctx, offset)
}

/// Copies a part of one array into another. For slices the compiler would call `memcpy`, and the bounds checks of an
/// index that it cannot determine would call `panic`.
macro_rules! put {
    ($to:ident [$at:expr], $from:expr) => {{
        let from = $from;
        let mut i = 0;
        while i < from.len() {
            $to[$at + i] = from[i];
            i += 1;
        }
    }};
}

#[inline(always)]
fn answer_arp(ctx: &TcContext) -> Option<i32> {
    let question: [u8; ARP_LEN] = bytes(ctx, 0)?;
    let mut i = 0;
    while i < ARP_REQUEST.len() {
        if question[ETH_HLEN + i] != ARP_REQUEST[i] {
            return None;
        }
        i += 1;
    }
    let sender: [u8; 4] = bytes(ctx, ETH_HLEN + 14)?;
    let target: [u8; 4] = bytes(ctx, ETH_HLEN + 24)?;
    // An announcement that the address is in use is no request (RFC 5227, 3).
    if sender == target {
        return None;
    }
    let asker: [u8; 6] = bytes(ctx, ETH_HLEN + 8)?;
    let mac = known(ctx, &mapped(target))?;
    let mut answer = question;
    put!(answer[0], asker);
    put!(answer[6], mac);
    answer[ETH_HLEN + 7] = ARP_REPLY;
    put!(answer[ETH_HLEN + 8], mac);
    put!(answer[ETH_HLEN + 14], target);
    put!(answer[ETH_HLEN + 18], asker);
    put!(answer[ETH_HLEN + 24], sender);
    ctx.store(0, &answer, 0).ok()?;
    Some(send_back(ctx))
}

#[inline(always)]
fn answer_solicitation(ctx: &TcContext) -> Option<i32> {
    let next: [u8; 2] = bytes(ctx, ETH_HLEN + 6)?;
    let icmp: [u8; 2] = bytes(ctx, ETH_HLEN + 40)?;
    // A hop limit of 255 proves that no router forwarded it (RFC 4861, 7.1.1).
    if next != [ICMPV6, 255] || icmp != [SOLICITATION, 0] {
        return None;
    }
    // The packet must hold the whole solicitation.
    let _whole: [u8; 1] = bytes(ctx, SOLICITATION_LEN - 1)?;
    let target: Address = bytes(ctx, ETH_HLEN + 48)?;
    let mac = known(ctx, &target)?;
    let asker: Address = bytes(ctx, ETH_HLEN + 8)?;
    // The frame's sender, not the option in the packet: only the former certainly receives the answer.
    let asker_mac: [u8; 6] = bytes(ctx, 6)?;
    let (to, to_mac, flags) = if asker == [0; 16] {
        (ALL_NODES, ALL_NODES_MAC, OVERRIDE)
    } else {
        (asker, asker_mac, SOLICITED | OVERRIDE)
    };

    // The pseudo header (RFC 8200, 8.1) and the message, for the checksum.
    let mut summed = [0_u8; 72];
    put!(summed[0], target);
    put!(summed[16], to);
    summed[35] = 32;
    summed[39] = ICMPV6;
    summed[40] = ADVERTISEMENT;
    summed[44] = flags;
    put!(summed[48], target);
    // Option "target link-layer address", one unit of eight bytes.
    summed[64] = 2;
    summed[65] = 1;
    put!(summed[66], mac);
    // SAFETY: the pointer is to 72 bytes of this stack frame, a multiple of four.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, summed.as_mut_ptr().cast(), 72, 0) };
    let sum = fold(u32::try_from(sum).ok()?);

    // SAFETY: a helper call with the program's own context and plain integers.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, ADVERTISEMENT_LEN as u32, 0) } != 0 {
        return None;
    }
    let mut ethernet = [0_u8; ETH_HLEN];
    put!(ethernet[0], to_mac);
    put!(ethernet[6], mac);
    ethernet[12] = 0x86;
    ethernet[13] = 0xdd;
    // Version 6, no traffic class, no flow label; 32 bytes of ICMPv6; hop limit 255.
    let ip: [u8; 8] = [0x60, 0, 0, 0, 0, 32, ICMPV6, 255];
    let mut message = [0_u8; 32];
    let mut i = 0;
    while i < 32 {
        message[i] = summed[40 + i];
        i += 1;
    }
    let [low, high] = sum.to_ne_bytes();
    message[2] = low;
    message[3] = high;
    ctx.store(0, &ethernet, 0).ok()?;
    ctx.store(ETH_HLEN, &ip, 0).ok()?;
    ctx.store(ETH_HLEN + 8, &target, 0).ok()?;
    ctx.store(ETH_HLEN + 24, &to, 0).ok()?;
    ctx.store(ETH_HLEN + 40, &message, 0).ok()?;
    Some(send_back(ctx))
}

/// Returns the Internet checksum of a sum of 32 bit words (RFC 1071), in the byte order of the packet.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[inline(always)]
fn send_back(ctx: &TcContext) -> i32 {
    // SAFETY: a helper call with plain integers; the context is valid as long as the program runs.
    unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 }
}
