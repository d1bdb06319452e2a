//! Parses what few packets have: IPv6 extension headers, and packets quoted by ICMP errors.
//!
//! The functions are not inlined, so that their code exists once and costs other packets one comparison. They read by a
//! helper, which reaches what direct access does not.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use ebbtide_layout::{Address, FlowKey, mapped};

use crate::packet::{self, Endpoints, ICMP, ICMPV6, LATER, Payload};

/// Maximum number of extension headers; nobody sends more, and the verifier requires a bound.
const MOST_HEADERS: usize = 6;

/// Hop-by-hop options, routing, fragment, authentication, destination options (RFC 8200, RFC 4302).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Length of the ICMP header before what an error quotes, and of an IPv6 header.
const ICMP_HLEN: u32 = 8;
const IPV6_HLEN: u32 = 40;

/// Whether an IPv6 header's "next header" is an extension header.
#[inline(always)]
pub(crate) fn is_extension(next: u8) -> bool {
    matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    )
}

/// Reads `N` bytes at `offset`, wherever in the packet they are.
#[inline(always)]
pub(crate) fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: the context is the kernel's own, valid while the program runs; the helper writes
    // `N` bytes, or fails.
    unsafe {
        let result = bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32);
        (result == 0).then(|| bytes.assume_init())
    }
}

/// Reads an IPv6 address at `offset`.
#[inline(always)]
pub(crate) fn load_into(skb: *mut __sk_buff, offset: u32, address: &mut Address) -> bool {
    // SAFETY: as in `load`; there is room for the 16 bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, address.as_mut_ptr().cast(), 16) == 0 }
}

/// Advances `payload` from an IPv6 extension header to the transport header. If that is not found, the protocol remains
/// that of an extension header, which identifies no flow.
#[inline(never)]
pub(crate) fn walk(skb: *mut __sk_buff, payload: &mut Payload) {
    for _ in 0..MOST_HEADERS {
        let Some(header) = load::<8>(skb, payload.at) else {
            return;
        };
        let words = u32::from(header[1]);
        match payload.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => payload.at += (words + 1) * 8,
            AUTHENTICATION => payload.at += (words + 2) * 4,
            FRAGMENT => {
                payload.at += 8;
                payload.identification = [header[4], header[5], header[6], header[7]];
                payload.fragment =
                    packet::fragment([header[2], header[3] & 0xf8], header[3] & 1 != 0);
            }
            _ => return,
        }
        payload.protocol = header[0];
        // A later fragment's fragment header is followed by data.
        if payload.fragment & LATER != 0 || !is_extension(payload.protocol) {
            return;
        }
    }
}

/// Changes `key` to that of the flow quoted by the ICMP error whose header is at `at`. False if that is not possible.
/// `by_us`: the local side sends the error, so that the remote one sent the quoted packet.
#[inline(never)]
pub(crate) fn quoted(
    skb: *mut __sk_buff,
    at: u32,
    v6: bool,
    by_us: bool,
    key: &mut FlowKey,
) -> bool {
    let start = at + ICMP_HLEN;
    let mut payload = Payload {
        at: start,
        identification: [0; 4],
        protocol: 0,
        fragment: 0,
    };
    let (source, destination) = if by_us {
        (&mut key.remote, &mut key.local)
    } else {
        (&mut key.local, &mut key.remote)
    };
    let Some(h) = load::<12>(skb, start) else {
        return false;
    };
    if v6 {
        let both = load_into(skb, start + 8, source) && load_into(skb, start + 24, destination);
        if h[0] >> 4 != 6 || !both {
            return false;
        }
        payload.at += IPV6_HLEN;
        payload.protocol = h[6];
        if is_extension(h[6]) {
            walk(skb, &mut payload);
        }
    } else {
        let words = u32::from(h[0] & 0x0f);
        if h[0] >> 4 != 4 || words < 5 {
            return false;
        }
        let Some(from) = load::<4>(skb, start + 12) else {
            return false;
        };
        let Some(to) = load::<4>(skb, start + 16) else {
            return false;
        };
        *source = mapped(from);
        *destination = mapped(to);
        payload.at += words * 4;
        payload.protocol = h[9];
        payload.fragment = packet::fragment([h[6] & 0x1f, h[7]], h[6] & 0x20 != 0);
    }
    if payload.fragment & LATER != 0 {
        return false;
    }
    key.protocol = payload.protocol;
    if packet::has_ports(payload.protocol) {
        let Some(p) = load::<4>(skb, payload.at) else {
            return false;
        };
        let (source, destination) = if by_us {
            (&mut key.remote_port, &mut key.local_port)
        } else {
            (&mut key.local_port, &mut key.remote_port)
        };
        *source = [p[0], p[1]];
        *destination = [p[2], p[3]];
        return true;
    }
    if payload.protocol != ICMP && payload.protocol != ICMPV6 {
        return true;
    }
    let Some(h) = load::<6>(skb, payload.at) else {
        return false;
    };
    match packet::icmp(payload.protocol, h[0], [h[4], h[5]]) {
        Endpoints::EchoRequest(identifier) | Endpoints::EchoReply(identifier) => {
            key.local_port = identifier;
            true
        }
        _ => false,
    }
}
