//! A real Kubernetes from plain binaries: etcd, API server, controllers, scheduler; nodes with
//! containerd, kubelet and kube-proxy, in namespaces of this kernel or as machines with one of
//! their own.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use ebbtide_tests::cluster::{ControlPlane, Options};
//! let Some(cluster) = ControlPlane::start(Options::default())? else {
//!     return Ok(()); // no binaries here, and it said so
//! };
//! cluster.kubectl(&["create", "namespace", "n"])?;
//! println!("{}", cluster.kubeconfig().display());
//! # Ok(())
//! # }
//! ```
//!
//! Nothing is installed and nothing listens but on loopback, unless a place is given; any number of
//! clusters run beside each other. The processes end with this one, however it ends.

mod binaries;
mod control_plane;
pub mod images;
mod machine;
mod member;
mod node;
mod parts;
mod pki;

pub use binaries::Binaries;
pub use control_plane::{ControlPlane, Options, Place};
pub use machine::Machine;
pub use member::{Member, Times};
pub use node::Node;
