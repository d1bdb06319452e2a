//! Sends replies by the interface their request came in on.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::TC_ACT_REDIRECT, helpers::bpf_redirect, programs::TcContext};
use ebbtide_layout::{
    Flow, FlowKey, HOST_BYPASS_MAC, HOST_MAC, Hook, OWNER_IS_POD, POD_FOLLOWS_TCP, POD_IN_L3,
    POD_IS_EXEMPT, POD_MAC,
};

use crate::{
    DROP, PASS, clock,
    flow::{self, LocalEnd, known},
    guard::{self, At},
    host_maps, maps,
    packet::{self, ACK, Endpoints, FIN, FIRST, Ip, LAST, RST, SYN},
    recent::{self, Last},
    translated,
};

/// Destination and source of a frame from the pod to its host end of the veth.
const TO_HOST: [u8; 12] = to_host(POD_MAC);

/// The same for a frame that requests the host-stack bypass.
const HOST_BYPASS: [u8; 12] = to_host(HOST_BYPASS_MAC);

const fn to_host(source: [u8; 6]) -> [u8; 12] {
    let mut macs = [0; 12];
    let mut i = 0;
    while i < 6 {
        macs[i] = HOST_MAC[i];
        macs[6 + i] = source[i];
        i += 1;
    }
    macs
}

/// Returns the packet's mark.
#[inline(always)]
fn mark_of(ctx: &TcContext) -> u32 {
    // SAFETY: the context pointer is the kernel's `struct __sk_buff`, valid while we run.
    unsafe { (*ctx.skb.skb).mark }
}

/// Sets Ebbtide's bits, and only these, in the packet's mark.
#[inline(always)]
fn mark(ctx: &TcContext, bits: u32) {
    ctx.set_mark(mark_of(ctx) | bits);
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as in `mark_of`.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Whether the pod forwards a packet: those of its own sockets have no input interface (`skb_iif`, set in
/// `__netif_receive_skb_core`, net/core/dev.c).
#[inline(always)]
fn is_passed_on(ctx: &TcContext) -> bool {
    // SAFETY: as in `mark_of`.
    unsafe { (*ctx.skb.skb).ingress_ifindex != 0 }
}

/// Whether a packet is an ICMP error. Nobody answers one, so it needs no mark. With a mark, and `fwmark_reflect`, the
/// kernel would record the smaller MTU in an error at the route that the mark selects, where the lookup of a UDP
/// socket, which has no mark, does not find it (`ipv4_update_pmtu`, net/ipv4/route.c: `IP4_REPLY_MARK`).
#[inline(always)]
fn is_error(ctx: &TcContext, ip: &Ip) -> bool {
    let protocol = ip.payload.protocol;
    (protocol == packet::ICMP || protocol == packet::ICMPV6)
        && matches!(ip.endpoints(ctx), Endpoints::Error)
}

/// Handles the veth's ingress: marks packets, and remembers flows that the mark cannot serve.
#[inline(always)]
pub(crate) fn mark_and_learn(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        mark(ctx, maps::mark());
        return PASS;
    };
    let error = is_error(ctx, ip);
    if !error {
        mark(ctx, maps::mark());
    }
    let Some(counters) = maps::counters(&ip.destination, Hook::VethIngress) else {
        return PASS;
    };
    counters.seen += 1;
    counters.marked += u64::from(!error);
    if error {
        return PASS;
    }
    let is_tcp = ip.payload.protocol == packet::TCP;
    if is_tcp && ip.tcp_flags(ctx) & (SYN | FIN | RST) == 0 {
        return PASS;
    }
    let mut key = flow::between(ip, LocalEnd::Destination);
    if is_tcp {
        if flow::of(ctx, ip, LocalEnd::Destination, true, &mut key) {
            recent::note(&key);
        }
        return PASS;
    }
    if flow::of(ctx, ip, LocalEnd::Destination, true, &mut key)
        && let Some(flows) = maps::flows(&ip.destination)
    {
        let ifindex = ifindex(ctx);
        // Look up before writing: an insert costs four times a lookup, and nearly every packet belongs to a known flow.
        if let Some(flow) = known(flows, &key)
            && flow.ifindex == ifindex
            && flow.straight == 0
        {
            return PASS;
        }
        let flow = Flow {
            ifindex,
            since: clock::seconds(),
            straight: 0,
            pad: 0,
            packets: 1,
        };
        if flows.insert(&key, flow, 0).is_ok() {
            counters.learned += 1;
        }
    }
    PASS
}

/// Remembers the path of a TCP connection that is accepted now, if its socket's mark does not determine it: the pod
/// forwards it, or its sockets take no marks ([`POD_FOLLOWS_TCP`]).
#[inline(always)]
fn accepted(flows: &maps::Flows, key: &FlowKey, veth: u32, is_l3: bool) -> Option<Flow> {
    let straight = match recent::last_way(key) {
        Some(Last::Veth) if veth != 0 => 0,
        Some(Last::Straight) if veth != 0 && is_l3 => 1,
        _ => {
            // An older connection's.
            let _not_there = flows.remove(key);
            return None;
        }
    };
    let flow = Flow {
        ifindex: veth,
        since: clock::seconds(),
        straight,
        pad: 0,
        packets: 1,
    };
    // Without room the connection follows the routing table, as it would without Ebbtide.
    let _full = flows.insert(key, flow, 0);
    Some(flow)
}

/// Notes the path of a packet's first fragment for the later ones, until the last is sent: the kernel creates and sends
/// them in order (`ip_do_fragment`, net/ipv4/ip_output.c). The note of an older packet with the same identification is
/// replaced or removed.
#[inline(always)]
fn note_fragment(flows: &maps::Flows, ip: &Ip, key: &mut FlowKey, flow: Option<Flow>) {
    flow::to_fragments(ip, key);
    match flow {
        Some(flow) if ip.payload.fragment & FIRST != 0 => {
            // Without room the later ones follow the routing table, as they would without Ebbtide.
            let _full = flows.insert(&*key, flow, 0);
        }
        Some(_) if ip.payload.fragment & LAST == 0 => {}
        _ => {
            let _not_there = flows.remove(&*key);
        }
    }
}

/// Handles the ipvlan interface's egress: redirects a reply of a remembered flow to the interface the flow came in on,
/// whatever the routing table chose. Packets with another's address are dropped.
#[inline(always)]
pub(crate) fn redirect_reply(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        return guard::unread(ctx, At::Nic);
    };
    let pod = maps::pod(&ip.source);
    let owner = || guard::owner_is(pod.as_deref());
    if guard::is_spoofed(ctx, ip, owner, At::Nic) {
        return DROP;
    }
    let Some(pod) = pod else {
        return PASS;
    };
    let (veth, is_l3) = (pod.veth, pod.flags & POD_IN_L3 != 0);
    // The pod's end of the pair, for the host-stack bypass; zero if the packet does not take it.
    let mut host_bypass = if pod.flags & POD_IS_EXEMPT != 0
        || mark_of(ctx) & maps::host_bypass_mark() == maps::host_bypass_mark()
    {
        veth
    } else {
        0
    };
    let counters = &mut pod.hooks[Hook::NicEgress as usize];
    counters.seen += 1;
    let mut key = flow::between(ip, LocalEnd::Source);
    let is_tcp = ip.payload.protocol == packet::TCP;
    if (!is_tcp || pod.flags & POD_FOLLOWS_TCP != 0 || is_passed_on(ctx))
        && flow::followed(ctx, ip, LocalEnd::Source, true, &mut key)
        && let Some(flows) = maps::flows(&ip.source)
    {
        let flow = if is_tcp && ip.tcp_flags(ctx) & (SYN | ACK) == SYN | ACK {
            accepted(flows, &key, veth, is_l3)
        } else {
            known(flows, &key).copied()
        };
        if ip.payload.fragment != 0 {
            note_fragment(flows, ip, &mut key, flow);
        }
        if let Some(flow) = flow
            && flow.ifindex != ifindex(ctx)
        {
            if flow.straight != 0 {
                host_bypass = flow.ifindex;
            } else if ctx.store(0, &TO_HOST, 0).is_ok() {
                counters.redirected += 1;
                // The veth's far end is in the host; the pair resolves no addresses (both MACs are fixed).
                // SAFETY: a helper call with plain integers.
                return unsafe { bpf_redirect(flow.ifindex, 0) } as i32;
            }
        }
    }
    // Past the host's netfilter, which would see what the interface sends.
    if host_bypass != 0
        && !ip.is_multicast()
        && leaves_the_node(ip)
        && ctx.store(0, &HOST_BYPASS, 0).is_ok()
    {
        counters.redirected += 1;
        // SAFETY: a helper call with plain integers.
        return unsafe { bpf_redirect(host_bypass, 0) } as i32;
    }
    if is_l3 {
        translated::note(ctx, ip);
    }
    counters.passed += 1;
    PASS
}

/// Whether a packet passes a wire. Those to the node itself, and to pods on the same NIC, do not.
#[inline(always)]
fn leaves_the_node(ip: &Ip) -> bool {
    let Some(to) = host_maps::owner(&ip.destination) else {
        return true;
    };
    to.flags & OWNER_IS_POD != 0
        && host_maps::owner(&ip.source).is_some_and(|from| from.ifindex != to.ifindex)
}

/// Handles the ipvlan interface's ingress: the latest path wins. Otherwise a client that used the NodePort and then
/// connects directly to the pod from the same port would be answered by the veth.
///
/// In l3 the flow is kept, with a note that it comes directly now: the host's conntrack still has it by the NodePort,
/// and would give the reply the node's address. So its replies take the host-stack bypass. TCP has no flow; the request
/// of such a connection is marked, and the accepted socket inherits that.
#[inline(always)]
pub(crate) fn forget(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        return PASS;
    };
    let Some(pod) = maps::pod(&ip.destination) else {
        return PASS;
    };
    let is_l3 = pod.flags & POD_IN_L3 != 0;
    let counters = &mut pod.hooks[Hook::NicIngress as usize];
    counters.seen += 1;
    let mut key = flow::between(ip, LocalEnd::Destination);
    if ip.payload.protocol == packet::TCP {
        if ip.tcp_flags(ctx) & (SYN | ACK) == SYN
            && flow::of(ctx, ip, LocalEnd::Destination, true, &mut key)
            && recent::begins_straight(&key)
            && is_l3
        {
            mark(ctx, maps::host_bypass_mark());
            counters.marked += 1;
        }
    } else if flow::of(ctx, ip, LocalEnd::Destination, true, &mut key)
        && let Some(flows) = maps::flows(&ip.destination)
        && let Some(flow) = known(flows, &key)
    {
        if !is_l3 {
            // Another CPU may have removed it first.
            let _gone = flows.remove(&key);
            counters.learned += 1;
        } else if flow.straight == 0 {
            flow.straight = 1;
            flow.packets = 1;
            flow.since = clock::seconds();
            counters.learned += 1;
        }
    }
    counters.passed += 1;
    PASS
}

const _: () = assert!(TC_ACT_REDIRECT == 7);
