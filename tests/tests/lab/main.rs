//! Tests that need ipvlan: the real binaries in the strict VPC, with pods on the nodes' NICs.
//!
//! Few kernels of clouds and CI have ipvlan. Without it these tests run in a guest, and they are an executable of their
//! own because of the guest's boot. Tests that need no ipvlan belong in `native`, those that need Kubernetes' programs
//! in `kube`.

mod alerts;
mod balancer;
mod bandwidth;
mod beside;
mod chained;
mod clients;
mod cloud;
mod cloud_chain;
mod crowd;
mod damaged_pins;
mod existing_interfaces;
mod failed_adds;
mod faults;
mod flows_and_trace;
mod gateways;
mod held_addresses;
mod hostile_pod;
mod in_the_way;
mod ipv6_off;
mod lifecycle;
mod marks;
mod masquerade;
mod metadata;
mod metrics;
mod modes;
mod mtu;
mod newer_formats;
mod nft;
mod nft_proxy;
mod nics;
mod node_changes;
mod node_services;
mod node_source;
mod odd_links;
mod older_qdisc;
mod others_modes;
mod own_addresses;
mod plain_network;
mod protocols;
mod real_packages;
mod removal;
mod renamed;
mod repair;
mod repeated;
mod reply_rule;
mod requests;
mod restart;
mod rows;
mod runtimes;
mod several_nics;
mod shared_subnets;
mod slow_pods;
mod substitutes;
mod upgrade;
mod vlan;
