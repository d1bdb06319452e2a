//! The host's side of the node agent: the node's links and their roles, its addresses, and the routing that NICs with
//! pods need in the host.

mod apply;
mod current;
mod facts;
mod filters;
mod front;
mod gateways;
mod host;
mod interest;
mod plan;
mod redirect_device;
mod reverse_path;
mod role;
mod strict;
mod values;

pub use apply::{Error as HostError, Pods, apply, take_away};
pub use current::CurrentFacts;
pub use facts::{ALIAS, Nic, NodeFacts, is_link_local, is_pod_veth};
pub use filters::veth_filters;
pub use front::{Routed, base_in_front, free_priorities, in_front};
pub use gateways::own_defaults;
pub use host::{HostPlan, host_plan, nics};
pub use interest::{Attention, Interest};
pub use plan::{
    Behind, PRIORITIES, PoolNetwork, Rules, forwarding, nic_plan, nic_table, pods_rules,
};
pub use redirect_device::{REDIRECT_DEVICE, find_redirect_device, redirect_device};
pub use role::{Known, Role, Taken, take, take_all};
pub use strict::{Strict, is_strict, strict};
pub use values::Values;
