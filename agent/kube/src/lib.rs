//! The agent's Kubernetes side: API types, reads from and writes to the API server.
//!
//! Reading: `watches` keeps a [`mirror`] of what this node needs (trimmed, also on disk), from which [`cluster`]
//! makes the catalog and answers requests. Writing: [`publish`] for this node's pods, [`leases`] for its share
//! of pools. The [`controller`], a process of its own, does the cluster-wide work while [`leader`] elects it.

pub mod attachment;
mod attachments;
pub mod calls;
mod changes;
mod cidrs;
pub mod client;
pub mod cloud_map;
pub mod cluster;
pub mod controller;
pub mod crds;
mod derived_pools;
#[expect(
    clippy::duplicated_attributes,
    reason = "every printer column has a type_"
)]
pub mod endpoint;
pub mod events;
mod evidence;
pub mod leader;
mod lease_map;
mod lease_table;
pub mod leases;
pub mod mirror;
pub mod networks;
pub mod node_cloud;
pub mod object;
mod pools;
pub mod publish;
mod published;
pub mod remote;
mod saved;
mod service_cidrs;
pub mod sticky;
pub mod takeover;
pub mod uninstall;
pub mod usage;
mod watches;

pub use calls::ApiCalls;
pub use changes::Changes;
pub use client::{connect, connect_counting};
pub use cluster::{Cluster, Unknown};
pub use lease_table::{BadLease, LeaseTable};
pub use leases::Leases;
