//! Corrects the sender of ARP requests for neighbours.
//!
//! A packet that is redirected to the NIC with its source address, or that a pod sends by a NIC on which the node has
//! no address, may wait for a neighbour there. The kernel's ARP request has the packet's source or another NIC's
//! address as its sender (`arp_solicit`, net/ipv4/arp.c), and a cloud drops it. So the sender becomes the NIC's own
//! address, or that of a pod there. A reply to a pod's address would be delivered to the pod's interface
//! (`ipvlan_get_L3_hdr`, drivers/net/ipvlan/ipvlan_core.c), so its target is set to zero. The kernel does not need it,
//! as it finds the waiting entry by the reply's sender (`arp_process`).
//!
//! The setting `arp_announce` would do the first, but for all other traffic there, too.

use aya_ebpf::programs::TcContext;
use ebbtide_layout::{NodeAddress, OWNER_IS_POD, mapped};

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
    if nic.asks_as == NOBODY {
        return;
    }
    if let Some((_, target)) = addresses(ctx, REPLY)
        && target == nic.asks_as
        && owner(target).is_some_and(|owner| owner.flags & OWNER_IS_POD != 0)
    {
        let nobody = NOBODY;
        let _unchanged = ctx.store(ETH_HLEN + 24, &nobody, 0);
    }
}
