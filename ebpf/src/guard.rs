//! A pod sends with its own addresses only.
//!
//! Whose packets a filter sees, its class says (`TCA_BPF_CLASSID`, which means nothing else at clsact): the
//! number of the pod, or zero where nobody is guarded. Whose an address is, is beside its counters, which
//! are looked up anyway.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map, programs::TcContext};
use ebbtide_layout::{MAX_SPOOFERS, Spoofed};

use crate::{
    DROP, PASS, maps,
    packet::{self, Ip},
};

/// By the pod's number.
#[btf_map]
static SPOOFED: LruHashMap<u32, Spoofed, { MAX_SPOOFERS as usize }> = LruHashMap::new();

/// Where a pod's packets are seen.
#[derive(Clone, Copy)]
pub(crate) enum At {
    Nic,
    Veth,
}

/// The pod whose packets the filter sees; zero: nobody is guarded.
#[inline(always)]
fn guarded(ctx: &TcContext) -> u32 {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).tc_classid }
}

/// Whether a packet has an address that is not the pod's; it is counted. `owner` tells whose it is, zero
/// if no pod's.
#[inline(always)]
pub(crate) fn is_spoofed(ctx: &TcContext, ip: &Ip, owner: impl FnOnce() -> u16, at: At) -> bool {
    let pod = guarded(ctx);
    if pod == 0 || pod == u32::from(owner()) || ip.is_from_nobody() {
        return false;
    }
    count(pod, at);
    true
}

/// The verdict on what could not be read. The kernel goes by what the socket says it is, which need not
/// be what the frame says (`packet_snd`, net/packet/af_packet.c): no way around the guard.
#[inline(always)]
pub(crate) fn unread(ctx: &TcContext, at: At) -> i32 {
    const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
    const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
    let pod = guarded(ctx);
    // SAFETY: as in `guarded`.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    if pod == 0 || packet::is_in_vlan(ctx) || !matches!(protocol, ETH_P_IP | ETH_P_IPV6) {
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
        // SAFETY: the kernel keeps a looked-up value alive until the program ends. Others may count at
        // the same time; then one of two is missed.
        Some(spoofed) => unsafe {
            (*spoofed).by_nic += by_nic;
            (*spoofed).by_veth += by_veth;
        },
        None => {
            let _full = SPOOFED.insert(&pod, Spoofed { by_nic, by_veth }, 0);
        }
    }
}

/// Whose an address is; zero if no pod's.
#[inline(always)]
pub(crate) fn owner(ip: &Ip) -> u16 {
    maps::pod(&ip.source).map_or(0, |entry| entry.pod)
}
