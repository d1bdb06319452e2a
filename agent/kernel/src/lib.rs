//! Everything that the agent reads from the kernel and changes in it.
//!
//! From the bottom up: [`netlink`] and [`netfilter`] handle single objects, [`datapath`] the eBPF programs and their
//! maps, [`node`] the node's NICs, and [`podnet`] builds a pod's network from all of them. Pod addresses are assigned
//! elsewhere.

pub mod datapath;
pub mod netfilter;
pub mod netlink;
pub mod node;
pub mod podnet;
