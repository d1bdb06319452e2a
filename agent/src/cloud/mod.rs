//! What the cloud has assigned to this node's NICs, as its metadata service tells, followed safely.
//!
//! [`follow`] reads the service, the ledger (`ebbtide_cloud::ledger`) decides what may be believed, [`derive`] makes pools of
//! it, and [`Cloud`] is what the rest of the agent sees of it. In a cluster, [`told`] is what others are told of it, and
//! [`surrender`] decides what is given back when the cloud controller asks for it.

mod derive;
mod follow;
#[cfg(test)]
mod histories;
mod report;
mod sets;
mod share;
mod state;
mod surrender;
pub(crate) mod surrendered;
mod told;
mod wait;
mod waiting;

pub(crate) use follow::{Parts, follow};
pub use report::{AskedBackLine, BlockLine, BlockState, CloudNicLine, CloudReport};
pub(crate) use sets::Sets;
pub(crate) use share::Sharing;
pub use state::Cloud;
pub(crate) use surrendered::FILE as ASKED_FILE;
pub(crate) use wait::Wait;
