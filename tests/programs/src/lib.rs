//! The eBPF programs alone, by BPF_PROG_TEST_RUN: packet, mark and maps in; verdict, mark, packet,
//! maps and counters out. Needs root and a kernel that lets it load programs; no network.
#![expect(
    clippy::unwrap_used,
    reason = "a bench whose every step must succeed; it has nothing better to do than to stop"
)]

mod bench;
pub mod links;
mod maps;
pub mod packets;
pub mod random;
pub mod reset;
mod scene;

pub use bench::{Bench, DROP, Outcome, PASS, REDIRECT, names};
pub use scene::{
    CLIENT, CLIENT6, FAR_POD, LOST, MARK, NODE, NODE6, OTHER, OTHER_POD, POD, POD_NUMBER, POD6,
    REDIRECT_DEVICE, REPLY, THAT, THAT_MARK, THIS, VETH, ip,
};
