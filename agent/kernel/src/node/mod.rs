//! The host's side of the node agent: the node's links and their roles, its addresses, and the routing that NICs with
//! pods need in the host.

mod apply;
mod current;
mod facts;
mod front;
mod host;
mod interest;
mod plan;
mod role;
mod strict;
mod values;

pub use apply::{
    Error as HostError, Pods, apply, find_redirect_device, redirect_device, take_away,
};
pub use current::CurrentFacts;
pub use facts::{ALIAS, Nic, NodeFacts, is_link_local, is_pod_veth};
pub use front::{Routed, base_in_front, free_priorities, in_front};
pub use host::{HostPlan, REDIRECT_DEVICE, host_plan, nics, own_defaults, veth_filters};
pub use interest::{Attention, Interest};
pub use plan::{
    Behind, PRIORITIES, PoolNetwork, Rules, forwarding, nic_plan, nic_table, pods_rules,
};
pub use role::{Known, Role, Taken, take, take_all};
pub use strict::{Strict, is_strict, strict};
pub use values::Values;
