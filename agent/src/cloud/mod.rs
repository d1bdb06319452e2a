//! What the cloud has assigned to this node's NICs, as its metadata service tells, followed safely.
//!
//! [`follow`] reads the service, the ledger (`ebbtide_cloud::ledger`) decides what may be believed, [`derive`] makes pools of
//! it, and [`Cloud`] is what the rest of the agent sees of it.

mod derive;
mod follow;
#[cfg(test)]
mod histories;
mod report;
mod state;
mod wait;

pub(crate) use follow::{Parts, follow};
pub use report::{BlockLine, BlockState, CloudNicLine, CloudReport};
pub use state::Cloud;
pub(crate) use wait::Wait;
