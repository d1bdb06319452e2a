//! Limits the bandwidth of pods that have a limit. Other pods do not have these programs.
//!
//! A filter's class is the number of the pod whose limit holds ([`crate::guard`] has its number in the same way). All
//! interfaces of a pod share one limit, and each packet is counted once: what `nic_egress` redirects to the veth leaves the
//! interface's hook with that, and is counted at the veth's.
//!
//! Out of the pod packets are paced: each gets the time at which it may leave (earliest departure time), and the queueing
//! discipline `fq` of the interface, behind this hook, keeps it until then. So a socket notices that its packets wait, and
//! TCP slows down without a loss. The time ends with the pod's namespace, and is past by then: nothing on the node waits
//! for it. Into the pod there is no queue in which packets could wait: what is above the limit is dropped.

use core::arch::asm;

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{Array, HashMap},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
    programs::TcContext,
};
use ebbtide_layout::{HORIZON, Limit, Limits, MAX_LIMITED, nanoseconds};

use crate::{DROP, PASS};

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): uses memory for existing pods only.
const NO_PREALLOC: usize = 1;

/// The limits by the pod's number.
#[btf_map]
static LIMITS: HashMap<u32, Limits, { MAX_LIMITED as usize }, NO_PREALLOC> = HashMap::new();

/// Packets of all pods that were dropped: out of the pod, and into it.
#[btf_map]
static LIMITED: Array<u64, 2> = Array::new();

const EGRESS: u32 = 0;
const INGRESS: u32 = 1;

/// Headers of a segment in front of its data, for those that the kernel has merged: Ethernet, IP, and TCP with a
/// timestamp. The exact number depends on options, which would have to be read.
const HEADERS: u32 = 14 + 20 + 32;

/// Returns the limits of the pod whose filter runs.
#[inline(always)]
fn limits(skb: *mut __sk_buff) -> Option<*mut Limits> {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    let pod = unsafe { (*skb).tc_classid };
    LIMITS.get_ptr_mut(&pod)
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper call without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds to a word that other CPUs add to as well. `core` has no such addition for this target, and one that returns the
/// sum needs Linux 5.12.
///
/// # Safety
/// `to` is an aligned word of a map's value.
#[inline(always)]
unsafe fn add(to: *mut u64, more: u64) {
    // SAFETY: the kernel keeps the map's value until the program ends.
    unsafe {
        asm!(
            "lock *(u64 *)({to} + 0) += {more}",
            to = in(reg) to,
            more = in(reg) more,
            options(nostack)
        );
    }
}

/// Takes `cost` nanoseconds of a limit. Returns when the packet may leave, or `None` if that is later than `latest`.
///
/// # Safety
/// `limit` is a valid field of a map's value.
#[inline(always)]
unsafe fn take(limit: *mut Limit, cost: u64, now: u64, latest: u64) -> Option<u64> {
    // SAFETY: as the caller says. Others write it at the same time; such a word is read and written at once.
    let (next, burst) = unsafe { ((&raw const (*limit).next).read_volatile(), (*limit).burst) };
    let earliest = now.saturating_sub(burst);
    if next > latest {
        return None;
    }
    if next < earliest {
        // What was not used longer ago than the burst has gone by.
        // SAFETY: as above.
        unsafe { (&raw mut (*limit).next).write_volatile(earliest + cost) };
        return Some(earliest);
    }
    // SAFETY: as above.
    unsafe { add(&raw mut (*limit).next, cost) };
    Some(next)
}

/// Counts a packet and returns the verdict.
///
/// # Safety
/// `limit` is a valid field of a map's value.
#[inline(always)]
unsafe fn verdict(limit: *mut Limit, direction: u32, passes: bool) -> i32 {
    if passes {
        // SAFETY: as the caller says.
        unsafe { add(&raw mut (*limit).passed, 1) };
        return PASS;
    }
    // SAFETY: as the caller says.
    unsafe { add(&raw mut (*limit).dropped, 1) };
    if let Some(all) = LIMITED.get_ptr_mut(direction) {
        // SAFETY: an element of an array.
        unsafe { add(all, 1) };
    }
    DROP
}

/// Handles the egress of an interface: writes when the packet may leave, unless it already has a later time (TCP's own
/// pacing, `SO_TXTIME`). Such a time of its own does not hold back others.
#[inline(always)]
pub(crate) fn pace(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(limits) = limits(skb) else {
        return PASS;
    };
    // SAFETY: the map's value is valid until the program ends, and the context, too.
    unsafe {
        let limit = &raw mut (*limits).egress;
        let rate = (*limit).rate;
        if rate == 0 {
            return PASS;
        }
        let now = now();
        // With the headers of all segments (`qdisc_pkt_len_init`, net/core/dev.c).
        let cost = nanoseconds((*skb).wire_len, rate);
        let Some(departs) = take(limit, cost, now, now + HORIZON) else {
            return verdict(limit, EGRESS, false);
        };
        if departs > now && (*skb).tstamp < departs {
            (*skb).tstamp = departs;
        }
        verdict(limit, EGRESS, true)
    }
}

/// Handles the ingress of an interface: drops what comes while the limit is used up. The packet that uses it up passes
/// whole, however many segments were merged into it.
#[inline(always)]
pub(crate) fn police(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(limits) = limits(skb) else {
        return PASS;
    };
    // SAFETY: as in `pace`.
    unsafe {
        let limit = &raw mut (*limits).ingress;
        let rate = (*limit).rate;
        if rate == 0 {
            return PASS;
        }
        let now = now();
        let more = (*skb).gso_segs.saturating_sub(1) & 0xffff;
        let cost = nanoseconds((*skb).len + more * HEADERS, rate);
        let passes = take(limit, cost, now, now).is_some();
        verdict(limit, INGRESS, passes)
    }
}
