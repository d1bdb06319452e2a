//! The agent's side of the CNI protocol: reads what the plugin passes on, carries it out, and returns what the plugin
//! prints. See the CNI specification, sections 1 and 2.

mod add;
mod bandwidth;
mod chained;
mod config;
mod conflict;
mod container;
pub mod delegate;
mod failure;
mod foreign;
mod invocation;
mod no_effect;
mod nulls;
mod previous;
mod result;
#[cfg(test)]
mod tests;
mod verbs;
mod wanted;

pub use config::{NamedPools, NetConf, NetworkChoice};
pub use failure::Failure;
pub use invocation::{Attachment, PodIdentity};
pub use result::AddResult;
pub use verbs::handle;
