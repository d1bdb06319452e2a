//! The SpiderIPPools that show people what agents have derived from the cloud: what is to be there. Pure.
//!
//! What an agent tells is a claim of one node. So a pool has the form of that node's own ones, is for that node alone, and
//! its networks are looked up here.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_ipam::catalog::{
    AddressSet, Addresses, Catalog, DERIVED, OF_NODE, manifest::API_VERSION, published_for,
};
use ebbtide_types::Family;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

use super::{
    cloud_map::owner,
    node_cloud::{NodeCloud, NodeNic, NodePool},
    object::Kind,
};

/// How many ranges a pool can have (the schema of SpiderIPPool).
const MOST_RANGES: usize = 4096;

/// The longest value of a label.
const LONGEST_LABEL: usize = 63;

/// A pool that is to be published.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DerivedPool {
    /// Its node.
    pub(super) node: String,
    /// The Node's UID.
    uid: String,
    /// Where the agent has it from, as in `aws eni-0a1b2c3d`.
    source: String,
    spec: Value,
    /// The addresses that pods may have.
    pub(super) ranges: AddressSet,
    /// Those, and what pods have beside them.
    claimed: AddressSet,
}

/// Two nodes whose cloud tells both of one address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Twice {
    /// The first address that both claim.
    pub(super) address: IpAddr,
    /// The pool of the one.
    pub(super) pool: String,
    /// The pool of the other.
    pub(super) other: String,
}

/// Returns the pools by name, and the parts of reports that cannot be one, in words. `nodes` are the Nodes' UIDs, and
/// `told` what their agents told.
pub(super) fn desired(
    nodes: &BTreeMap<String, String>,
    told: &BTreeMap<String, NodeCloud>,
    declared: &Catalog,
) -> (BTreeMap<String, DerivedPool>, Vec<String>) {
    let mut pools = BTreeMap::new();
    let mut faults = Vec::new();
    for (node, told) in told {
        let Some(uid) = nodes.get(node) else { continue };
        for nic in &told.nics {
            for pool in &nic.pools {
                let wanted = derived(node, uid, &told.cloud, nic, pool, declared);
                match wanted {
                    Ok(wanted) => {
                        // Names of two nodes may come out the same: the first one keeps it.
                        pools.entry(pool.name.clone()).or_insert(wanted);
                    }
                    Err(why) => {
                        faults.push(format!("pool {:?} of node {node} {why}", pool.name));
                    }
                }
            }
        }
    }
    (pools, faults)
}

fn derived(
    node: &str,
    uid: &str,
    cloud: &str,
    nic: &NodeNic,
    pool: &NodePool,
    declared: &Catalog,
) -> Result<DerivedPool, String> {
    let family = pool.family;
    let set = |name: &str, text: &str| {
        AddressSet::parse_list(text, family).map_err(|e| format!("has {name} that {e}: {text:?}"))
    };
    let (ranges, used) = (set("ranges", &pool.ranges)?, set("used", &pool.used)?);
    if Family::of_net(&pool.subnet) != family || !ranges.is_inside(&pool.subnet) {
        return Err(format!("has addresses outside of {}", pool.subnet));
    }
    if ranges.ranges().count() > MOST_RANGES {
        return Err(format!("has more than {MOST_RANGES} ranges"));
    }
    let gateway = pool
        .gateway
        .filter(|gateway| Family::of(*gateway) == family);
    let networks = declared.networks().iter();
    let networks = networks
        .filter(|network| network.addresses == Addresses::Metadata && network.master == nic.link);
    let networks: Vec<String> = networks.map(|network| network.name.to_string()).collect();
    let ips = ranges.ranges().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    let mut spec = json!({
        "ipVersion": match family { Family::V4 => 4, Family::V6 => 6 },
        "subnet": pool.subnet,
        "ips": ips.collect::<Vec<_>>(),
        "nodeName": [node],
        "default": true,
        "disable": false,
    });
    if let Some(gateway) = gateway {
        spec["gateway"] = json!(gateway);
    }
    if !networks.is_empty() {
        spec["multusName"] = json!(networks);
    }
    let id = match nic.id.as_str() {
        "" => nic.mac.to_string(),
        id => id.to_owned(),
    };
    let wanted = DerivedPool {
        node: node.to_owned(),
        uid: uid.to_owned(),
        source: format!("{cloud} {id}"),
        spec,
        claimed: ranges.union(&used),
        ranges,
    };
    // Who reads pools must take it for what it is.
    if published_for(&wanted.metadata(&pool.name)) != Some(node) {
        return Err("has no name of that node's pools".to_owned());
    }
    Ok(wanted)
}

impl DerivedPool {
    fn metadata(&self, name: &str) -> ObjectMeta {
        let label = (self.node.len() <= LONGEST_LABEL).then_some((OF_NODE, &self.node));
        let labels = label.map(|(key, node)| (key.to_owned(), node.clone()));
        ObjectMeta {
            name: Some(name.to_owned()),
            labels: labels.map(|label| [label].into()),
            annotations: Some([(DERIVED.to_owned(), self.source.clone())].into()),
            owner_references: Some(vec![self.owner()]),
            ..ObjectMeta::default()
        }
    }

    fn owner(&self) -> OwnerReference {
        owner(&self.node, &self.uid)
    }

    /// Returns the object to create.
    pub(super) fn object(&self, name: &str) -> Value {
        json!({
            "apiVersion": API_VERSION,
            "kind": Kind::Pool.name(),
            "metadata": self.metadata(name),
            "spec": self.spec,
        })
    }

    /// Whether the object has another subnet, which cannot be changed.
    pub(super) fn is_elsewhere(&self, object: &DynamicObject) -> bool {
        object.data.pointer("/spec/subnet") != self.spec.get("subnet")
            || object.data.pointer("/spec/ipVersion") != self.spec.get("ipVersion")
    }

    /// Returns the merge patch that makes the object what it is to be; none if it is. Fields that somebody added go.
    pub(super) fn patch(&self, object: &DynamicObject) -> Option<Value> {
        let wanted = self.metadata("");
        let meta = &object.metadata;
        let mut metadata = Map::new();
        let differ = |there: Option<&BTreeMap<String, String>>,
                      wanted: &Option<BTreeMap<String, String>>| {
            let wanted = wanted.iter().flatten();
            let differ =
                wanted.filter(|(key, value)| there.and_then(|all| all.get(*key)) != Some(value));
            let differ: BTreeMap<&String, &String> = differ.collect();
            (!differ.is_empty()).then(|| json!(differ))
        };
        if let Some(labels) = differ(meta.labels.as_ref(), &wanted.labels) {
            metadata.insert("labels".into(), labels);
        }
        if let Some(annotations) = differ(meta.annotations.as_ref(), &wanted.annotations) {
            metadata.insert("annotations".into(), annotations);
        }
        if meta.owner_references != wanted.owner_references {
            metadata.insert("ownerReferences".into(), json!(wanted.owner_references));
        }
        let mut spec = Map::new();
        let there = object.data.get("spec").and_then(Value::as_object);
        for (key, value) in self.spec.as_object().into_iter().flatten() {
            if there.and_then(|there| there.get(key)) != Some(value) {
                spec.insert(key.clone(), value.clone());
            }
        }
        // In a merge patch null removes.
        let others = there.into_iter().flatten();
        let others = others.filter(|(key, value)| self.spec.get(key).is_none() && !value.is_null());
        spec.extend(others.map(|(key, _)| (key.clone(), Value::Null)));
        let mut patch = Map::new();
        for (name, part) in [("metadata", metadata), ("spec", spec)] {
            if !part.is_empty() {
                patch.insert(name.into(), part.into());
            }
        }
        (!patch.is_empty()).then(|| patch.into())
    }
}

/// Returns the pools of different nodes that claim one address: one finding for two pools, not for each of their addresses.
pub(super) fn twice(pools: &BTreeMap<String, DerivedPool>) -> Vec<Twice> {
    let mut all: Vec<(IpAddr, IpAddr, &String, &DerivedPool)> = pools
        .iter()
        .flat_map(|(name, pool)| {
            let ranges = pool.claimed.ranges();
            ranges.map(move |(first, last)| (first, last, name, pool))
        })
        .collect();
    all.sort_by_key(|(first, last, name, _)| (*first, *last, *name));
    let mut found: Vec<Twice> = Vec::new();
    // The range that reaches farthest of those before.
    let mut farthest: Option<(IpAddr, &String, &DerivedPool)> = None;
    for (first, last, name, pool) in all {
        if let Some((end, other_name, other)) = farthest
            && end >= first
            && other.node != pool.node
            && !found
                .iter()
                .any(|one| one.pool == *name && one.other == *other_name)
        {
            found.push(Twice {
                address: first,
                pool: name.clone(),
                other: other_name.clone(),
            });
        }
        if farthest.is_none_or(|(end, ..)| last > end) {
            farthest = Some((last, name, pool));
        }
    }
    found
}

#[cfg(test)]
mod tests;
