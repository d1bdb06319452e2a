//! Ebbtide's eBPF programs, in one object. They run at tc, in the pod's network namespace:
//!
//! | program        | hook             | does |
//! |----------------|------------------|------|
//! | `veth_ingress` | `veth0`, ingress | marks each packet, with the number of its NIC; remembers flows that the mark cannot serve |
//! | `nic_egress`   | `eth0`, egress   | redirects marked replies, and those of remembered flows, to the veth; drops packets whose source is not the pod's, and those to a metadata service |
//! | `nic_ingress`  | ingress of another plugin's interface | forgets a remembered flow that now comes in here |
//! | `limit_egress` | egress of `eth0` and `veth0`, in pods with a limit | gives each packet the time at which it may leave, for `fq`; drops what would wait too long |
//! | `limit_ingress`| ingress of both, in pods with a limit | drops what is above the limit |
//!
//! and in the host's:
//!
//! | program             | hook                    | does |
//! |---------------------|-------------------------|------|
//! | `host_nic_ingress`  | each NIC, ingress       | redirects answers to what the host forwarded for a pod past ipvlan; where the NIC filters strictly, marks requests (`strict`) |
//! |                     |                         | forgets a pod's remembered flow that now comes in here (`direct`) |
//! |                     |                         | answers ARP and neighbour solicitations for the pods of networks that need it (`responder`) |
//! | `host_nic_egress`   | each NIC, egress        | remembers what the host forwards for a pod; redirects packets to the NIC that has their source address |
//! | `host_veth_egress`  | host's end, to the pod  | writes into the frame by which NIC a request came in |
//! | `host_veth_ingress` | host's end, from the pod| marks its replies with that NIC; drops packets whose source is not the pod's, and those to a metadata service |
//!
//! TCP needs no memory: the accepted socket inherits the mark (`tcp_fwmark_accept`), and with it the number of the NIC,
//! which the frames carry between pod and host. A connectionless socket cannot inherit a mark, nor can packets that the
//! pod forwards. So for everything else the path is remembered, per pod, and overrides the routing table for replies.
//!
//! No program writes to packet memory directly: that would make the verifier add a prologue which copies every cloned
//! packet, and all of TCP's data packets are clones.

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
mod limit;
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
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

/// Attached to the ingress of `veth0`, in the pod.
#[classifier]
fn veth_ingress(ctx: TcContext) -> i32 {
    reply::mark_and_learn(&ctx)
}

/// Attached to the egress of `eth0`, in the pod.
#[classifier]
fn nic_egress(ctx: TcContext) -> i32 {
    reply::redirect_reply(&ctx)
}

/// Attached to the ingress of `eth0`, in the pod.
#[classifier]
fn nic_ingress(ctx: TcContext) -> i32 {
    reply::forget(&ctx)
}

/// Attached to the egress of the interfaces of pods with a limit, behind the programs above.
#[classifier]
fn limit_egress(ctx: TcContext) -> i32 {
    limit::pace(&ctx)
}

/// Attached to the ingress of the interfaces of pods with a limit, behind the programs above.
#[classifier]
fn limit_ingress(ctx: TcContext) -> i32 {
    limit::police(&ctx)
}

/// Attached to the ingress of each NIC, in the host.
#[classifier]
fn host_nic_ingress(ctx: TcContext) -> i32 {
    host::from_nic(&ctx)
}

/// Attached to the egress of each NIC, in the host.
#[classifier]
fn host_nic_egress(ctx: TcContext) -> i32 {
    host::to_nic(&ctx)
}

/// Attached to the egress of a veth's host end, towards the pod.
#[classifier]
fn host_veth_egress(ctx: TcContext) -> i32 {
    host::to_pod(&ctx)
}

/// Attached to the ingress of a veth's host end, from the pod.
#[classifier]
fn host_veth_ingress(ctx: TcContext) -> i32 {
    host::from_pod(&ctx)
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
