//! The same programs with tracing: attached in place of the others while `ebbtidectl trace` runs, so that the others
//! pay nothing for it.
//!
//! Each runs the code of the other object. Its decision is reported by visible effects: verdict, mark, and whether the
//! counter of learned flows changed on this CPU.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is passed by value may be copied to the stack, which has 512 bytes"
)]

mod asking;
mod clock;
mod direct;
mod extended;
mod flow;
mod flows;
mod guard;
mod host;
mod host_maps;
mod maps;
mod metadata;
mod neighbours;
mod packet;
mod recent;
mod reply;
mod responder;
mod routed;
mod strict;
mod translated;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::{bpf_ktime_get_boot_ns, bpf_skb_load_bytes},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use ebbtide_layout::{
    ANY, Address, HOST_MAC, Hook, HostHook, TRACE_BYTES, TraceEvent, TraceFilter, Traced, mapped,
};

/// The filter for packets to trace.
#[btf_map]
static TRACE: Array<TraceFilter, 1> = Array::new();

/// The events. If the reader is too slow, what does not fit is lost.
#[btf_map]
static EVENTS: RingBuf<TraceEvent, TRACE_BYTES> = RingBuf::new();

/// The event of the current packet: too large for the stack, which the programs need.
#[btf_map]
static EVENT: PerCpuArray<TraceEvent, 1> = PerCpuArray::new();

/// Runs `$program`, and reports its effect if the filter selects the packet. A macro, so that the program is compiled
/// in place as in the other object, with the same stack; the event is filled in by functions of their own, whose stack
/// is free again meanwhile.
macro_rules! traced {
    ($ctx:ident, $which:expr, $program:path) => {{
        let skb = $ctx.skb.skb;
        let wanted = begin(skb, $which as u8);
        if wanted != 0 {
            count(skb);
        }
        let verdict = $program(&$ctx);
        if wanted != 0 {
            end(skb, verdict);
        }
        verdict
    }};
}

#[classifier]
fn veth_ingress(ctx: TcContext) -> i32 {
    traced!(ctx, Traced::VethIngress, reply::mark_and_learn)
}

#[classifier]
fn nic_egress(ctx: TcContext) -> i32 {
    traced!(ctx, Traced::NicEgress, reply::redirect_reply)
}

#[classifier]
fn nic_ingress(ctx: TcContext) -> i32 {
    traced!(ctx, Traced::NicIngress, reply::forget)
}

#[classifier]
fn host_nic_ingress(ctx: TcContext) -> i32 {
    traced!(ctx, Traced::HostNicIngress, host::from_nic)
}

#[classifier]
fn host_nic_egress(ctx: TcContext) -> i32 {
    traced!(ctx, Traced::HostNicEgress, host::to_nic)
}

#[classifier]
fn host_veth_egress(ctx: TcContext) -> i32 {
    traced!(ctx, Traced::HostVethEgress, host::to_pod)
}

#[classifier]
fn host_veth_ingress(ctx: TcContext) -> i32 {
    traced!(ctx, Traced::HostVethIngress, host::from_pod)
}

/// Records the packet before the program runs. Returns 1 if it is to be traced.
#[inline(never)]
fn begin(skb: *mut __sk_buff, which: u8) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(event) = EVENT.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's slot, which programs at tc use one after the other; no other reference
    // to it is made.
    let event = unsafe { &mut *event };
    event.program = which;
    if !look(&ctx, event) {
        return 0;
    }
    1
}

/// Records how many flows were learned before.
#[inline(never)]
fn count(_skb: *mut __sk_buff) -> i32 {
    let Some(event) = EVENT.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: as in `begin`.
    let event = unsafe { &mut *event };
    event.before = learned(event);
    0
}

/// Reports the program's effect.
#[inline(never)]
fn end(skb: *mut __sk_buff, verdict: i32) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(event) = EVENT.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: as in `begin`.
    let event = unsafe { &mut *event };
    event.learned = if event.program == Traced::HostVethEgress as u8 {
        u8::from(packet::nic(&ctx, HOST_MAC) != 0)
    } else {
        u8::from(learned(event) != event.before)
    };
    event.host_bypass = u8::from(packet::is_host_bypass(&ctx));
    event.verdict = verdict;
    event.mark_after = mark(&ctx);
    // If full, the event is lost: a packet is worth more than its trace.
    let _lost = EVENTS.output(&*event, 0);
    0
}

/// Returns how many flows the program has learned on this CPU.
#[inline(always)]
fn learned(event: &TraceEvent) -> u64 {
    const VETH_INGRESS: u8 = Traced::VethIngress as u8;
    const NIC_EGRESS: u8 = Traced::NicEgress as u8;
    const NIC_INGRESS: u8 = Traced::NicIngress as u8;
    const HOST_NIC_INGRESS: u8 = Traced::HostNicIngress as u8;
    const HOST_NIC_EGRESS: u8 = Traced::HostNicEgress as u8;
    match event.program {
        VETH_INGRESS => in_pod(&event.destination, Hook::VethIngress),
        NIC_EGRESS => in_pod(&event.source, Hook::NicEgress),
        NIC_INGRESS => in_pod(&event.destination, Hook::NicIngress),
        HOST_NIC_INGRESS => in_host(event, &event.destination, HostHook::NicIngress),
        HOST_NIC_EGRESS => in_host(event, &event.source, HostHook::NicEgress),
        _ => 0,
    }
}

#[inline(always)]
fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).mark }
}

/// Records the packet before the program runs. Returns whether it is to be traced.
#[inline(always)]
fn look(ctx: &TcContext, event: &mut TraceEvent) -> bool {
    let Some(filter) = TRACE.get(0) else {
        return false;
    };
    // SAFETY: a helper call without arguments.
    event.time = unsafe { bpf_ktime_get_boot_ns() };
    if event.time > filter.until {
        return false;
    }
    if !read(ctx, event) {
        return false;
    }
    event.length = ctx.len();
    event.mark_before = mark(ctx);
    // SAFETY: as in `mark`.
    event.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    is_wanted(filter, event)
}

/// Reads addresses, protocol and ports directly into the event, since the programs need the stack. IPv6's extension
/// headers are reported as the protocol, and have no ports.
#[inline(always)]
fn read(ctx: &TcContext, event: &mut TraceEvent) -> bool {
    const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
    const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
    // SAFETY: as in `mark`.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    event.source = mapped([0; 4]);
    event.destination = mapped([0; 4]);
    event.source_port = [0; 2];
    event.destination_port = [0; 2];
    let mut first = 0_u8;
    if !load(ctx, 14, &mut first) {
        return false;
    }
    let payload = match protocol {
        ETH_P_IP => {
            let mut fragment = [0_u8; 2];
            let whole = load(ctx, 23, &mut event.protocol)
                && load::<[u8; 4]>(ctx, 26, last(&mut event.source))
                && load::<[u8; 4]>(ctx, 30, last(&mut event.destination))
                && load(ctx, 20, &mut fragment);
            if !whole {
                return false;
            }
            if fragment[0] & 0x1f != 0 || fragment[1] != 0 {
                return true;
            }
            14 + u32::from(first & 0x0f) * 4
        }
        ETH_P_IPV6 => {
            let whole = load(ctx, 20, &mut event.protocol)
                && load(ctx, 22, &mut event.source)
                && load(ctx, 38, &mut event.destination);
            if !whole {
                return false;
            }
            54
        }
        _ => return false,
    };
    match event.protocol {
        // TCP, UDP, SCTP, UDP-Lite
        6 | 17 | 132 | 136 => {
            let _short = load(ctx, payload, &mut event.source_port)
                && load(ctx, payload + 2, &mut event.destination_port);
        }
        // ICMP, ICMPv6: the identifier of an echo
        1 | 58 => {
            let _short = load(ctx, payload + 4, &mut event.source_port);
            event.destination_port = event.source_port;
        }
        _ => {}
    }
    true
}

/// Returns the IPv4 part of an address that holds one.
#[inline(always)]
fn last(address: &mut Address) -> &mut [u8; 4] {
    // SAFETY: the last four of sixteen bytes, borrowed as they were; bytes have no alignment.
    unsafe { &mut *address.as_mut_ptr().add(12).cast::<[u8; 4]>() }
}

/// Copies bytes at `offset` of the packet, wherever the kernel keeps them.
#[inline(always)]
fn load<T: Bytes>(ctx: &TcContext, offset: u32, to: &mut T) -> bool {
    let to: *mut T = to;
    // SAFETY: the helper writes as many bytes as `T` has, all of them or zeros; any are valid.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to.cast(), size_of::<T>() as u32) == 0 }
}

/// Types for which any bytes are valid.
trait Bytes: Copy {}
impl Bytes for u8 {}
impl<const N: usize> Bytes for [u8; N] {}

#[inline(always)]
fn is_wanted(filter: &TraceFilter, event: &TraceEvent) -> bool {
    if filter.protocol != 0 && filter.protocol != event.protocol {
        return false;
    }
    let port = |port: [u8; 2]| u16::from_ne_bytes(port);
    let wanted = port(filter.port);
    if wanted != 0 && wanted != port(event.source_port) && wanted != port(event.destination_port) {
        return false;
    }
    if !same(&filter.peer, &ANY) {
        return same(&filter.peer, &event.source) || same(&filter.peer, &event.destination);
    }
    // The other hooks see only this pod's packets.
    if event.program != Traced::HostNicIngress as u8 && event.program != Traced::HostNicEgress as u8
    {
        return true;
    }
    let mut i = 0;
    while i < filter.pod.len() {
        let address = &filter.pod[i];
        if !same(address, &ANY)
            && (same(address, &event.source) || same(address, &event.destination))
        {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether two addresses are equal. `==` would be a call, and each call has a stack of its own.
#[inline(always)]
fn same(a: &Address, b: &Address) -> bool {
    let halves = |address: &Address| {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        (
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        )
    };
    halves(a) == halves(b)
}

/// Returns how many flows a pod's hook has learned on this CPU.
#[inline(always)]
fn in_pod(address: &Address, hook: Hook) -> u64 {
    maps::pod(address).map_or(0, |pod| pod.hooks[hook as usize].learned)
}

/// Returns how many flows a hook of the NIC has learned on this CPU.
#[inline(always)]
fn in_host(event: &TraceEvent, whose: &Address, hook: HostHook) -> u64 {
    host_maps::owner(whose)
        .and_then(|owner| host_maps::counters(host_maps::number(event.ifindex, &owner)))
        .map_or(0, |all| all.hooks[hook as usize].learned)
}

/// Verdict: continue with the next filter, if there is one.
pub(crate) const PASS: i32 = TC_ACT_UNSPEC;

/// Verdict: drop the packet.
pub(crate) const DROP: i32 = TC_ACT_SHOT;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The license. The helpers in use are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
