//! Drops what a pod sends with an address that is not its own.
//!
//! A filter's class (`TCA_BPF_CLASSID`, which has no other effect at clsact) is the number of the pod whose packets it
//! sees, or zero without a guard. An address's owner is beside its counters, which are looked up anyway.
//!
//! The guard lists what may pass, not what may not: IPv4 and IPv6 with an address of the pod, ARP and neighbour
//! discovery about one, and what a host sends before it has one. Everything else is dropped: a stack may unwrap a tag,
//! a label, a session's header or any other EtherType later, and the address inside has not been checked.
//!
//! Keeps pods from the clouds' metadata services, too, where the agent says so in the counters of an address. That needs no
//! class: what a pod sends with another's address brings it no answer.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map, programs::TcContext};
use ebbtide_layout::{
    MAX_SPOOFERS, METADATA_ENDS, OWNER_IS_POD, POD_METADATA, POD_NO_METADATA, PodCounters, Spoofed,
    TO_METADATA,
};

use crate::{
    DROP, PASS, extended, host_maps, metadata, neighbours,
    packet::{self, ETH_HLEN, ICMPV6, Ip, LATER, TCP, UDP},
};

/// Counters by the pod's number, and by the number with [`TO_METADATA`].
#[btf_map]
static SPOOFED: LruHashMap<u32, Spoofed, { MAX_SPOOFERS as usize }> = LruHashMap::new();

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Protocols that carry packets or frames, which a node decapsulates for any sender, if it has such a link: IPv4 and
/// IPv6 (`tunl0`, `sit0`, `ip6tnl0`), GRE, EtherIP, L2TP, MPLS.
const IPIP: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;
const ETHERIP: u8 = 97;
const L2TP: u8 = 115;
const MPLS: u8 = 137;

/// The interface at which a pod's packets are seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Nic,
    Veth,
}

/// The owner of an address.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    /// The pod's number; zero if it is no pod's.
    number: u16,
    /// The link-layer source of its frames; see [`PodCounters::mac`].
    mac: [u32; 2],
}

/// Returns the number of the pod whose packets the filter guards; zero without a guard.
#[inline(always)]
fn guarded(ctx: &TcContext) -> u32 {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).tc_classid }
}

/// Whether the pod must not send a packet: most of all one with an address that is not its own. Counts such packets.
/// `owner` returns the owner of the source.
#[inline(always)]
pub(crate) fn is_spoofed(ctx: &TcContext, ip: &Ip, owner: impl FnOnce() -> Owner, at: At) -> bool {
    let pod = guarded(ctx);
    if pod == 0 {
        return false;
    }
    let owner = owner();
    let may_pass = if pod == u32::from(owner.number) {
        may_be_sent(ctx, ip, owner, pod, at)
    } else {
        ip.is_from_nobody() && neighbours::from_nobody(ctx.skb.skb, ip, pod) != 0
    };
    if !may_pass {
        count(pod, at);
    }
    !may_pass
}

/// Whether the pod may send a packet with its own address.
#[inline(always)]
fn may_be_sent(ctx: &TcContext, ip: &Ip, owner: Owner, pod: u32, at: At) -> bool {
    if let At::Nic = at {
        // The kernel uses the socket's protocol (`ipvlan_get_L3_hdr`), which may differ from the frame's (`packet_snd`,
        // net/packet/af_packet.c).
        // SAFETY: as in `guarded`.
        let protocol = unsafe { (*ctx.skb.skb).protocol };
        let other = if ip.is_v4() { ETH_P_IPV6 } else { ETH_P_IP };
        if protocol == other {
            return false;
        }
        if owner.mac != [0; 2] {
            // Switches see the frame as it is on the wire.
            if source(ctx) != Some(owner.mac) {
                return false;
            }
            if ip.payload.protocol == UDP {
                return !neighbours::serves_dhcp(ctx, ip);
            }
        }
    }
    match ip.payload.protocol {
        TCP | UDP => true,
        ICMPV6 => {
            ip.payload.fragment & LATER != 0
                || neighbours::advertises(ctx.skb.skb, ip.payload.at, pod) != 0
        }
        IPIP | IPV6 | GRE | ETHERIP | L2TP | MPLS => !is_to_node(ip),
        // The walk did not find its transport header, which may be of any protocol.
        other => !extended::is_extension(other) || ip.payload.fragment & LATER != 0,
    }
}

/// Returns the frame's sender, in the form of [`PodCounters::mac`].
#[inline(always)]
fn source(ctx: &TcContext) -> Option<[u32; 2]> {
    let [start] = packet::read::<[u32; 1]>(ctx, 6)?;
    let [e, f] = packet::read::<[u8; 2]>(ctx, 10)?;
    Some([start, u32::from_ne_bytes([e, f, 0, 0])])
}

/// Whether a packet is for the node itself, which would decapsulate it, whatever address is inside.
#[inline(always)]
fn is_to_node(ip: &Ip) -> bool {
    host_maps::owner(&ip.destination).is_some_and(|to| to.flags & OWNER_IS_POD == 0)
}

/// Whether a pod must not send a packet because it is for a metadata service. Counts such packets. `pod`: the number and the
/// flags in its counters. `at` [`At::Nic`]: the packet leaves as the pod's interface sends it, past the node's stack.
///
/// Most packets cost a look at the flags, and those of TCP at the destination's last byte.
#[inline(always)]
pub(crate) fn is_kept_from_metadata(
    ctx: &TcContext,
    ip: &Ip,
    (pod, flags): (u16, u16),
    at: At,
) -> bool {
    let kept = match at {
        At::Veth if flags & POD_NO_METADATA == 0 => 0,
        At::Nic | At::Veth => flags & POD_METADATA,
    };
    let protocol = ip.payload.protocol;
    if kept == 0
        || (protocol != TCP && !extended::is_extension(protocol))
        || METADATA_ENDS >> (ip.destination[15] & 63) & 1 == 0
    {
        return false;
    }
    // A later fragment, and what is behind more headers than are read, could be anything.
    let is_whole = u32::from(protocol == TCP && ip.payload.fragment == 0);
    if u32::from(kept) & metadata::asked(ctx.skb.skb, ip.payload.at, is_whole) == 0 {
        return false;
    }
    count(u32::from(pod) | TO_METADATA, at);
    true
}

/// Returns the verdict on what is no IP packet, or could not be read.
#[inline(always)]
pub(crate) fn unread(ctx: &TcContext, at: At) -> i32 {
    const ETH_P_ARP: [u8; 2] = [0x08, 0x06];
    let pod = guarded(ctx);
    if pod == 0 {
        return PASS;
    }
    // SAFETY: as in `guarded`.
    let (tagged, protocol) = unsafe { ((*ctx.skb.skb).vlan_present, (*ctx.skb.skb).protocol) };
    if tagged == 0
        && packet::read(ctx, ETH_HLEN - 2) == Some(ETH_P_ARP)
        && !matches!(protocol, ETH_P_IP | ETH_P_IPV6)
        && neighbours::is_own_arp(ctx.skb.skb, pod, u32::from(at == At::Nic)) != 0
    {
        return PASS;
    }
    count(pod, at);
    DROP
}

#[inline(always)]
fn count(pod: u32, at: At) {
    let (by_nic, by_veth) = match at {
        At::Nic => (1, 0),
        At::Veth => (0, 1),
    };
    match SPOOFED.get_ptr_mut(&pod) {
        // SAFETY: the kernel keeps a looked-up value alive until the program ends. Other CPUs may count at the same
        // time; then one of two is missed.
        Some(spoofed) => unsafe {
            (*spoofed).by_nic += by_nic;
            (*spoofed).by_veth += by_veth;
        },
        None => {
            let _full = SPOOFED.insert(&pod, Spoofed { by_nic, by_veth }, 0);
        }
    }
}

/// Returns the owner of an address, from its pod's entry.
#[inline(always)]
pub(crate) fn owner_is(pod: Option<&PodCounters>) -> Owner {
    pod.map_or(
        Owner {
            number: 0,
            mac: [0; 2],
        },
        |pod| Owner {
            number: pod.pod,
            mac: pod.mac,
        },
    )
}
