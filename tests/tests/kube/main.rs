//! What needs a real Kubernetes: an API server of the tests' own, a node, or (`e2e`) a whole cluster.
//!
//! It runs in this machine's kernel, which need not have ipvlan: a pod on it is in `e2e` alone, whose nodes are guests.
//! Where Kubernetes' programs are missing, each test says so and is skipped.

mod account_objects;
mod account_policies;
mod accounts;
mod api;
mod attempt;
mod cel;
mod controller_policies;
mod controllers;
mod declared;
mod e2e;
mod leases;
mod manifests;
mod names;
mod node;
mod objects;
mod refusals;
mod service_networks;
mod service_proxy;
mod setup;
mod table;
mod takeover;
