//! A pod's network as a value. [`plan`](plan()) makes it, purely; ADD applies it, CHECK compares
//! it with the kernel, DEL and garbage collection remove it, a restarted agent puts it right, and
//! `ebbtidectl explain` prints it. Nothing else in the agent knows what a pod's network looks like.

mod answer;
mod apply;
mod beside;
mod check;
mod explain;
mod links;
mod model;
mod others;
mod plan;
mod remove;
mod replan;
mod strangers;
#[cfg(test)]
mod tests;

pub use apply::{Links, apply};
pub use check::{check, is_attached};
pub use model::{Delegate, Existing, NetworkSpec, PlanError, PodAddress, PodNet, Sandbox};
pub use others::{Others, marks_in};
pub use plan::plan;
pub use remove::{forget, remove};
pub use replan::{prune, replan};
pub use strangers::{Undone, undo};

use ebbtide_types::IpvlanMode;

/// Applying or removing a plan failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an operation.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
    /// A map or program could not be used.
    #[error(transparent)]
    Datapath(#[from] crate::datapath::Error),
    /// The pod's namespace is not there, or its path leads to another one.
    #[error("the network namespace {} is gone: did the container end meanwhile?", .0.display())]
    NamespaceGone(std::path::PathBuf),
    /// The master cannot have children: something else has it.
    #[error("{source}: {holder}")]
    MasterTaken {
        /// What the kernel refused.
        source: crate::netlink::Error,
        /// Who has it.
        holder: String,
        /// What can be done.
        hint: String,
    },
    /// The name of a link that was to be made is taken.
    #[error("{name} is there already {place}: {what}")]
    LinkTaken {
        /// The name.
        name: String,
        /// In which namespace.
        place: String,
        /// What it is, in words.
        what: String,
    },
    /// Others' children of the master have another mode, which a new child would change.
    #[error(
        "{master} has ipvlan interfaces of others in mode {theirs}, and would give them mode {mode}: {siblings}"
    )]
    ModeConflict {
        /// Name of the NIC.
        master: String,
        /// The mode that was asked for.
        mode: IpvlanMode,
        /// That of the children that are there.
        theirs: IpvlanMode,
        /// Who they are.
        siblings: String,
    },
    /// It failed before any link was made: there is nothing to remove.
    #[error(transparent)]
    NothingMade(Box<Self>),
    /// A link that was just made, or must be there, is not.
    #[error("the link {name} is not there {place}: did somebody remove it just now?")]
    LinkGone {
        /// Its name.
        name: String,
        /// In which namespace.
        place: String,
    },
}
