//! Tests for any kernel in which root may load eBPF programs: the programs alone, the strict VPC itself, and the agent
//! without pods on ipvlan.
//!
//! They run in this machine's kernel, and again in each other one whose verifier, JIT or netfilter may give another
//! result. Tests that need ipvlan belong in `lab`, those that need Kubernetes' programs in `kube`.

mod asking;
mod bench;
mod chained;
mod crowd;
mod doctor;
mod foreign_addresses;
mod fuzz;
mod held_addresses;
mod host_programs;
mod host_root;
mod hostile;
mod isolation;
mod limits;
mod metadata_double;
mod metadata_guard;
mod metrics;
mod netlink;
mod network_managers;
mod nic_links;
mod others_routes;
mod others_rules;
mod page;
mod pool_kill;
mod programs;
mod protocols;
mod real_packages;
mod refused;
mod removed_files;
mod requests;
mod resources;
mod responder;
mod service_proxy;
mod slow_requests;
mod strict_vpc;
mod traces;
mod uninstall;
