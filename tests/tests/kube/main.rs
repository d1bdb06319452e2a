//! Tests that need a real Kubernetes: an API server of the test's own, a node, or (`e2e`) a whole cluster.
//!
//! They run in this machine's kernel, which need not have ipvlan: only `e2e` has pods with interfaces, and its nodes
//! are guests. Without Kubernetes' programs, each test is skipped with a message.

mod account_objects;
mod account_policies;
mod account_rules;
mod accounts;
mod alerts;
mod api;
mod attempt;
mod cel;
mod cloud;
mod cluster_page;
mod controller_policies;
mod controllers;
mod declared;
mod e2e;
mod given_back;
mod leases;
mod manifests;
mod metrics;
mod names;
mod node;
mod objects;
mod published;
mod refusals;
mod service_networks;
mod service_proxy;
mod setup;
mod table;
mod takeover;
mod uninstall;
