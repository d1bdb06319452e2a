//! The agent's hands: everything that it reads from the kernel and changes there.
//!
//! Upwards: [`netlink`] and [`netfilter`] know single objects, [`datapath`] the eBPF programs and their maps,
//! [`node`] the node's NICs, and [`podnet`] makes a pod's network of all of them. Which address a pod gets is
//! decided elsewhere.

pub mod datapath;
pub mod netfilter;
pub mod netlink;
pub mod node;
pub mod podnet;
