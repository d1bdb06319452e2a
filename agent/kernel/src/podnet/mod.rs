//! A pod's network as a value. [`plan`](plan()) computes it without side effects; ADD applies it, CHECK compares it
//! with the kernel, DEL and garbage collection remove it, a restarted agent repairs it, and `ebbtidectl explain` prints
//! it. Nothing else in the agent depends on what a pod's network looks like.

mod apply;
mod check;
mod existing;
mod explain;
mod foreign_addresses;
mod foreign_interfaces;
mod limit;
mod links;
mod metadata;
mod model;
mod ours;
mod plan;
mod remove;
mod replan;
mod responder;
mod source;
#[cfg(test)]
mod tests;

pub use apply::{Links, apply};
pub use check::{check, is_attached};
pub use foreign_addresses::{Reverted, revert};
pub use foreign_interfaces::{ForeignInterfaces, ForeignRouting, has_alias};
pub use model::{Delegate, Existing, NetworkSpec, PlanError, PodAddress, PodNet, Sandbox};
pub use plan::plan;
pub use remove::{forget, remove, remove_from_network};
pub use replan::{difference, prune, replan};

use ebbtide_types::IpvlanMode;

/// An error while applying or removing a plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an operation.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
    /// A map or program is unusable.
    #[error(transparent)]
    Datapath(#[from] crate::datapath::Error),
    /// The pod's namespace no longer exists, or its path refers to another one.
    #[error("the network namespace {} is gone: did the container end meanwhile?", .0.display())]
    NamespaceGone(std::path::PathBuf),
    /// The master cannot have children: something else uses it.
    #[error("{source}: {holder}")]
    MasterTaken {
        /// The kernel's refusal.
        source: crate::netlink::Error,
        /// What uses the master.
        holder: String,
        /// What can be done about it.
        hint: String,
    },
    /// The kernel has no ipvlan (`rtnl_newlink`, net/core/rtnetlink.c: no such kind of device).
    #[error("{0}: this kernel has no ipvlan")]
    NoIpvlan(#[source] crate::netlink::Error),
    /// The kernel has no queueing discipline `fq`, which a limit of what the pod sends needs.
    #[error("{0}: this kernel has no sch_fq, by which a pod's egress bandwidth is limited")]
    NoFairQueue(#[source] crate::netlink::Error),
    /// A link of the desired name exists already.
    #[error("{name} already exists {place}: {what}")]
    LinkTaken {
        /// The name.
        name: String,
        /// The namespace.
        place: String,
        /// A description of the existing link.
        what: String,
    },
    /// Foreign children of the master have another mode, which a new child would change.
    #[error(
        "{master} has foreign ipvlan interfaces in mode {theirs}, and an interface in mode \
         {mode} would change theirs: {siblings}"
    )]
    ModeConflict {
        /// Name of the NIC.
        master: String,
        /// The requested mode.
        mode: IpvlanMode,
        /// The mode of the existing children.
        theirs: IpvlanMode,
        /// The existing children.
        siblings: String,
    },
    /// The error came before any link was created: there is nothing to remove.
    #[error(transparent)]
    NothingMade(Box<Self>),
    /// A link that was just created, or must exist, does not.
    #[error("the link {name} is not there {place}: did somebody remove it just now?")]
    LinkGone {
        /// Its name.
        name: String,
        /// The namespace.
        place: String,
    },
}
