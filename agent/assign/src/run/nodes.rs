//! The nodes with addresses of the cloud: their ConfigMaps, and what the cluster knows of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ebbtide_kube::node_cloud::map_of;
use k8s_openapi::api::core::v1::{ConfigMap, Node, ObjectReference};
use kube::{Api, Client};
use tracing::debug;

use super::Types;
use crate::plan::{NodeFacts, Report, Unreadable};

/// After how long a node is asked for again: its type does not change while it runs, but it may go.
const AGAIN: Duration = Duration::from_secs(600);

/// How many nodes are asked for in a round.
const AT_ONCE: usize = 50;

/// The prefix of the name of a node's ConfigMap.
fn node_of(name: &str) -> Option<&str> {
    let empty = map_of("");
    name.strip_prefix(&empty).filter(|node| !node.is_empty())
}

/// A node's entry.
#[derive(Debug)]
struct Entry {
    map: ConfigMap,
    report: Result<Report, Unreadable>,
    known: Option<Known>,
}

/// What the API server says of a node.
#[derive(Debug, Clone)]
struct Known {
    at: Instant,
    /// `None` if there is no such node.
    node: Option<Machine>,
}

#[derive(Debug, Clone)]
struct Machine {
    uid: Option<String>,
    instance: Option<String>,
    instance_type: Option<String>,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    provider: &'static str,
    entries: BTreeMap<String, Entry>,
}

impl Nodes {
    pub(super) const fn new(provider: &'static str) -> Self {
        Self {
            provider,
            entries: BTreeMap::new(),
        }
    }

    /// Returns the cloud's name.
    pub(super) const fn provider(&self) -> &'static str {
        self.provider
    }

    /// Takes a ConfigMap in.
    pub(super) fn set(&mut self, map: ConfigMap) {
        let Some(node) = map.metadata.name.as_deref().and_then(node_of) else {
            return;
        };
        let node = node.to_owned();
        let report = Report::read(&node, self.provider, map.data.as_ref());
        let known = self.entries.remove(&node).and_then(|old| old.known);
        self.entries.insert(node, Entry { map, report, known });
    }

    /// Forgets a ConfigMap.
    pub(super) fn remove(&mut self, map: &ConfigMap) {
        if let Some(node) = map.metadata.name.as_deref().and_then(node_of) {
            self.entries.remove(node);
        }
    }

    /// Takes in all that there are.
    pub(super) fn replace(&mut self, maps: Vec<ConfigMap>) {
        let names: Vec<String> = maps
            .iter()
            .filter_map(|map| map.metadata.name.clone())
            .collect();
        self.entries.retain(|node, _| names.contains(&map_of(node)));
        maps.into_iter().for_each(|map| self.set(map));
    }

    /// Returns a node's ConfigMap.
    pub(super) fn map(&self, node: &str) -> Option<&ConfigMap> {
        self.entries.get(node).map(|entry| &entry.map)
    }

    /// Asks the API server for some of the nodes that are not known, or not any more. True if it told of any.
    pub(super) async fn refresh(&mut self, client: &Client) -> bool {
        let api: Api<Node> = Api::all(client.clone());
        let old = |known: &Known| {
            let wait = if known.node.is_some() {
                AGAIN
            } else {
                AGAIN / 10
            };
            known.at.elapsed() > wait
        };
        let unknown = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.known.as_ref().is_none_or(old));
        let mut told = false;
        for (name, entry) in unknown.take(AT_ONCE) {
            match api.get_opt(name).await {
                Ok(node) => {
                    told = true;
                    entry.known = Some(Known {
                        at: Instant::now(),
                        node: node.map(machine),
                    });
                }
                // What is known stays in use.
                Err(e) => debug!("the node {name}: {e}"),
            }
        }
        told
    }

    /// Returns the instance types of all nodes.
    pub(super) fn types(&self) -> impl Iterator<Item = &str> {
        let known = self
            .entries
            .values()
            .filter_map(|entry| entry.known.as_ref());
        known.filter_map(|known| known.node.as_ref()?.instance_type.as_deref())
    }

    /// Returns what the plan needs.
    pub(super) fn facts(&self, types: &Types) -> BTreeMap<String, NodeFacts> {
        let facts = |entry: &Entry| {
            let machine = entry.known.as_ref().and_then(|known| known.node.as_ref());
            let instance_type = machine.and_then(|machine| machine.instance_type.as_ref());
            NodeFacts {
                instance: machine.and_then(|machine| machine.instance.clone()),
                limits: instance_type.and_then(|name| types.get(name).copied().flatten()),
                report: match machine {
                    Some(_) => entry.report.clone(),
                    None => Err(Unreadable::NoNode),
                },
            }
        };
        let all = self.entries.iter();
        all.map(|(name, entry)| (name.clone(), facts(entry)))
            .collect()
    }

    /// Returns the reference that an Event on a node needs.
    pub(super) fn reference(&self, node: &str) -> ObjectReference {
        let known = self
            .entries
            .get(node)
            .and_then(|entry| entry.known.as_ref());
        let machine = known.and_then(|known| known.node.as_ref());
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            // As for all Events on what is in no namespace.
            namespace: Some("default".into()),
            uid: machine.and_then(|machine| machine.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

fn machine(node: Node) -> Machine {
    let labels = node.metadata.labels.unwrap_or_default();
    let label = |name: &str| labels.get(name).cloned();
    let provider_id = node.spec.and_then(|spec| spec.provider_id);
    Machine {
        uid: node.metadata.uid,
        instance: provider_id.as_deref().and_then(instance).map(str::to_owned),
        instance_type: label("node.kubernetes.io/instance-type")
            .or_else(|| label("beta.kubernetes.io/instance-type")),
    }
}

/// Returns the instance in a node's `providerID`, as in `aws:///eu-central-1a/i-0a1b2c3d`.
fn instance(provider_id: &str) -> Option<&str> {
    let rest = provider_id.strip_prefix("aws://")?;
    rest.rsplit('/').next().filter(|id| id.starts_with("i-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_is_the_last_part_of_the_provider_id() {
        for (text, id) in [
            ("aws:///eu-central-1a/i-0a1b", Some("i-0a1b")),
            ("aws://123/eu-central-1a/i-0a1b", Some("i-0a1b")),
            ("aws:///eu-central-1a/", None),
            ("kind://docker/kind/x", None),
        ] {
            assert_eq!(instance(text), id, "{text}");
        }
    }

    #[test]
    fn a_config_map_names_its_node() {
        assert_eq!(node_of("ebbtide-cloud.node-a"), Some("node-a"));
        assert_eq!(node_of("ebbtide-cloud."), None);
        assert_eq!(node_of("ebbtide-leases.pool"), None);
    }
}
