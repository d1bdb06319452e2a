//! In whose name neighbours are asked for (ARP).
//!
//! A packet that is sent on to the NIC that has its source address, or that a pod of a NIC without an address of the
//! node's sends, may wait for a neighbour there. The kernel asks in the name of the packet or of an address of another
//! NIC (`arp_solicit`, net/ipv4/arp.c), and a cloud drops the question. So it is asked in the NIC's own name, or in that
//! of a pod there. An answer to a pod would be given to the pod's interface (`ipvlan_get_L3_hdr`,
//! drivers/net/ipvlan/ipvlan_core.c), so it is made one to nobody: who it is for tells the kernel nothing, as it looks
//! for the entry that waits by the answer's sender (`arp_process`).
//!
//! The setting `arp_announce` would do the first, for all that others send there, too.

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
/// As integers: arrays would be compared with constants in memory, which a program of ours has none of.
const NOBODY: u32 = 0;

/// The addresses of an ARP packet of this kind, in network byte order: whose it is, and whom it is for.
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

/// Whose an address is.
#[inline(always)]
fn owner(address: u32) -> Option<NodeAddress> {
    maps::owner(&mapped(address.to_ne_bytes()))
}

/// What leaves by a NIC: a question in the name of an address that another NIC has, or none.
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
    // A probe (RFC 5227) has no sender; a notification is about its sender.
    if sender == NOBODY || sender == target {
        return;
    }
    if owner(sender).is_some_and(|owner| owner.ifindex != ifindex) {
        let _unchanged = ctx.store(ETH_HLEN + 14, &nic.asks_as, 0);
    }
}

/// What comes in by a NIC: the answer to such a question.
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
