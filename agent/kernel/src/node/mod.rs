//! The host's side of the node agent: the node's links and their roles, its addresses, and the routing that NICs with
//! pods need in the host.

mod apply;
mod current;
mod facts;
mod filters;
mod gateways;
mod host;
mod interest;
mod leftovers;
mod local_rule;
mod plan;
mod redirect_device;
mod reverse_path;
mod role;
mod rp_filter;
mod rule_priority;
mod values;

pub use apply::{Error as HostError, Pods, apply, remove};
pub use current::CurrentFacts;
pub use facts::{ALIAS, Nic, NodeFacts, is_link_local, is_pod_veth};
pub use filters::veth_filters;
pub use gateways::own_defaults;
pub use host::{HostPlan, host_plan, nics};
pub use interest::{Interest, Subscription};
pub use leftovers::{Leftover, Leftovers, is_on_bpffs};
pub use local_rule::{is_local_rule, local_rules, put_before_local};
pub use plan::{
    NicNetworks, PRIORITIES, PoolNetwork, Rules, forwarding, nic_plan, nic_table, pods_rules,
};
pub use redirect_device::{REDIRECT_DEVICE, find_redirect_device, redirect_device};
pub use role::{Classification, Known, Role, classify, classify_all, is_nic_as_master};
pub use rp_filter::{StrictRpFilter, is_strict, strict_rp_filters};
pub use rule_priority::{Routed, free_priorities, preceding_base, preceding_rules};
pub use values::Values;
