//! Replies leave by the interface their request came in on.

use aya_ebpf::{bindings::TC_ACT_REDIRECT, helpers::bpf_redirect, programs::TcContext};
use ebbtide_layout::{Flow, FlowKey, HOST_MAC, Hook, POD_MAC};

use crate::{
    PASS, maps,
    packet::{self, Endpoints, Ip},
};

/// Destination and source of a frame from the pod to its host end of the veth.
const TO_HOST: [u8; 12] = {
    let mut macs = [0; 12];
    let mut i = 0;
    while i < 6 {
        macs[i] = HOST_MAC[i];
        macs[6 + i] = POD_MAC[i];
        i += 1;
    }
    macs
};

/// Which end of the packet is the pod.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// The flow a packet belongs to, or `None` if replies to it (or it as a reply) cannot be told:
/// TCP (served by the mark), later fragments, ICMP other than the echo that fits the direction.
#[inline(always)]
fn flow_key(ctx: &TcContext, ip: &Ip, direction: Direction) -> Option<FlowKey> {
    let (source_port, destination_port) = match (ip.endpoints(ctx), direction) {
        (Endpoints::Ports(source, destination), _) => (source, destination),
        // Both are kept on the pod's side of the key, so that request and reply meet.
        (Endpoints::EchoRequest(identifier), Direction::In) => ([0; 2], identifier),
        (Endpoints::EchoReply(identifier), Direction::Out) => (identifier, [0; 2]),
        _ => return None,
    };
    Some(match direction {
        Direction::In => FlowKey {
            local: ip.destination,
            remote: ip.source,
            local_port: destination_port,
            remote_port: source_port,
            protocol: ip.protocol,
            pad: [0; 3],
        },
        Direction::Out => FlowKey {
            local: ip.source,
            remote: ip.destination,
            local_port: source_port,
            remote_port: destination_port,
            protocol: ip.protocol,
            pad: [0; 3],
        },
    })
}

/// Sets our bits, and only ours, in the packet's mark.
#[inline(always)]
fn mark(ctx: &TcContext) {
    // SAFETY: the context pointer is the kernel's `struct __sk_buff`, valid while we run.
    let old = unsafe { (*ctx.skb.skb).mark };
    ctx.set_mark(old | maps::mark());
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as in `mark`.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// The veth's ingress: marks, and remembers the way in of what the mark cannot serve.
#[inline(always)]
pub(crate) fn mark_and_learn(ctx: &TcContext) -> i32 {
    mark(ctx);
    packet::linearise(ctx);
    let Some(ip) = packet::ip(ctx) else {
        return PASS;
    };
    let Some(counters) = maps::counters(&ip.destination, Hook::VethIngress) else {
        return PASS;
    };
    counters.seen += 1;
    counters.marked += 1;
    if ip.protocol == packet::TCP {
        return PASS;
    }
    if let Some(key) = flow_key(ctx, &ip, Direction::In)
        && let Some(flows) = maps::flows(&ip.destination)
    {
        let ifindex = ifindex(ctx);
        // Look before writing: an insert costs four times a look-up, and nearly every packet
        // belongs to a flow that is known already.
        // SAFETY: a value that is replaced while we read it can only make us write it again.
        let known = unsafe { flows.get(key) }.is_some_and(|flow| flow.ifindex == ifindex);
        if !known && flows.insert(key, Flow { ifindex, pad: 0 }, 0).is_ok() {
            counters.learned += 1;
        }
    }
    PASS
}

/// The ipvlan interface's egress: a reply of a remembered flow goes out by the interface the
/// flow came in on, whatever the routing table said.
#[inline(always)]
pub(crate) fn steer(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let Some(ip) = packet::ip(ctx) else {
        return PASS;
    };
    let Some(counters) = maps::counters(&ip.source, Hook::NicEgress) else {
        return PASS;
    };
    counters.seen += 1;
    if ip.protocol != packet::TCP
        && let Some(key) = flow_key(ctx, &ip, Direction::Out)
        && let Some(flows) = maps::flows(&ip.source)
        // SAFETY: a value replaced while we read it is still one of the two ways in.
        && let Some(flow) = unsafe { flows.get(key) }
        && flow.ifindex != ifindex(ctx)
        && ctx.store(0, &TO_HOST, 0).is_ok()
    {
        counters.redirected += 1;
        // The veth's far end is in the host; the pair resolves no addresses (both MACs are ours).
        // SAFETY: a helper call with plain integers.
        return unsafe { bpf_redirect(flow.ifindex, 0) } as i32;
    }
    counters.passed += 1;
    PASS
}

/// The ipvlan interface's ingress: the last way in wins. Without this, a client that used the
/// NodePort and then comes straight to the pod with the same port would be answered by the veth.
#[inline(always)]
pub(crate) fn forget(ctx: &TcContext) -> i32 {
    packet::linearise(ctx);
    let Some(ip) = packet::ip(ctx) else {
        return PASS;
    };
    let Some(counters) = maps::counters(&ip.destination, Hook::NicIngress) else {
        return PASS;
    };
    counters.seen += 1;
    if ip.protocol != packet::TCP
        && let Some(key) = flow_key(ctx, &ip, Direction::In)
        && let Some(flows) = maps::flows(&ip.destination)
        // SAFETY: only asked whether it is there.
        && unsafe { flows.get(key) }.is_some()
    {
        // Another CPU may have been first; then it is gone, as wanted.
        let _gone = flows.remove(key);
        counters.learned += 1;
    }
    counters.passed += 1;
    PASS
}

const _: () = assert!(TC_ACT_REDIRECT == 7);
