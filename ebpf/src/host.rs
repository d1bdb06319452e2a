//! The host's part: a reply leaves by the NIC its request came in on, and every packet by the NIC
//! that has its source address.

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::{bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use ebbtide_layout::{FlowKey, HOST_MAC, HostFlow, HostHook, OWNER_HAS_GATEWAY, OWNER_IS_POD};

use crate::{
    DROP, PASS, asking, clock,
    flow::{self, Ours, known},
    guard::{self, At},
    host_maps as maps,
    packet::{self, FIRST, Ip, LAST},
    responder, routed, strict, translated,
};

/// `BPF_F_INGRESS` (include/uapi/linux/bpf.h).
const INGRESS: u64 = 1;

/// `PACKET_HOST` (include/uapi/linux/if_packet.h): for this machine.
const FOR_US: u32 = 0;

/// What of the packet's mark is ours.
#[inline(always)]
fn our_mark(ctx: &TcContext) -> u32 {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).mark & maps::nic_marks() }
}

/// Sets our bits of the mark to `bits`, and leaves others' alone.
#[inline(always)]
fn set_mark(ctx: &TcContext, bits: u32) {
    // SAFETY: as in `our_mark`.
    unsafe {
        let skb = ctx.skb.skb;
        (*skb).mark = ((*skb).mark & !maps::nic_marks()) | bits;
    }
}

/// The key of [`NIC_COUNTERS`](crate::host_maps) for a NIC that is known by its mark.
#[inline(always)]
pub(crate) fn by_mark(bits: u32) -> u32 {
    (1 << 31) | (bits & !maps::reply())
}

/// Remembers `flow` of `key`, unless it is known already; whether it was news. Look before
/// writing: an insert costs four times a look-up.
#[inline(always)]
fn learn(flows: &maps::HostFlows, key: &FlowKey, flow: HostFlow) -> bool {
    if known(flows, key).is_some_and(|known| known.agrees(&flow)) {
        return false;
    }
    let flow = HostFlow {
        since: clock::seconds(),
        packets: 1,
        ..flow
    };
    flows.insert(key, flow, 0).is_ok()
}

/// Notes the way of a packet's first fragment for the later ones. From the wire they may come in any
/// order, so those of a pod alone end with the last; the others make room for newer flows. A later
/// fragment that comes before its first goes the way of what nothing is known of.
#[inline(always)]
fn note_fragment(
    flows: &maps::HostFlows,
    ip: &Ip,
    from_pod: bool,
    key: &mut FlowKey,
    flow: Option<HostFlow>,
) {
    flow::to_fragments(ip, key);
    let first = ip.payload.fragment & FIRST != 0;
    let ended = from_pod && ip.payload.fragment & LAST != 0;
    match flow {
        Some(flow) if first => {
            let _full = flows.insert(&*key, flow, 0);
        }
        Some(_) if ended => {
            let _not_there = flows.remove(&*key);
        }
        // An older packet's with the same identification.
        None if first => {
            let _not_there = flows.remove(&*key);
        }
        _ => {}
    }
}

/// A NIC's ingress, before ipvlan takes what is a pod's (`sch_handle_ingress` comes before the
/// rx_handler in `__netif_receive_skb_core`, net/core/dev.c).
///
/// What is for the node itself passes as it came: a mark would survive decapsulation, and rules of ours
/// would take what came out of a tunnel.
#[inline(always)]
pub(crate) fn from_nic(ctx: &TcContext) -> i32 {
    // SAFETY: as in `our_mark`.
    let (ifindex, kind) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).pkt_type) };
    if kind != FOR_US {
        return responder::answer(ctx);
    }
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        asking::answer_the_host(ctx, ifindex);
        return responder::answer(ctx);
    };
    let Some(owner) = maps::owner(&ip.destination) else {
        return PASS;
    };
    let Some(counters) = maps::counters(ifindex) else {
        return PASS;
    };
    let counters = &mut counters.hooks[HostHook::NicIngress as usize];
    counters.seen += 1;
    counters.passed += 1;
    if owner.flags & OWNER_IS_POD == 0 {
        if let Some(nic) = maps::nic(ifindex)
            && strict::wants_mark(ctx, ip, nic.flags)
        {
            set_mark(ctx, nic.mark);
            counters.marked += 1;
        }
        return PASS;
    }
    let mut forwarded = 0;
    let mut key = flow::between(ip, Ours::Destination);
    if let Some(flows) = maps::flows(&ip.destination)
        && flow::followed(ctx, ip, Ours::Destination, false, &mut key)
    {
        let flow = known(flows, &key).copied();
        if ip.payload.fragment != 0 {
            note_fragment(flows, ip, false, &mut key, flow);
        }
        if let Some(flow) = flow {
            forwarded = flow.forwarded;
        }
    }
    let redirect_device = maps::redirect_device();
    if redirect_device != 0
        && forwarded != 0
        // `eth_type_trans` on the way into the link makes PACKET_OTHERHOST of a frame that is
        // not for the link's own address, and the host would drop it.
        && ctx.store(0, &HOST_MAC, 0).is_ok()
    {
        counters.passed -= 1;
        counters.redirected += 1;
        // For reverse path filtering on that link, where the host undoes its translation and hands the packet to
        // the pod; a redirect within one namespace keeps the mark.
        set_mark(ctx, maps::nic_marks());
        // SAFETY: a helper call with plain integers.
        return unsafe { bpf_redirect(redirect_device, INGRESS) } as i32;
    }
    // A router that knows the pod asks it alone whether it is still there.
    if ip.payload.protocol == packet::ICMPV6 {
        return responder::answer(ctx);
    }
    PASS
}

/// The host's end of a veth, towards the pod: a request that came in by a NIC is remembered, for
/// its replies.
///
/// By which link it came, the kernel knows (`skb->skb_iif`): what came out of a tunnel, by another
/// plugin's bridge or from a socket of the host did not come in by the NIC, whatever carried it.
#[inline(always)]
pub(crate) fn to_pod(ctx: &TcContext) -> i32 {
    // SAFETY: as in `our_mark`.
    let bits = maps::nic_mark(unsafe { (*ctx.skb.skb).ingress_ifindex });
    if bits == 0 {
        return PASS;
    }
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        return PASS;
    };
    let Some(flows) = maps::flows(&ip.destination) else {
        return PASS;
    };
    let Some(counters) = maps::counters(by_mark(bits)) else {
        return PASS;
    };
    let counters = &mut counters.hooks[HostHook::VethEgress as usize];
    counters.seen += 1;
    counters.passed += 1;
    let flow = HostFlow {
        mark: bits | maps::reply(),
        ..HostFlow::default()
    };
    let mut key = flow::between(ip, Ours::Destination);
    if flow::of(ctx, ip, Ours::Destination, false, &mut key) && learn(flows, &key, flow) {
        counters.learned += 1;
    }
    PASS
}

/// The host's end of a veth, from the pod: a reply gets the mark of the NIC its request came in
/// on, and all else the mark of what the host forwards for a pod, which no rule looks at. Whatever mark the pod
/// gave it is gone: `skb_scrub_packet` clears it between namespaces. What has another's address goes nowhere.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        return guard::unread(ctx, At::Veth);
    };
    if guard::is_spoofed(ctx, ip, || guard::owner(ip), At::Veth) {
        return DROP;
    }
    // What the pod's interface would have sent, and the host's netfilter must not see. Any pod can say so
    // of its packets: it is the way that its interface has, too.
    if packet::is_host_bypass(ctx)
        && let Some(owner) = maps::owner(&ip.source)
        && owner.flags & OWNER_IS_POD != 0
    {
        // SAFETY: a helper call with a null pointer that it is documented to take for "by the route",
        // which is looked up with the NIC as `oif`, as ipvlan does.
        return unsafe { bpf_redirect_neigh(owner.ifindex, core::ptr::null_mut(), 0, 0) as i32 };
    }
    let Some(flows) = maps::flows(&ip.source) else {
        return PASS;
    };
    let mut bits = maps::reply();
    let mut key = flow::between(ip, Ours::Source);
    if flow::followed(ctx, ip, Ours::Source, false, &mut key) {
        let flow = known(flows, &key).copied();
        if ip.payload.fragment != 0 {
            note_fragment(flows, ip, true, &mut key, flow);
        }
        if let Some(flow) = flow
            && flow.mark != 0
        {
            bits = flow.mark;
            if let Some(counters) = maps::counters(by_mark(bits)) {
                let counters = &mut counters.hooks[HostHook::VethIngress as usize];
                counters.seen += 1;
                counters.marked += 1;
                counters.passed += 1;
            }
        }
    }
    set_mark(ctx, bits);
    PASS
}

/// A NIC's egress: the last moment at which the host can say by which NIC a packet leaves. A cloud
/// drops it by any other than the one that has its source address.
#[inline(always)]
pub(crate) fn to_nic(ctx: &TcContext) -> i32 {
    // SAFETY: as in `our_mark`.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        asking::ask_in_its_name(ctx, ifindex);
        return PASS;
    };
    let Some(owner) = maps::owner(&ip.source) else {
        return PASS;
    };
    let Some(all) = maps::counters(ifindex) else {
        return PASS;
    };
    let is_pod = owner.flags & OWNER_IS_POD != 0;
    let news = is_pod && remember_way_out(ctx, ip);
    let counters = &mut all.hooks[HostHook::NicEgress as usize];
    counters.seen += 1;
    counters.learned += u64::from(news);
    if owner.ifindex == ifindex || ip.is_multicast() {
        counters.passed += 1;
        return PASS;
    }
    // What the node itself sends, and forwards for others, goes as its own routes say. The exceptions are answers to
    // what came in by another NIC for a Service, from a far backend or a pod's own interface, and what no route but the
    // main table's default one leads out: nobody has said that it is to leave here.
    // SAFETY: as in `our_mark`.
    let from = unsafe { (*ctx.skb.skb).ingress_ifindex };
    if !is_pod
        && maps::nic(from).is_none()
        && !translated::is_a_pods(ctx)
        && routed::is_meant(ctx, ip, ifindex)
    {
        counters.passed += 1;
        return PASS;
    }
    // Without a gateway the kernel would take the far destination to be on the link, and ask for
    // it there: worse than the wrong NIC in a network that is not strict.
    if owner.flags & OWNER_HAS_GATEWAY == 0 {
        all.wrong_nic_passed += 1;
        counters.passed += 1;
        return PASS;
    }
    counters.redirected += 1;
    // What the host forwards for a pod is meant to be sent on from here: the main table knows the
    // destination (it may be another plugin's, and leave by no NIC at all), and only a source can
    // tell by which NIC. Everything else should have been routed.
    if !is_pod {
        all.wrong_nic += 1;
        // The mark of the owner's replies leads the look-up to its own table: no rule takes the node's own
        // addresses by `oif`.
        set_mark(ctx, maps::nic_mark(owner.ifindex) | maps::reply());
    }
    // With `oif` set to the owner the route is looked up in its own table, and the neighbour is
    // that gateway (`__bpf_redirect_neigh_v4`, net/core/filter.c).
    // SAFETY: a helper call with a null pointer that it is documented to take for "by the route".
    unsafe { bpf_redirect_neigh(owner.ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Remembers what needs its answer in the host, or forgets it; whether anything changed.
///
/// What came out of the pod's veth (the mark says so), and now leaves the node with the pod's own address, is a
/// ClusterIP without masquerade. What the pod sends over ipvlan, or by the host-stack bypass, has no mark, as it is
/// scrubbed between namespaces (`skb_scrub_packet`): with the same ports it ends the other, unless the host has
/// translated this, too. In l2 it is not scrubbed, but the pods' own marks have none of these bits.
#[inline(always)]
fn remember_way_out(ctx: &TcContext, ip: &Ip) -> bool {
    let bits = our_mark(ctx);
    let Some(flows) = maps::flows(&ip.source) else {
        return false;
    };
    let mut key = flow::between(ip, Ours::Source);
    if !flow::of(ctx, ip, Ours::Source, false, &mut key) {
        return false;
    }
    if bits == maps::reply() || (bits == 0 && translated::is(ctx, ip)) {
        let forwarded = HostFlow {
            forwarded: 1,
            ..HostFlow::default()
        };
        return maps::redirect_device() != 0 && learn(flows, &key, forwarded);
    }
    // SAFETY: only compared.
    if bits == 0 && unsafe { flows.get(&key) }.is_some_and(|flow| flow.forwarded != 0) {
        return flows.remove(&key).is_ok();
    }
    false
}
