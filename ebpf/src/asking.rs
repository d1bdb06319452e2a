//! Corrects the sender of ARP requests for neighbours.
//!
//! A packet that is redirected to the NIC with its source address, or that a pod sends by a NIC on which the node has
//! no address, may wait for a neighbour there. The kernel's ARP request has the packet's source or another NIC's
//! address as its sender (`arp_solicit`, net/ipv4/arp.c), and a cloud drops it. So the sender becomes the NIC's own
//! address, or that of a pod there.
//!
//! A reply to a pod's address would be delivered to the pod's interface (`ipvlan_get_L3_hdr`,
//! drivers/net/ipvlan/ipvlan_core.c). The host asks in a pod's name if it was told to ([`ask_in_its_name`]), and if it has
//! the pod's address as well, as cloud-init or amazon-ec2-net-utils see to (`arp_solicit`; `ndisc_solicit`, net/ipv6/ndisc.c).
//! Without its answer the gateway's entry stays incomplete, and nothing leaves by the NIC. A pod in l3 resolves no
//! neighbours, so what answers its address is for the host, and is made an answer to nobody: an ARP reply's target is set
//! to zero, and an advertisement goes to all nodes, unsolicited. The kernel does not need either, as it finds the waiting
//! entry by the answer's sender (`arp_process`, `ndisc_recv_na`).
//!
//! The setting `arp_announce` would do the first, but for all other traffic there, too, and for IPv4 alone.

use aya_ebpf::{helpers::bpf_csum_diff, programs::TcContext};
use ebbtide_layout::{Address, NodeAddress, OWNER_IN_L3, OWNER_IS_POD, mapped};

use crate::{
    host_maps as maps,
    packet::{self, ETH_HLEN},
};

/// EtherType ARP; hardware type Ethernet, protocol IPv4, addresses of six and four bytes (RFC 826).
const START: [u8; 8] = [0x08, 0x06, 0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
/// As integers: arrays would be compared with constants in memory, and the programs have none.
const NOBODY: u32 = 0;

/// Returns sender and target address of an ARP packet of this kind, in network byte order.
#[inline(always)]
fn addresses(ctx: &TcContext, operation: [u8; 2]) -> Option<(u32, u32)> {
    if packet::is_in_vlan(ctx)
        || packet::read(ctx, ETH_HLEN - 2) != Some(START)
        || packet::read(ctx, ETH_HLEN + 6) != Some(operation)
    {
        return None;
    }
    // By bytes: neither is at a multiple of four.
    let word = |at| packet::read::<[u8; 4]>(ctx, at).map(u32::from_ne_bytes);
    Some((word(ETH_HLEN + 14)?, word(ETH_HLEN + 24)?))
}

/// Returns the owner of an address.
#[inline(always)]
fn owner(address: u32) -> Option<NodeAddress> {
    maps::owner(&mapped(address.to_ne_bytes()))
}

/// Corrects an ARP request that leaves by a NIC, if its sender is an address of another NIC.
#[inline(always)]
pub(crate) fn ask_in_its_name(ctx: &TcContext, ifindex: u32) {
    let Some(nic) = maps::nic(ifindex) else {
        return;
    };
    if nic.asks_as == NOBODY {
        return;
    }
    let Some((sender, target)) = addresses(ctx, REQUEST) else {
        return;
    };
    // A probe (RFC 5227) has no sender; an announcement is about its sender.
    if sender == NOBODY || sender == target {
        return;
    }
    if owner(sender).is_some_and(|owner| owner.ifindex != ifindex) {
        let _unchanged = ctx.store(ETH_HLEN + 14, &nic.asks_as, 0);
    }
}

/// Directs a reply that comes in by a NIC to the host, if its request was sent with a pod's address.
#[inline(always)]
pub(crate) fn answer_the_host(ctx: &TcContext, ifindex: u32) {
    let Some(nic) = maps::nic(ifindex) else {
        return;
    };
    if let Some((_, target)) = addresses(ctx, REPLY)
        && let Some(owner) = owner(target)
        && (solicits_not(&owner, ifindex)
            || target == nic.asks_as && owner.flags & OWNER_IS_POD != 0)
    {
        let nobody = NOBODY;
        let _unchanged = ctx.store(ETH_HLEN + 24, &nobody, 0);
    }
}

/// Whether an address is of a pod that resolves no neighbours on this NIC.
#[inline(always)]
fn solicits_not(owner: &NodeAddress, ifindex: u32) -> bool {
    const BOTH: u32 = OWNER_IS_POD | OWNER_IN_L3;
    owner.ifindex == ifindex && owner.flags & BOTH == BOTH
}

/// Neighbour advertisement (RFC 4861, 4.4).
const ADVERTISEMENT: u8 = 136;
/// Its flags, after the checksum: it answers a solicitation.
const SOLICITED: u8 = 0x40;
/// The first and the last word of the address of all nodes; the others are zero. As integers: see [`NOBODY`].
const ALL_NODES: [u32; 2] = [u32::from_be(0xff02_0000), u32::from_be(1)];

/// Directs a neighbour advertisement to a pod that came in by a NIC to the host, as [`answer_the_host`] does a reply.
///
/// It becomes one to all nodes. Those must not be solicited (`ndisc_recv_na`), so that flag goes.
#[inline(always)]
pub(crate) fn advertise_to_the_host(ctx: &TcContext, owner: &NodeAddress, ifindex: u32) {
    if !solicits_not(owner, ifindex) {
        return;
    }
    let _unchanged = to_all_nodes(ctx);
}

/// Without extension headers: a neighbour's advertisement has none (RFC 6980, for its fragments).
#[inline(always)]
fn to_all_nodes(ctx: &TcContext) -> Option<()> {
    const AT_NEXT: usize = ETH_HLEN + 6;
    const AT_TO: usize = ETH_HLEN + 24;
    const AT_ICMP: usize = ETH_HLEN + 40;
    /// The checksum covers the pseudo header (RFC 8200, 8.1).
    const PSEUDO_HEADER: u64 = 1 << 4;
    let next: [u8; 2] = packet::read(ctx, AT_NEXT)?;
    let kind: [u8; 2] = packet::read(ctx, AT_ICMP)?;
    // A hop limit of 255 proves that no router forwarded it (RFC 4861, 7.1.2).
    if next[0] != packet::ICMPV6 || next[1] != 255 || kind[0] != ADVERTISEMENT || kind[1] != 0 {
        return None;
    }
    let mut to: Address = packet::read(ctx, AT_TO)?;
    let mut all = [ALL_NODES[0], 0, 0, ALL_NODES[1]];
    // SAFETY: the pointers are to sixteen bytes each of this stack frame.
    let sum = unsafe { bpf_csum_diff(to.as_mut_ptr().cast(), 16, all.as_mut_ptr(), 16, 0) };
    let sum = u64::try_from(sum).ok()?;
    let flags: [u8; 2] = packet::read(ctx, AT_ICMP + 4)?;
    let unsolicited = [flags[0] & !SOLICITED, flags[1]];
    let word = |bytes: [u8; 2]| u64::from(u16::from_ne_bytes(bytes));
    ctx.store(AT_TO, &all, 0).ok()?;
    ctx.l4_csum_replace(AT_ICMP + 2, 0, sum, PSEUDO_HEADER)
        .ok()?;
    ctx.store(AT_ICMP + 4, &unsolicited, 0).ok()?;
    ctx.l4_csum_replace(AT_ICMP + 2, word(flags), word(unsolicited), 2)
        .ok()?;
    Some(())
}
