//! The node: its NICs and addresses, and the routing each NIC with pods needs in the host.

mod facts;
mod plan;

pub use facts::{Nic, NodeFacts, is_pod_veth};
pub use plan::{PoolNetwork, forwarding, nic_plan, nic_table};
