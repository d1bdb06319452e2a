//! Enforces source addresses in the test network, like a cloud on the far side of a virtual NIC.
//!
//! Attached at the ingress of every router port of the test VPC. A frame is dropped and counted if its source MAC is
//! not the NIC's, or its source address is not on the NIC's list; the last offender's addresses are kept for the
//! message. Not part of the product.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    macros::{classifier, map},
    maps::{HashMap, LpmTrie, lpm_trie::Key},
    programs::TcContext,
};
use ebbtide_layout::{Address, mapped};

/// A port, and an address that its NIC may send from, or the first of a block of them. IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Allowed {
    ifindex: u32,
    address: Address,
}

/// The reason why a frame was dropped. User space uses the same numbers.
#[repr(u32)]
#[derive(Clone, Copy)]
enum Reason {
    /// The source MAC is not the NIC's.
    Mac = 0,
    /// The source address (in ARP the sender's, in a neighbour advertisement the target's) is
    /// not on the NIC's list.
    Source = 1,
    /// Neither ARP, IPv4 nor IPv6.
    Protocol = 2,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ViolationKey {
    ifindex: u32,
    reason: u32,
}

#[repr(C)]
struct Violation {
    count: u64,
    source: Address,
    destination: Address,
}

/// The allowed blocks of addresses per port: a cloud assigns single addresses, and prefixes that no list could hold.
#[map]
static ALLOWED: LpmTrie<Allowed, u32> = LpmTrie::with_max_entries(4096, 0);

/// The NIC's MAC per port, followed by two zero bytes.
#[map]
static MACS: HashMap<u32, [u8; 8]> = HashMap::with_max_entries(64, 0);

/// The violations. User space inserts a zero for every port and reason, so that counting never has to insert.
#[map]
static VIOLATIONS: HashMap<ViolationKey, Violation> = HashMap::with_max_entries(256, 0);

/// The bits of an [`Allowed`].
const ALLOWED_BITS: u32 = 8 * size_of::<Allowed>() as u32;
const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const HOP_BY_HOP: u8 = 0;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const UNSPECIFIED: Address = [0; 16];

#[repr(C)]
struct Arp {
    fixed: [u8; 8],
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
}

/// What a frame claims, and the violation in it.
struct Claim {
    source: Address,
    destination: Address,
    reason: Option<Reason>,
}

/// Attached to the ingress of a router port.
#[classifier]
fn strict_vpc(ctx: TcContext) -> i32 {
    // A frame that cannot be read (shorter than its headers) proves nothing about its sender.
    check(&ctx).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn check(ctx: &TcContext) -> Result<i32, i64> {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let claim = read(ctx, ifindex)?;
    let Some(reason) = claim.reason else {
        return Ok(TC_ACT_OK);
    };
    let key = ViolationKey {
        ifindex,
        reason: reason as u32,
    };
    if let Some(slot) = VIOLATIONS.get_ptr_mut(key) {
        // SAFETY: `slot` points to a live map value that the verifier knows the size of. Two CPUs
        // at once may lose a count or mix two addresses, but never leave a zero behind, and zero
        // or not is what the tests ask.
        unsafe {
            (*slot).count += 1;
            (*slot).source = claim.source;
            (*slot).destination = claim.destination;
        }
    }
    Ok(TC_ACT_SHOT)
}

#[inline(always)]
fn read(ctx: &TcContext, ifindex: u32) -> Result<Claim, i64> {
    let mac: [u8; 6] = ctx.load(6)?;
    let ethertype = u16::from_be_bytes(ctx.load(12)?);
    // SAFETY: user space fills this map before it attaches the program and never changes it.
    let mac_is_known = match unsafe { MACS.get(ifindex) } {
        Some(nic) => nic[..6] == mac,
        None => false,
    };
    let mut claim = match ethertype {
        ETHERTYPE_IPV4 => ipv4(ctx, ifindex)?,
        ETHERTYPE_IPV6 => ipv6(ctx, ifindex)?,
        ETHERTYPE_ARP => arp(ctx, ifindex, mac)?,
        _ => Claim {
            source: UNSPECIFIED,
            destination: UNSPECIFIED,
            reason: Some(Reason::Protocol),
        },
    };
    if !mac_is_known {
        claim.reason = Some(Reason::Mac);
    }
    Ok(claim)
}

#[inline(always)]
fn ipv4(ctx: &TcContext, ifindex: u32) -> Result<Claim, i64> {
    let source = mapped(ctx.load(ETHERNET_LEN + 12)?);
    let destination = mapped(ctx.load(ETHERNET_LEN + 16)?);
    Ok(claim(ifindex, source, destination))
}

#[inline(always)]
fn ipv6(ctx: &TcContext, ifindex: u32) -> Result<Claim, i64> {
    let next_header: u8 = ctx.load(ETHERNET_LEN + 6)?;
    let source: Address = ctx.load(ETHERNET_LEN + 8)?;
    let destination: Address = ctx.load(ETHERNET_LEN + 24)?;
    let mut claim = claim(ifindex, source, destination);
    // Duplicate address detection and the first multicast reports (RFC 4862, RFC 3810) have no
    // source yet.
    if source == UNSPECIFIED && (next_header == ICMPV6 || next_header == HOP_BY_HOP) {
        claim.reason = None;
    }
    if next_header == ICMPV6 && ctx.load::<u8>(ETHERNET_LEN + 40)? == NEIGHBOUR_ADVERTISEMENT {
        let target: Address = ctx.load(ETHERNET_LEN + 48)?;
        if !allowed(ifindex, target) {
            claim.source = target;
            claim.reason = Some(Reason::Source);
        }
    }
    Ok(claim)
}

#[inline(always)]
fn arp(ctx: &TcContext, ifindex: u32, mac: [u8; 6]) -> Result<Claim, i64> {
    let arp: Arp = ctx.load(ETHERNET_LEN)?;
    let mut claim = claim(ifindex, mapped(arp.sender), mapped(arp.target));
    if arp.sender == [0; 4] {
        // An ARP probe (RFC 5227) claims nothing.
        claim.reason = None;
    }
    if arp.sender_mac != mac {
        claim.reason = Some(Reason::Mac);
    }
    Ok(claim)
}

#[inline(always)]
fn claim(ifindex: u32, source: Address, destination: Address) -> Claim {
    Claim {
        source,
        destination,
        reason: if allowed(ifindex, source) {
            None
        } else {
            Some(Reason::Source)
        },
    }
}

#[inline(always)]
fn allowed(ifindex: u32, address: Address) -> bool {
    let key = Key::new(ALLOWED_BITS, Allowed { ifindex, address });
    // The value is never read; only its being there counts.
    ALLOWED.get(key).is_some()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The license. The helpers in use are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
