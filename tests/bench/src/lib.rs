//! Benchmarks, beside what people use today and beside the kernel's own work.
//!
//! - [`pool`]: allocations of addresses, on one disk;
//! - [`add`]: ADD and DEL of a pod, by each [`contender`], down to the [`floor`], and behind an interface that was
//!   [`made_before`];
//! - [`agent`]: the agent's memory, its time until it is ready, its CPU at rest;
//! - [`datapath`]: what a packet pays for the path of its reply, beside iptables;
//! - [`programs`]: the cost of each eBPF program, and what the kernel's verifier reports;
//! - [`figures`], [`timeline`], [`machine`]: results as tables, pictures and JSON;
//! - [`testbed`]: the node of the measurements.

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
