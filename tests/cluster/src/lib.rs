//! A real Kubernetes cluster from plain binaries.
//! It has etcd, API server, controllers and scheduler, and nodes with containerd, kubelet and kube-proxy, in namespaces
//! of this kernel or as machines with a kernel of their own. Releases of Kubernetes since 1.20 and of containerd since
//! 1.6 are supported: each gets the options that it knows.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use ebbtide_cluster::{ControlPlane, Options};
//! let Some(cluster) = ControlPlane::start(Options::default())? else {
//! return Ok(()); // no binaries here, and it said so
//! };
//! cluster.kubectl(&["create", "namespace", "n"])?;
//! println!("{}", cluster.kubeconfig().display());
//! # Ok(())
//! # }
//! ```
//!
//! Nothing is installed, and unless a place is given, nothing listens but on loopback. Any number of clusters can run
//! at the same time. Their processes end with this one, for whatever reason it ends.

mod account;
mod binaries;
mod control_plane;
mod controller;
pub mod images;
mod kubectl;
mod log;
mod machine;
mod member;
mod mode;
mod node;
mod parts;
mod pki;
mod ports;
mod release;
mod runtime;
mod service_proxy;

pub use binaries::Binaries;
pub use control_plane::{ControlPlane, Options, Place};
pub use controller::Controller;
pub use machine::Machine;
pub use member::Member;
pub use mode::ProxyMode;
pub use node::Node;
pub use release::Release;
pub use runtime::Runtime;
pub use service_proxy::ServiceProxy;
