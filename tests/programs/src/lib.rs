//! Runs the eBPF programs alone, by BPF_PROG_TEST_RUN.
//! The input is a packet, a mark and maps; the output is a verdict, the mark, the packet, maps and counters. This needs
//! root and a kernel that allows it to load programs, but no network.
#![expect(
    clippy::unwrap_used,
    reason = "a bench whose every step must succeed; it has nothing better to do than to stop"
)]

mod bench;
mod limits;
pub mod links;
mod maps;
pub mod packets;
pub mod random;
pub mod reset;
mod scene;

pub use bench::{Bench, DROP, Outcome, PASS, REDIRECT, names};
pub use limits::Given;
pub use scene::{
    CLIENT, CLIENT6, FAR_POD, LOST, MARK, NODE, NODE6, OTHER, OTHER_POD, OTHER_POD6, POD,
    POD_NUMBER, POD6, REDIRECT_DEVICE, REPLY, THAT, THAT_MARK, THAT_NIC, THIS, THIS_NIC, VETH, ip,
};
