//! The usage of the pools.

use std::net::IpAddr;

use ebbtide_types::{Family, NetworkRef};
use ipnet::IpNet;
use serde::Serialize;

use crate::catalog::{AddressSet, PoolSource};

/// What is not free of some addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Those that pods have.
    pub used: AddressSet,
    /// Those that no pod has and none gets: they cool down, are reserved for a pod, or are the node's own or a router's.
    pub resting: AddressSet,
}

/// A pool of the catalog and its usage on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolUsage {
    /// Its name.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// Its subnet.
    pub subnet: IpNet,
    /// The number of addresses that it may hand out.
    pub total: u128,
    /// The number of addresses that SpiderReservedIPs exclude in addition.
    pub reserved: u128,
    /// The number of held addresses, whichever pool they were assigned from, and also if they are reserved now.
    pub used: u64,
    /// The number of addresses that cool down after their release.
    pub in_cooldown: u64,
    /// Addresses withheld for now, neither held nor cooling down, each with the reason.
    pub withheld: Vec<(IpAddr, String)>,
    /// The number of addresses that nobody holds and that the cloud controller asks for back: nobody gets one.
    pub asked_back: u128,
    /// The number of addresses that could be handed out now.
    pub free: u128,
    /// The nodes that it is for; empty: any.
    pub node_names: Vec<String>,
    /// The networks that it is for; empty: any.
    pub networks: Vec<NetworkRef>,
    /// Whether it is a default pool.
    pub default: bool,
    /// Whether it hands out no new addresses.
    pub disabled: bool,
    /// Who made it.
    #[serde(skip)]
    pub source: PoolSource,
}
