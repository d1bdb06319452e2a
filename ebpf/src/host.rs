//! The host's side: a reply leaves by the NIC its request came in on, and every packet by the NIC that has its source
//! address.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use ebbtide_layout::{
    FORWARDED, Flow, FlowKey, HOST_MAC, HostHook, NIC_BYTE, NodeAddress, OWNER_FORWARDS,
    OWNER_HAS_GATEWAY, OWNER_IN_L3, OWNER_IS_FOLLOWED, OWNER_IS_POD, POD_MAC,
};

use crate::{
    DROP, PASS, asking, clock, direct,
    flow::{self, LocalEnd},
    flows::{self, known},
    guard::{self, At},
    host_maps as maps,
    packet::{self, FIRST, Ip},
    responder, routed, strict, translated,
};

/// `BPF_F_INGRESS` (include/uapi/linux/bpf.h).
const INGRESS: u64 = 1;

/// `PACKET_HOST` (include/uapi/linux/if_packet.h): the frame is for this machine.
const FOR_US: u32 = 0;

/// Returns Ebbtide's bits of the packet's mark.
#[inline(always)]
fn our_mark(ctx: &TcContext) -> u32 {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).mark & maps::nic_marks() }
}

/// Sets Ebbtide's bits of the mark to `bits`, and leaves foreign ones unchanged.
#[inline(always)]
fn set_mark(ctx: &TcContext, bits: u32) {
    // SAFETY: as in `our_mark`.
    unsafe {
        let skb = ctx.skb.skb;
        (*skb).mark = ((*skb).mark & !maps::nic_marks()) | bits;
    }
}

/// Whether the host has forwarded the flow for the pod of which this packet is an answer: 1 if so. Not inlined: the
/// verifier would walk all that follows once for each of its ends.
#[inline(never)]
fn is_forwarded(skb: *mut __sk_buff, ip: &Ip, pod: u32) -> u32 {
    let ctx = &TcContext::new(skb);
    let mut key = flow::between(ip, LocalEnd::Destination);
    key.kind = FORWARDED;
    if !flow::followed(ctx, ip, LocalEnd::Destination, false, &mut key) {
        return 0;
    }
    let is_known = u32::from(known(pod, &key).is_some());
    if ip.payload.fragment & FIRST != 0 {
        let _noted = note_fragment(pod, ip, &mut key, is_known);
    }
    is_known
}

/// Notes the path of a first fragment for the later ones. From the wire they may arrive in any order, so the note stays
/// until newer flows evict it. A later fragment that arrives before its first is treated like an unknown flow. Not inlined:
/// fragments are few.
#[inline(never)]
fn note_fragment(pod: u32, ip: &Ip, key: &mut FlowKey, is_known: u32) -> u32 {
    flow::to_fragments(ip, key);
    // An older packet's with the same identification, too.
    let _not_there = flows::forget(pod, &*key);
    if is_known != 0 {
        let _full = flows::remember(pod, &fresh(&*key));
    }
    0
}

/// Returns a flow that begins now.
#[inline(always)]
fn fresh(key: &FlowKey) -> Flow {
    Flow {
        key: *key,
        since: clock::seconds(),
        nic: 0,
        straight: 0,
        pad: [0; 2],
        packets: 1,
    }
}

/// Handles a NIC's ingress, before ipvlan takes pods' packets (`sch_handle_ingress` comes before the rx_handler in
/// `__netif_receive_skb_core`, net/core/dev.c).
///
/// Packets for the node itself pass unmarked, but for strict filtering: a mark would survive decapsulation, and
/// Ebbtide's rules would match what came out of a tunnel.
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
    let Some(counters) = maps::counters(maps::number(ifindex, &owner)) else {
        return PASS;
    };
    let counters = &mut counters.hooks[HostHook::NicIngress as usize];
    counters.seen += 1;
    counters.passed += 1;
    let config = maps::config();
    if owner.flags & OWNER_IS_POD == 0 {
        if config.nic_flags != 0
            && let Some(nic) = maps::nic(ifindex)
            && strict::wants_mark(ctx, ip, &nic)
        {
            set_mark(ctx, nic.mark);
            counters.marked += 1;
        }
        return PASS;
    }
    if owner.flags & OWNER_FORWARDS != 0
        && config.redirect_device != 0
        && is_forwarded(ctx.skb.skb, ip, owner.pod) != 0
        // `eth_type_trans` on the link's ingress sets PACKET_OTHERHOST for a frame with another address than the
        // link's, and the host would drop it.
        && ctx.store(0, &HOST_MAC, 0).is_ok()
    {
        counters.passed -= 1;
        counters.redirected += 1;
        // For reverse path filtering on that link, where the host reverses its translation and delivers the packet to
        // the pod; a redirect within one namespace keeps the mark.
        set_mark(ctx, maps::nic_marks());
        // SAFETY: a helper call with plain integers.
        return unsafe { bpf_redirect(config.redirect_device, INGRESS) } as i32;
    }
    if owner.flags & OWNER_IS_FOLLOWED != 0
        && owner.ifindex == ifindex
        && direct::concerns(ctx, ip, owner.pod)
    {
        let is_l3 = owner.flags & OWNER_IN_L3;
        counters.learned += u64::from(direct::came(
            ctx.skb.skb,
            ip.payload.at,
            ip.payload.protocol.into(),
            owner.pod,
            is_l3,
        ));
    }
    // A router with an entry for the pod solicits it by unicast to verify that it is reachable.
    if ip.payload.protocol == packet::ICMPV6 {
        asking::advertise_to_the_host(ctx, &owner, ifindex);
        return responder::answer(ctx);
    }
    PASS
}

/// Handles packets at the host's end of a veth, towards the pod: writes into the frame by which NIC a request came in, for
/// its replies.
///
/// The kernel records the input link (`skb->skb_iif`): what came out of a tunnel, by another plugin's bridge or from a
/// socket of the host did not come in by the NIC, whatever carried it.
#[inline(always)]
pub(crate) fn to_pod(ctx: &TcContext) -> i32 {
    if maps::config().several_nics == 0 {
        return PASS;
    }
    // SAFETY: as in `our_mark`.
    let Some(nic) = maps::nic(unsafe { (*ctx.skb.skb).ingress_ifindex }) else {
        return PASS;
    };
    let number = nic.number as u8;
    if number == 0 || ctx.store(6 + NIC_BYTE, &number, 0).is_err() {
        return PASS;
    }
    if let Some(counters) = maps::counters(nic.number) {
        let counters = &mut counters.hooks[HostHook::VethEgress as usize];
        counters.seen += 1;
        counters.marked += 1;
        counters.passed += 1;
    }
    PASS
}

/// Handles packets at the host's end of a veth, from the pod: a reply gets the mark of the NIC its request came in on,
/// all others the mark for forwarded packets, which no rule matches. A mark set in the pod is lost: `skb_scrub_packet`
/// clears it between namespaces. Packets with another's address are dropped.
///
/// A pod can write any number into its frames. It only chooses the routing table of its own packets by that, and the
/// program at the NIC's egress sends them out by the NIC that has their source.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        return guard::unread(ctx, At::Veth);
    };
    let pod = crate::maps::pod(&ip.source);
    if guard::is_spoofed(ctx, ip, || guard::owner_is(pod.as_deref()), At::Veth) {
        return DROP;
    }
    let is_bypass = packet::is_host_bypass(ctx);
    if let Some(pod) = &pod {
        // By the bypass it leaves as the interface would have sent it.
        let at = if is_bypass { At::Nic } else { At::Veth };
        if guard::is_kept_from_metadata(ctx, ip, (pod.pod, pod.flags), at) {
            return DROP;
        }
    }
    // A packet of the pod's interface by the host-stack bypass, past the host's netfilter. Any pod may request it: its
    // interface has the same path.
    if is_bypass
        && let Some(owner) = maps::owner(&ip.source)
        && owner.flags & OWNER_IS_POD != 0
    {
        // SAFETY: a helper call with a null pointer that it is documented to take for "by the route",
        // which is looked up with the NIC as `oif`, as ipvlan does.
        return unsafe { bpf_redirect_neigh(owner.ifindex, core::ptr::null_mut(), 0, 0) as i32 };
    }
    if pod.is_none() {
        return PASS;
    }
    let number = u32::from(packet::nic(ctx, POD_MAC));
    let mut bits = maps::reply();
    if number != 0 {
        bits |= maps::mark(number);
        if let Some(counters) = maps::counters(number) {
            let counters = &mut counters.hooks[HostHook::VethIngress as usize];
            counters.seen += 1;
            counters.marked += 1;
            counters.passed += 1;
        }
    }
    set_mark(ctx, bits);
    PASS
}

/// Handles a NIC's egress: the last point at which the host can choose the NIC that a packet leaves by. A cloud drops
/// it at any other than the one that has its source address.
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
    let Some(all) = maps::counters(maps::number(ifindex, &owner)) else {
        return PASS;
    };
    let is_pod = owner.flags & OWNER_IS_POD != 0;
    let news = is_pod && remember_way_out(ctx, ip, &owner);
    let counters = &mut all.hooks[HostHook::NicEgress as usize];
    counters.seen += 1;
    counters.learned += u64::from(news);
    if owner.ifindex == ifindex || ip.is_multicast() {
        counters.passed += 1;
        return PASS;
    }
    // What the node itself sends, and forwards for others, follows its routes. Exceptions are answers to what came in
    // by another NIC for a Service, from a far backend, a pod's own interface or its veth (whose mark they have), and
    // packets that only the main table's default route sends here: nothing has chosen this NIC for them. A route to a
    // client in this NIC's subnet is no choice for an answer with another NIC's address.
    // SAFETY: as in `our_mark`.
    let from = unsafe { (*ctx.skb.skb).ingress_ifindex };
    if !is_pod
        && our_mark(ctx) & maps::reply() == 0
        && maps::nic(from).is_none()
        && !translated::is_a_pods(ctx)
        && routed::is_meant(ctx, ip, ifindex)
    {
        counters.passed += 1;
        return PASS;
    }
    // Without a gateway the kernel would take the far destination to be on the link, and send ARP requests for it
    // there: worse than the wrong NIC in a network that is not strict.
    if owner.flags & OWNER_HAS_GATEWAY == 0 {
        all.wrong_nic_passed += 1;
        counters.passed += 1;
        return PASS;
    }
    counters.redirected += 1;
    // What the host forwards for a pod is expected to be redirected here: the main table has the route to the
    // destination (it may be another plugin's, and leave by no NIC at all), and only the source determines the NIC.
    // Everything else should have been routed.
    if !is_pod {
        all.wrong_nic += 1;
        // The mark of the owner's replies makes the lookup use its own table: no rule selects that by `oif` for the
        // node's own addresses.
        set_mark(ctx, maps::mark(owner.nic) | maps::reply());
    }
    // With `oif` set to the owner the route is looked up in its own table, and the neighbour is that gateway
    // (`__bpf_redirect_neigh_v4`, net/core/filter.c).
    // SAFETY: a helper call with a null pointer that it is documented to take for "by the route".
    unsafe { bpf_redirect_neigh(owner.ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Remembers a flow whose answers need the host's translation, or forgets it. Returns whether anything changed.
///
/// A packet that came out of the pod's veth (by its mark), and now leaves the node with the pod's own address, is for a
/// ClusterIP without masquerade. What the pod sends over ipvlan, or by the host-stack bypass, has no mark, as it is
/// scrubbed between namespaces (`skb_scrub_packet`): with the same ports it ends the other flow, unless the host has
/// translated this, too. In l2 it is not scrubbed, but the pods' own marks have none of these bits.
#[inline(always)]
fn remember_way_out(ctx: &TcContext, ip: &Ip, owner: &NodeAddress) -> bool {
    let bits = our_mark(ctx);
    let has_forwarded = owner.flags & OWNER_FORWARDS != 0;
    if bits == maps::reply() || (bits == 0 && translated::is(ctx, ip)) {
        return learn_forwarded(ctx.skb.skb, ip, owner.pod, u32::from(has_forwarded)) != 0;
    }
    bits == 0 && has_forwarded && forget_forwarded(ctx.skb.skb, ip, owner.pod) != 0
}

/// Remembers that the host forwards a flow for the pod. Returns 1 if it is new. Not inlined, as most packets are no such.
#[inline(never)]
fn learn_forwarded(skb: *mut __sk_buff, ip: &Ip, pod: u32, has_forwarded: u32) -> u32 {
    if maps::config().redirect_device == 0 {
        return 0;
    }
    if has_forwarded == 0 {
        maps::forwards(&ip.source);
    }
    let Some(key) = forwarded_by(skb, ip) else {
        return 0;
    };
    // Look up before writing: nearly every packet belongs to a known flow.
    u32::from(known(pod, &key).is_none() && flows::remember(pod, &fresh(&key)))
}

/// Forgets a flow that the host forwarded, and that the pod itself sends now. Returns 1 if it was known.
#[inline(never)]
fn forget_forwarded(skb: *mut __sk_buff, ip: &Ip, pod: u32) -> u32 {
    forwarded_by(skb, ip).map_or(0, |key| u32::from(flows::forget(pod, &key)))
}

/// Returns the key of the forwarded flow that a pod's packet belongs to.
#[inline(always)]
fn forwarded_by(skb: *mut __sk_buff, ip: &Ip) -> Option<FlowKey> {
    let mut key = flow::between(ip, LocalEnd::Source);
    key.kind = FORWARDED;
    flow::of(&TcContext::new(skb), ip, LocalEnd::Source, false, &mut key).then_some(key)
}
