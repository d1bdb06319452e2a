//! What any kernel runs that lets root load eBPF programs: the programs alone, the strict VPC itself, and what the
//! agent does without a pod on ipvlan.
//!
//! It runs in this machine's kernel, and again in each other one whose verifier, JIT or netfilter may come to another
//! end. What needs ipvlan belongs in `lab`, and what needs Kubernetes' programs in `kube`.

mod asking;
mod bench;
mod chained;
mod crowd;
mod doctor;
mod foreign_addresses;
mod fuzz;
mod host_programs;
mod host_root;
mod hostile;
mod isolation;
mod netlink;
mod nic_links;
mod others_routes;
mod others_rules;
mod pool_kill;
mod programs;
mod protocols;
mod refused;
mod requests;
mod resources;
mod responder;
mod service_proxy;
mod slow_requests;
mod strict_vpc;
mod uninstall;
