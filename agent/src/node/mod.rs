//! The node: its NICs and addresses, and the routing each NIC with pods needs in the host.

mod apply;
mod current;
mod facts;
mod host;
mod plan;

pub use apply::{Error as HostError, apply, steer};
pub use current::CurrentFacts;
pub use facts::{Nic, NodeFacts, is_pod_veth};
pub use host::{HostPlan, STEER, carriers, default_networks, host_plan, veth_filters};
pub use plan::{PoolNetwork, forwarding, nic_plan, nic_table, pods_rules};
