//! The strict VPC: a test network that forgives nothing, with real agents, pods and peers in it.
//!
//! A forgiving network hides the bugs that matter: a reply with the right address from the wrong
//! NIC reaches its client on a bench, and is silently dropped by every cloud. This network drops
//! it too, and counts it.
//!
//! The modules, from the ground up:
//!
//! - [`netns`], [`netlink`], [`iptables`], [`nft`], [`snapshot`]: anonymous network namespaces, what is put in them,
//!   and what is in them;
//! - [`plan`], [`vpc`], [`strict`], [`edge`]: the VPC as data, its construction, its strictness,
//!   its gateways;
//! - [`metadata`]: the double of five clouds' metadata services, which tells what the VPC assigned;
//! - [`traffic`], [`ping`]: servers that say whom they saw, clients that say what they got;
//! - [`packet`], [`packet_socket`], [`tap`], [`path`]: packets as seen on the wires, and the way they took;
//! - [`proxy`]: what kube-proxy's rules do, without Kubernetes;
//! - [`agent`], [`manifests`], [`cni`], [`foreign`], [`pod`], [`lab`]: the real binaries in this network, and other
//!   people's plugins beside them; [`image`]: the programs that clouds' images run on a node;
//! - [`bpf`], [`nic_programs`]: what others attached to a node's links, and taking it off;
//! - [`process`], [`workspace`]: programs to be started, and where those of this repository are;
//! - [`patience`], [`progress`]: waiting for what comes about in time, and saying what is being done;
//! - [`random`]: numbers that a seed repeats;
//! - [`skip`]: saying that something for a test is not on this machine.
//!
//! Everything lives in namespaces held by file descriptors of this process: when it ends, however
//! it ends, the kernel removes them.
//!
//! # Examples
//!
//! ```no_run
//! use std::net::SocketAddr;
//!
//! use ebbtide_vpc::{
//!     lab::Lab,
//!     plan::{Family, Plan},
//!     traffic::{Client, Protocol, Server},
//! };
//!
//! // Two nodes with two NICs each, and an agent on both.
//! let lab = Lab::start(Plan::default())?;
//! let pod = lab.pod("master", "ens5", "web")?;
//! let address = Plan::web_server(Family::V4);
//! let _servers = Server::on(&lab.vpc.world, address, 80)?;
//!
//! // The pod asks a server outside; the VPC drops nothing that it sent.
//! let answer = Client::new(&pod.netns, Protocol::Tcp).ask(SocketAddr::new(address, 80))?;
//! assert_eq!(answer.seen_as.ip(), Plan::NAT);
//! lab.vpc.assert_no_violations()?;
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod agent;
mod assigned;
pub mod bpf;
pub mod cni;
mod delivery;
pub mod edge;
pub mod family;
pub mod footprint;
pub mod foreign;
pub mod image;
pub mod iptables;
pub mod lab;
pub mod manifests;
pub mod metadata;
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
pub mod progress;
pub mod proxy;
pub mod random;
pub mod scrape;
pub mod snapshot;
pub mod strict;
pub mod tap;
pub mod traffic;
pub mod vpc;
pub mod workspace;

pub use xtask::skip;
