//! The agent's side of Kubernetes: API types, what is read from the API server and what is written.
//!
//! Reading: [`watches`] keeps a [`mirror`] of what this node needs (trimmed, on disk too), which
//! [`cluster`] makes the catalog of and answers requests from.

pub mod attachment;
pub mod client;
pub mod cluster;
pub mod crds;
#[expect(
    clippy::duplicated_attributes,
    reason = "every printer column has a type_"
)]
pub mod endpoint;
pub mod mirror;
pub mod networks;
pub mod object;
mod saved;
mod watches;

pub use client::connect;
pub use cluster::{Cluster, KnownPod, Unknown};
