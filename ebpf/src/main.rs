//! Ebbtide's programs for the kernel, one object. They run at tc, in the pod's network namespace:
//!
//! | program        | hook             | does |
//! |----------------|------------------|------|
//! | `veth_ingress` | `veth0`, ingress | marks each packet; remembers flows the mark cannot serve |
//! | `nic_egress`   | `eth0`, egress   | sends replies of remembered flows back out by their interface; drops what has an address that is not the pod's |
//! | `nic_ingress`  | `eth0`, ingress  | forgets a remembered flow that now comes in here |
//!
//! and in the host's:
//!
//! | program             | hook                    | does |
//! |---------------------|-------------------------|------|
//! | `host_nic_ingress`  | each NIC, ingress       | steers answers to what the host forwarded for a pod past ipvlan; where the NIC filters strictly, marks requests (`strict`) |
//! | `host_nic_egress`   | each NIC, egress        | remembers what the host forwards for a pod; sends out by the right NIC what has another one's address |
//! |                     |                         | answers ARP and neighbour solicitations for the pods of networks that want it (`responder`) |
//! | `host_veth_egress`  | host's end, to the pod  | remembers by which NIC a request came in |
//! | `host_veth_ingress` | host's end, from the pod| marks its replies with that NIC; drops what has an address that is not the pod's |
//!
//! In the pod TCP needs no memory: the mark is inherited by the accepted socket (`tcp_fwmark_accept`) and
//! a rule routes marked packets to the veth. A connectionless socket has nothing that could
//! inherit a mark, nor has what the pod passes on for somebody behind it. So for everything else the way
//! in is remembered, per pod, and wins over the routing table on the way out.
//!
//! No program writes to packet memory directly: that would make the verifier add a prologue
//! which copies every cloned packet, and all of TCP's data packets are clones.

#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is passed by value may be copied to the stack, which has 512 bytes"
)]

mod asking;
mod clock;
mod extended;
mod flow;
mod guard;
mod host;
mod host_maps;
mod maps;
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

/// `veth0` ingress, in the pod.
#[classifier]
fn veth_ingress(ctx: TcContext) -> i32 {
    reply::mark_and_learn(&ctx)
}

/// `eth0` egress, in the pod.
#[classifier]
fn nic_egress(ctx: TcContext) -> i32 {
    reply::redirect_device(&ctx)
}

/// `eth0` ingress, in the pod.
#[classifier]
fn nic_ingress(ctx: TcContext) -> i32 {
    reply::forget(&ctx)
}

/// A NIC's ingress, in the host.
#[classifier]
fn host_nic_ingress(ctx: TcContext) -> i32 {
    host::from_nic(&ctx)
}

/// A NIC's egress, in the host.
#[classifier]
fn host_nic_egress(ctx: TcContext) -> i32 {
    host::to_nic(&ctx)
}

/// The host's end of a veth, towards the pod.
#[classifier]
fn host_veth_egress(ctx: TcContext) -> i32 {
    host::to_pod(&ctx)
}

/// The host's end of a veth, from the pod.
#[classifier]
fn host_veth_ingress(ctx: TcContext) -> i32 {
    host::from_pod(&ctx)
}

/// Let the packet go on, to the next filter if there is one.
pub(crate) const PASS: i32 = TC_ACT_UNSPEC;

/// The packet goes nowhere.
pub(crate) const DROP: i32 = TC_ACT_SHOT;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers used here are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
