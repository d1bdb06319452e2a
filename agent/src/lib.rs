//! Ebbtide's node agent: pods on the node's own NICs, replies by the interface they came in on.
//!
//! One ADD's way through the house: [`server`] → [`cni`] (parse, authenticate) → [`catalog`]
//! (which network, which pools) → [`pool`] (addresses, written to disk) → [`podnet`] (the plan)
//! → [`netlink`] and [`datapath`] (the kernel). Imports point this way only; see
//! `ARCHITECTURE.md`.

pub mod agent;
pub mod catalog;
pub mod cni;
pub mod datapath;
pub mod digest;
pub mod doctor;
pub mod heap;
pub mod host_root;
pub mod install;
pub mod kube;
pub mod log;
pub mod netfilter;
pub mod netlink;
pub mod node;
pub mod podnet;
pub mod pool;
pub mod printable;
pub mod private;
pub mod program;
pub mod query;
pub mod reconcile;
pub mod replace;
pub mod server;
pub mod settings;
pub mod timing;
pub mod yaml;
