//! The nodes with their NICs, and the networks: what a plan is made of.

use std::{collections::BTreeSet, net::IpAddr};

use ebbtide_agent::query::NicLine;
use serde::Serialize;
use serde_json::Value;

/// A node with an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) name: String,
    /// The agent's pod.
    pub(super) agent: String,
    /// The agent's version.
    pub(super) version: String,
    pub(super) kernel: String,
    pub(super) os: String,
    pub(super) runtime: String,
    pub(super) kubelet: String,
    pub(super) architecture: String,
    /// The cloud, as its provider identifies nodes (`aws`); empty if nobody says.
    pub(super) cloud: String,
    /// The type of machine, as the cloud names it.
    pub(super) machine: String,
    pub(super) nics: Vec<Nic>,
}

/// A NIC, as the node's agent reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Nic {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
}

/// A network, as pods name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Network {
    /// `namespace/name`.
    pub(super) name: String,
    /// The NICs that it may be on; none if it is not known.
    pub(super) masters: Vec<String>,
}

/// Everything that a plan is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Topology {
    pub(super) nodes: Vec<Node>,
    pub(super) networks: Vec<Network>,
}

impl Node {
    /// Reads what the API server knows of a node.
    pub(super) fn read(node: &Value, agent: &str) -> Self {
        let text = |at: &str| {
            let value = node.pointer(at).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let info = |key: &str| text(&format!("/status/nodeInfo/{key}"));
        let provider = text("/spec/providerID");
        let cloud = provider.split_once("://").map(|(cloud, _)| cloud);
        Self {
            name: text("/metadata/name"),
            agent: agent.to_owned(),
            version: String::new(),
            kernel: info("kernelVersion"),
            os: info("osImage"),
            runtime: info("containerRuntimeVersion"),
            kubelet: info("kubeletVersion"),
            architecture: info("architecture"),
            cloud: cloud.unwrap_or_default().to_owned(),
            machine: text("/metadata/labels/node.kubernetes.io~1instance-type"),
            nics: Vec::new(),
        }
    }

    /// Returns its addresses, each with its NIC.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        let of = |nic: &'_ Nic| -> Vec<IpAddr> { nic.addresses.clone() };
        self.nics.iter().flat_map(move |nic| {
            of(nic)
                .into_iter()
                .map(|address| (nic.name.as_str(), address))
        })
    }

    /// Whether a network can be on it.
    pub(super) fn has(&self, network: &Network) -> bool {
        let mut nics = self.nics.iter();
        network.masters.is_empty() || nics.any(|nic| network.masters.contains(&nic.name))
    }
}

/// Returns the NICs among a node's links.
pub(super) fn nics(lines: Vec<NicLine>) -> Vec<Nic> {
    let nics = lines.into_iter().filter(|line| line.taken_for == "nic");
    nics.map(|line| Nic {
        name: line.name,
        addresses: line.addresses.iter().map(|net| net.addr()).collect(),
    })
    .collect()
}

/// Reads a list of SpiderMultusConfigs: those of ipvlan, by name.
pub(super) fn networks(list: &Value) -> Vec<Network> {
    let items = list.get("items").and_then(Value::as_array);
    let mut networks: Vec<Network> = items
        .into_iter()
        .flatten()
        .filter_map(|object| {
            let masters = object.pointer("/spec/ipvlan/master")?.as_array()?;
            let text = |at: &str| object.pointer(at).and_then(Value::as_str);
            Some(Network {
                name: format!(
                    "{}/{}",
                    text("/metadata/namespace")?,
                    text("/metadata/name")?
                ),
                masters: masters
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            })
        })
        .collect();
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    networks
}

/// Returns the networks that are asked for, or all; the error names one that there is not.
pub(super) fn chosen(all: Vec<Network>, asked: &[String]) -> Result<Vec<Network>, String> {
    if asked.is_empty() {
        return Ok(all);
    }
    let wanted: BTreeSet<&String> = asked.iter().collect();
    let missing = wanted
        .iter()
        .find(|name| !all.iter().any(|network| network.name == ***name));
    match missing {
        Some(name) => {
            let known: Vec<&str> = all.iter().map(|network| network.name.as_str()).collect();
            Err(format!(
                "there is no SpiderMultusConfig {name} of ipvlan; there are: {}",
                known.join(", ")
            ))
        }
        None => Ok(all
            .into_iter()
            .filter(|network| wanted.contains(&network.name))
            .collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn networks_of_ipvlan_are_read_and_chosen_by_name() {
        let config = |name: &str, spec: Value| json!({"metadata": {"namespace": "a", "name": name}, "spec": spec});
        let all = networks(&json!({"items": [
            config("y", json!({"cniType": "ipvlan", "ipvlan": {"master": ["ens6"]}})),
            config("x", json!({"cniType": "ipvlan", "ipvlan": {"master": ["ens5"]}})),
            config("z", json!({"cniType": "macvlan", "macvlan": {"master": ["ens6"]}})),
        ]}));
        let names: Vec<&str> = all.iter().map(|network| network.name.as_str()).collect();
        assert_eq!(names, ["a/x", "a/y"]);
        assert_eq!(chosen(all.clone(), &["a/y".to_owned()]).unwrap(), all[1..]);
        let error = chosen(all, &["y".to_owned()]).unwrap_err();
        assert_eq!(
            error,
            "there is no SpiderMultusConfig y of ipvlan; there are: a/x, a/y"
        );
    }

    #[test]
    fn a_node_is_read_and_tells_its_cloud() {
        let object = json!({
            "metadata": {"name": "n", "labels": {"node.kubernetes.io/instance-type": "m5.large"}},
            "spec": {"providerID": "aws:///eu-1a/i-1"},
            "status": {"nodeInfo": {"kernelVersion": "6.1"}},
        });
        let node = Node::read(&object, "ebbtide-x");
        assert_eq!(
            (
                node.cloud.as_str(),
                node.machine.as_str(),
                node.kernel.as_str()
            ),
            ("aws", "m5.large", "6.1")
        );
    }
}
