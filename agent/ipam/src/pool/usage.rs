//! How full the pools are.

use std::net::IpAddr;

use ebbtide_types::{Family, NetworkRef};
use ipnet::IpNet;
use serde::Serialize;

/// A pool of the catalog and how much of it is in use on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolUsage {
    /// Its name.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// Its subnet.
    pub subnet: IpNet,
    /// How many addresses it may hand out.
    pub total: u128,
    /// How many it would have besides, did no SpiderReservedIP keep them free.
    pub reserved: u128,
    /// How many are held, whichever pool they were assigned from, and also if they are reserved now.
    pub used: u64,
    /// How many rest after their release.
    pub in_cooldown: u64,
    /// Neither held nor cooling down, and not handed out for now: each with the reason.
    pub withheld: Vec<(IpAddr, String)>,
    /// How many could be handed out now.
    pub free: u128,
    /// The nodes it is for; empty: any.
    pub node_names: Vec<String>,
    /// The networks it is for; empty: any.
    pub networks: Vec<NetworkRef>,
    /// Whether it is a default pool.
    pub default: bool,
    /// Whether it gives no new addresses.
    pub disabled: bool,
}
