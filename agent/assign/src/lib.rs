//! The one controller that asks a cloud for more addresses, and gives back what nobody needs.
//!
//! Off by default. It is a process of its own with an identity of its own: no node has its rights. What nodes have and
//! need, their agents write down ([`ebbtide_kube::node_cloud`]). [`plan`] decides, and is pure; `run` carries it out, while
//! a Lease says that this controller is the one; [`ec2`] is what it talks with.

pub mod credentials;
#[cfg(test)]
mod double;
pub mod ec2;
mod endpoint;
mod form;
mod options;
pub mod plan;
mod refusal;
mod run;
mod sign;
pub mod throttle;
mod transport;
mod xml;

pub use endpoint::{BadEndpoint, Endpoint};
pub use options::{Options, OptionsError};
pub use refusal::{Reason, Refusal};
pub use run::{Finished, NAME, run};
pub use sign::SignError;
pub use transport::{BadAuthorities, Transport, TransportError};
pub use xml::BadAnswer;
