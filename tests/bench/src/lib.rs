//! How fast it is, beside what people use today and beside what the kernel alone takes.
//!
//! - [`pool`]: addresses and what they cost, on one disk;
//! - [`add`]: a pod's ADD and DEL, by whoever is a [`contender`], down to the [`floor`], or behind what was
//!   [`made_before`];
//! - [`agent`]: the agent's memory, its time until it is ready, its CPU at rest;
//! - [`datapath`]: what a packet pays for its reply's way, beside iptables;
//! - [`programs`]: what each eBPF program costs, and what the kernel's verifier says of it;
//! - [`figures`], [`timeline`], [`machine`]: what was measured, as tables, pictures and JSON;
//! - [`testbed`]: the node it is measured on.

pub mod add;
pub mod agent;
pub mod contender;
pub mod datapath;
pub mod figures;
pub mod floor;
pub mod machine;
pub mod made_before;
pub mod pool;
pub mod programs;
mod svg;
pub mod testbed;
pub mod timeline;
mod verifier;
