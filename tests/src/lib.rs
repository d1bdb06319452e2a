//! The strict VPC: a test network that forgives nothing, and what is proven in it.
//!
//! A forgiving network hides the bugs that matter: a reply with the right address from the wrong
//! NIC reaches its client on a bench, and is silently dropped by every cloud. This network drops
//! it too, and counts it.
//!
//! The modules, from the ground up:
//!
//! - [`netns`], [`netlink`], [`iptables`], [`nft`]: anonymous network namespaces and what is put in them;
//! - [`plan`], [`vpc`], [`strict`], [`edge`]: the VPC as data, its construction, its strictness,
//!   its gateways;
//! - [`traffic`], [`ping`]: servers that say whom they saw, clients that say what they got;
//! - [`packet`], [`packet_socket`], [`tap`], [`path`]: packets as seen on the wires, and the way they took;
//! - [`proxy`]: what kube-proxy's rules do, without Kubernetes;
//! - [`agent`], [`manifests`], [`cni`], [`pod`], [`lab`]: the real binaries in this network;
//! - [`crowd`]: a node with everything on it that other people have on theirs, and all of its traffic as a matrix;
//! - [`nic_programs`]: what they attached to a node's links, and taking it off;
//! - [`two_ways`]: a pod that is reached straight and through its node, and by which way it answers;
//! - [`programs`]: each eBPF program alone, with packets nobody would send;
//! - [`bench`]: how fast addresses are, beside host-local, and what each program costs; [`victim`]: a
//!   process to kill while it takes addresses;
//! - [`fuzz`]: what comes from outside, damaged at random: read by what reads it, and sent to a running agent;
//! - [`skip`]: saying that something for a test is not on this machine;
//! - [`cluster`], [`process`]: a real Kubernetes from plain binaries;
//! - [`e2e`]: all of it on a real cluster, as a table;
//! - [`demo`]: every kind of traffic, as a table a person can read.
//!
//! Everything lives in namespaces held by file descriptors of this process: when it ends, however
//! it ends, the kernel removes them.

pub mod agent;
pub mod bench;
mod bpf;
pub mod chain;
pub mod cluster;
pub mod cni;
pub mod crowd;
pub mod demo;
pub mod e2e;
pub mod edge;
pub mod family;
pub mod foreign;
pub mod fuzz;
pub mod guest;
pub mod iptables;
pub mod lab;
pub mod manifests;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod nic_programs;
pub mod others_routes;
pub mod packet;
pub mod packet_socket;
pub mod path;
pub mod patience;
pub mod ping;
pub mod plan;
pub mod pod;
pub mod process;
pub mod programs;
mod progress;
pub mod proxy;
pub mod random;
pub mod snapshot;
pub mod strict;
pub mod tap;
pub mod traffic;
pub mod two_ways;
pub mod victim;
pub mod vpc;
pub mod workspace;

pub use xtask::skip;
