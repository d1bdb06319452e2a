//! Ebbtide's node agent: pods on the node's own NICs, replies by the interface they came in on.
//!
//! The path of one ADD: [`server`] → [`cni`] (parse, authenticate) → [`ebbtide_ipam::catalog`] (which network, which
//! pools) → [`ebbtide_ipam::pool`] (addresses, written to disk) → [`ebbtide_kernel::podnet`] (the plan) →
//! [`ebbtide_kernel::netlink`] and [`ebbtide_kernel::datapath`] (the kernel). See `ARCHITECTURE.md`.

pub mod agent;
pub mod cloud;
pub mod cni;
pub mod doctor;
pub mod heap;
pub mod host_root;
pub mod http;
pub mod install;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod page;
pub mod probe;
pub mod program;
pub mod query;
pub mod reconcile;
pub mod server;
pub mod terminal;
pub mod traces;
pub mod uninstall;
