//! Sends replies by the interface their request came in on.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_REDIRECT},
    helpers::bpf_redirect,
    programs::TcContext,
};
use ebbtide_layout::{
    Flow, FlowKey, HOST_BYPASS_MAC, HOST_MAC, Hook, NIC_BYTE, OWNER_IS_FOLLOWED, OWNER_IS_POD,
    POD_FOLLOWS_TCP, POD_IN_L3, POD_IS_EXEMPT, POD_MAC, PodCounters,
};

use crate::{
    DROP, PASS, clock, direct,
    flow::{self, LocalEnd},
    flows::{self, known},
    guard::{self, At},
    host_maps, maps,
    packet::{self, ACK, Endpoints, FIN, FIRST, Ip, LAST, LATER, RST, SYN},
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
    let nic = packet::nic(ctx, HOST_MAC);
    let bits = maps::mark() | maps::nic_to_mark(nic);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        mark(ctx, bits);
        return PASS;
    };
    let error = is_error(ctx, ip);
    if !error {
        mark(ctx, bits);
    }
    let Some(pod) = maps::pod(&ip.destination) else {
        return PASS;
    };
    let number = u32::from(pod.pod);
    let counters = &mut pod.hooks[Hook::VethIngress as usize];
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
    if !flow::of(ctx, ip, LocalEnd::Destination, true, &mut key) {
        return PASS;
    }
    if is_tcp {
        recent::note(&key, nic);
        return PASS;
    }
    // Look up before writing: nearly every packet belongs to a known flow.
    let is_new = match known(number, &key) {
        Some(flow) if flow.nic == nic && flow.straight == 0 => false,
        Some(flow) => {
            flow.nic = nic;
            direct::now_by(flow, 0);
            true
        }
        None => flows::remember(number, &fresh(&key, nic, 0)),
    };
    counters.learned += u64::from(is_new);
    PASS
}

/// Returns a flow that begins now.
#[inline(always)]
fn fresh(key: &FlowKey, nic: u8, straight: u8) -> Flow {
    Flow {
        key: *key,
        since: clock::seconds(),
        nic,
        straight,
        pad: [0; 2],
        packets: 1,
    }
}

/// The path of a reply: the number of the NIC that it is to leave by, and [`Flow::straight`].
#[derive(Clone, Copy)]
struct Path {
    nic: u8,
    straight: u8,
}

impl Path {
    /// Returns the path of a flow.
    #[inline(always)]
    fn of(flow: &mut Flow) -> Self {
        Self {
            nic: flow.nic,
            straight: flow.straight,
        }
    }

    /// Returns the path as a number that is not zero, for functions that are not inlined: of an `Option` the compiler
    /// would pass undefined registers, which the verifier refuses.
    #[inline(always)]
    fn in_a_word(self) -> u32 {
        1 << 16 | u32::from(self.straight) << 8 | u32::from(self.nic)
    }

    /// Returns the path in a word of [`Path::in_a_word`]; none of zero.
    #[inline(always)]
    fn of_word(word: u32) -> Option<Self> {
        (word != 0).then_some(Self {
            nic: word as u8,
            straight: (word >> 8) as u8 & 1,
        })
    }
}

/// Whether TCP flags are those of an answer to a SYN.
#[inline(always)]
fn answers_syn(flags: u8) -> bool {
    flags & RST != 0 || flags & (SYN | ACK) == SYN | ACK
}

/// Returns the path of what answers a SYN: a SYN-ACK's is remembered for its connection, a reset ends it at once. Zero for
/// none, else as [`Path::in_a_word`].
///
/// By the veth, if the socket's mark does not determine it: the pod forwards the connection, or its sockets take no marks
/// ([`POD_FOLLOWS_TCP`]). Directly, in l3, if the host's conntrack may know it by the veth ([`recent`]). `flags` are the
/// pod's. Not inlined: few of a connection's packets are such.
#[inline(never)]
fn answer(skb: *mut __sk_buff, at: u32, pod: u32, flags: u32) -> u32 {
    let mut key = flow::EMPTY;
    if !direct::read(skb, at, packet::TCP.into(), LocalEnd::Source, &mut key) {
        return 0;
    }
    let is_reset = packet::tcp_flags_at(skb, at) & RST != 0;
    let last = recent::last_way(&key);
    if is_reset {
        return match last {
            Some(Last::Straight) => u32::from(flags & u32::from(POD_IN_L3) != 0) * STRAIGHT,
            _ => known(pod, &key).map_or(0, |flow| Path::of(flow).in_a_word()),
        };
    }
    if flows::has_any(pod) {
        // An older connection's path.
        let _not_there = flows::forget(pod, &key);
    }
    let path = match last {
        Some(Last::Veth(nic)) => {
            // SAFETY: as in `mark_of`.
            let is_own = unsafe { (*skb).ingress_ifindex == 0 };
            if is_own && flags & u32::from(POD_FOLLOWS_TCP) == 0 {
                return 0;
            }
            Path { nic, straight: 0 }
        }
        Some(Last::Straight) if flags & u32::from(POD_IN_L3) != 0 => Path {
            nic: 0,
            straight: 1,
        },
        _ => return 0,
    };
    // Without room the connection follows the routing table, as it would without Ebbtide.
    let _full = flows::remember(pod, &fresh(&key, path.nic, path.straight));
    path.in_a_word()
}

/// [`Path::in_a_word`] of what is sent straight.
const STRAIGHT: u32 = 1 << 16 | 1 << 8;

/// Notes the path of a packet's first fragment for the later ones, until the last is sent: the kernel creates and sends
/// them in order (`ip_do_fragment`, net/ipv4/ip_output.c). The note of an older packet with the same identification is
/// replaced or removed. `path` is zero, or as [`Path::in_a_word`] returns it. Not inlined: fragments are few.
#[inline(never)]
fn note_fragment(pod: u32, ip: &Ip, key: &mut FlowKey, path: u32) -> u32 {
    flow::to_fragments(ip, key);
    if path != 0 && ip.payload.fragment & (FIRST | LAST) == 0 {
        return 0;
    }
    let _not_there = flows::forget(pod, &*key);
    if path != 0 && ip.payload.fragment & FIRST != 0 {
        // Without room the later ones follow the routing table, as they would without Ebbtide.
        let flow = fresh(&*key, path as u8, (path >> 8) as u8 & 1);
        let _full = flows::remember(pod, &flow);
    }
    0
}

/// Returns the remembered path of a packet that the mark does not serve.
#[inline(always)]
fn path(ctx: &TcContext, ip: &Ip, pod: &PodCounters) -> Option<Path> {
    let number = u32::from(pod.pod);
    if ip.payload.protocol == packet::TCP {
        if ip.payload.fragment == 0 && answers_syn(ip.tcp_flags(ctx)) {
            let word = answer(ctx.skb.skb, ip.payload.at, number, pod.flags.into());
            return Path::of_word(word);
        }
        if pod.flags & POD_FOLLOWS_TCP == 0 && !is_passed_on(ctx) && !flows::has_tcp(number) {
            return None;
        }
    }
    let mut key = flow::between(ip, LocalEnd::Source);
    if !flow::followed(ctx, ip, LocalEnd::Source, true, &mut key) {
        return None;
    }
    let path = known(number, &key).map(Path::of);
    if ip.payload.fragment != 0 {
        let path = path.map_or(0, Path::in_a_word);
        let _noted = note_fragment(number, ip, &mut key, path);
    }
    path
}

/// Redirects a reply to the veth, with the number of the NIC that it is to leave by. `None` if it cannot: without a pair,
/// or while the agent has not written its index yet.
#[inline(always)]
fn to_veth(ctx: &TcContext, veth: u32, nic: u8) -> Option<i32> {
    let mut macs = TO_HOST;
    macs[6 + NIC_BYTE] = nic;
    if veth == 0 || ctx.store(0, &macs, 0).is_err() {
        return None;
    }
    // The veth's far end is in the host; the pair resolves no addresses (both MACs are fixed).
    // SAFETY: a helper call with plain integers.
    Some(unsafe { bpf_redirect(veth, 0) } as i32)
}

/// Handles the egress of the pod's own interface: redirects the replies to what came in by the veth to it, whatever the
/// routing table chose. Packets with another's address are dropped.
#[inline(always)]
pub(crate) fn redirect_reply(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        return guard::unread(ctx, At::Nic);
    };
    if mark_of(ctx) & maps::mark() == maps::mark() && !is_passed_on(ctx) {
        redirect_marked(ctx, ip)
    } else {
        redirect_remembered(ctx, ip)
    }
}

/// What has the mark is the reply of an accepted socket, which inherited it, or of the kernel itself (`fwmark_reflect`).
/// What the pod forwards has the mark of its request.
#[inline(always)]
fn redirect_marked(ctx: &TcContext, ip: &Ip) -> i32 {
    let pod = maps::pod(&ip.source);
    // By the veth it may leave with the address of any of the pod's interfaces, whatever link-layer address this one has.
    if guard::is_spoofed(ctx, ip, || guard::owner_is(pod.as_deref()), At::Veth) {
        return DROP;
    }
    let Some(pod) = pod else {
        return PASS;
    };
    let veth = pod.veth;
    let counters = &mut pod.hooks[Hook::NicEgress as usize];
    counters.seen += 1;
    if let Some(redirected) = to_veth(ctx, veth, maps::nic_in_mark(mark_of(ctx))) {
        counters.redirected += 1;
        return redirected;
    }
    if guard::is_kept_from_metadata(ctx, ip, (pod.pod, pod.flags), At::Nic) {
        return DROP;
    }
    counters.passed += 1;
    PASS
}

/// Redirects the replies of remembered flows.
#[inline(always)]
fn redirect_remembered(ctx: &TcContext, ip: &Ip) -> i32 {
    let pod = maps::pod(&ip.source);
    if guard::is_spoofed(ctx, ip, || guard::owner_is(pod.as_deref()), At::Nic) {
        return DROP;
    }
    let Some(pod) = pod else {
        return PASS;
    };
    let (veth, is_l3) = (pod.veth, pod.flags & POD_IN_L3 != 0);
    let path = path(ctx, ip, pod);
    let counters = &mut pod.hooks[Hook::NicEgress as usize];
    counters.seen += 1;
    let is_straight = match path {
        Some(path) if path.straight == 0 => {
            if let Some(redirected) = to_veth(ctx, veth, path.nic) {
                counters.redirected += 1;
                return redirected;
            }
            false
        }
        Some(_) => true,
        None => false,
    };
    if guard::is_kept_from_metadata(ctx, ip, (pod.pod, pod.flags), At::Nic) {
        return DROP;
    }
    let is_bypass = is_straight
        || pod.flags & POD_IS_EXEMPT != 0
        || mark_of(ctx) & maps::host_bypass_mark() == maps::host_bypass_mark();
    // Past the host's netfilter, which would see what the interface sends.
    if is_bypass
        && veth != 0
        && !ip.is_multicast()
        && leaves_the_node(ip)
        && ctx.store(0, &HOST_BYPASS, 0).is_ok()
    {
        counters.redirected += 1;
        // SAFETY: a helper call with plain integers.
        return unsafe { bpf_redirect(veth, 0) } as i32;
    }
    if is_l3 {
        translated::note(ctx, ip);
    }
    counters.passed += 1;
    if ip.payload.fragment & LATER == 0
        && (ip.payload.protocol != packet::TCP || ip.tcp_flags_again(ctx) & (SYN | ACK) == SYN)
        && host_maps::owner(&ip.destination).is_some_and(|to| to.flags & OWNER_IS_FOLLOWED != 0)
    {
        direct::came_beside(ctx.skb.skb, ip.payload.at, ip.payload.protocol.into());
    }
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

/// Handles the ingress of the pod's own interface, if another plugin made it: what came past Ebbtide's programs at a NIC
/// ([`direct`]). A connection that came by the veth of late gets a bit of the mark, which the accepted socket inherits.
/// TCP's other packets are not even counted.
#[inline(always)]
pub(crate) fn forget(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let mut place = MaybeUninit::uninit();
    let Some(ip) = packet::ip(ctx, &mut place) else {
        return PASS;
    };
    let is_tcp = ip.payload.protocol == packet::TCP;
    if is_tcp && ip.tcp_flags(ctx) & (SYN | ACK) != SYN {
        return PASS;
    }
    let Some(pod) = maps::pod(&ip.destination) else {
        return PASS;
    };
    let is_l3 = pod.flags & POD_IN_L3 != 0;
    let counters = &mut pod.hooks[Hook::NicIngress as usize];
    counters.seen += 1;
    counters.passed += 1;
    let changed = direct::came(
        ctx.skb.skb,
        ip.payload.at,
        ip.payload.protocol.into(),
        pod.pod.into(),
        is_l3.into(),
    );
    if !is_tcp {
        counters.learned += u64::from(changed);
    } else if is_l3 && changed != 0 {
        mark(ctx, maps::host_bypass_mark());
        counters.marked += 1;
    }
    PASS
}

const _: () = assert!(TC_ACT_REDIRECT == 7);
