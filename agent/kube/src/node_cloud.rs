//! What an agent tells the cluster of the addresses that the cloud gave its node, and what it is asked to give back. Pure.
//!
//! Each node has a ConfigMap of its own, made by the controller and owned by the Node, so that it goes with it. The agent
//! writes one key, [`TOLD`]. Who takes addresses away from NICs writes the other one, [`ASKED`]: it may take those only
//! that the agent names in [`NodePool::surrendered`].

use std::collections::BTreeMap;

use ebbtide_types::{Family, Mac};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The label of the ConfigMaps.
pub const LABEL: &str = "ebbtide.io/node-cloud";

/// The prefix of a ConfigMap's name, before the node's.
const PREFIX: &str = "ebbtide-cloud.";

/// The key that the agent writes: a [`NodeCloud`].
pub const TOLD: &str = "told.json";

/// The key of what the agent is asked to give back: an [`Asked`].
pub const ASKED: &str = "asked.json";

/// The version of both formats. Who reads a newer one does nothing.
pub const VERSION: u32 = 1;

/// Returns the name of a node's ConfigMap.
#[must_use]
pub fn map_of(node: &str) -> String {
    format!("{PREFIX}{node}")
}

/// The addresses that the cloud gave to a node's NICs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCloud {
    /// The format's version.
    pub version: u32,
    /// The node's name.
    pub node: String,
    /// The cloud, as in the setting `cloud`.
    pub cloud: String,
    /// The NICs whose addresses networks or pods want.
    pub nics: Vec<NodeNic>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeNic {
    /// The cloud's name of it, as in `eni-0a1b2c3d`; empty where the metadata tells none.
    pub id: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its name on the node: the master of networks.
    pub link: String,
    /// The pods that wait for an address of it, by family, for which no pool need exist.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waiting: BTreeMap<Family, u64>,
    /// What was assigned to it, whole: an address is a prefix of one. Held blocks are not among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<IpNet>,
    /// The pools of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<NodePool>,
}

/// A derived pool, with the states of its addresses as sets in text ([`ebbtide_ipam::catalog::AddressSet`]).
///
/// An address that is in none of the sets but `ranges` is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePool {
    /// The pool's name.
    pub name: String,
    /// The networks that it serves, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Its family.
    pub family: Family,
    /// Its subnet.
    pub subnet: IpNet,
    /// Its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<std::net::IpAddr>,
    /// The addresses that pods may have.
    pub ranges: String,
    /// Those that pods have.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub used: String,
    /// Those that nobody has and nobody gets now: they cool down, are reserved for a pod, or are not believed yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resting: String,
    /// Those that the cloud does not tell any more: who has one keeps it. They need not be in `ranges`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub held: String,
    /// Those that were asked back ([`Asked`]), that nobody has, and that the agent gives to nobody as long as they are
    /// asked back, and for twenty minutes more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub surrendered: String,
}

/// What the agent is asked to give back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// The format's version.
    pub version: u32,
    /// Addresses, by NIC ([`NodeNic::id`]), each as a set in text for each family. A used one stays its pod's, and is
    /// surrendered when the pod has gone.
    pub back: BTreeMap<String, BTreeMap<Family, String>>,
}
