//! The ConfigMap of each node's addresses from the cloud: the controller makes it, the node's agent writes one key of it.

use std::{collections::BTreeMap, time::Duration};

use ebbtide_ipam::catalog::AddressSet;
use ebbtide_types::ObjectName;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, api::PostParams, core::DynamicObject};
use serde::{Deserialize, de::DeserializeOwned};
use tracing::{info, warn};

use super::{
    cluster::Cluster,
    node_cloud::{ASKED, Asked, LABEL, NodeCloud, TOLD, VERSION, map_of},
    object::{Kind, trimmed},
};

/// How often a write is tried again at once, after somebody else's.
const TRIES: u32 = 5;

/// The pause before that.
const PAUSE: Duration = Duration::from_millis(50);

/// The longest name of an object.
const LONGEST_NAME: usize = 253;

/// What the agent is asked to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// It is not known now, with the reason for people: what was asked before stays so.
    Unknown(String),
    /// These addresses, by the cloud's name of the NIC: one set of a family at most.
    Back(BTreeMap<String, Vec<AddressSet>>),
}

/// Why the agent's report was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The API server refused or did not answer.
    #[error("write {TOLD} of ConfigMap {name}: {source}", source = .source)]
    Api {
        /// The ConfigMap.
        name: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// The report cannot be JSON: a defect.
    #[error("write the report of the cloud's addresses as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The part of both formats that every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Parses one of the two formats; the error is for people.
fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let head: Head = serde_json::from_str(text).map_err(|e| format!("cannot be read: {e}"))?;
    if head.version != VERSION {
        let found = head.version;
        return Err(format!("has version {found}, this one knows {VERSION}"));
    }
    serde_json::from_str(text).map_err(|e| format!("cannot be read: {e}"))
}

/// Parses what an agent told; the error is for people.
pub(super) fn read_told(text: &str) -> Result<NodeCloud, String> {
    read(text)
}

fn read_asked(text: &str) -> Result<BTreeMap<String, Vec<AddressSet>>, String> {
    let asked: Asked = read(text)?;
    let mut back = BTreeMap::new();
    for (nic, families) in asked.back {
        let sets = families.into_iter().map(|(family, text)| {
            AddressSet::parse_list(&text, family)
                .map_err(|e| format!("cannot be read: {text:?} of NIC {nic} {e}"))
        });
        let sets: Vec<AddressSet> = sets.collect::<Result<_, _>>()?;
        back.insert(nic, sets);
    }
    Ok(back)
}

/// Returns a key of a ConfigMap's data.
pub(super) fn entry<'a>(map: &'a DynamicObject, key: &str) -> Option<&'a str> {
    map.data.get("data")?.get(key)?.as_str()
}

/// Returns what a ConfigMap asks back.
fn wish(map: Option<&DynamicObject>) -> Wish {
    // Whoever asked has to ask again, if there is none any more.
    let asked = map.and_then(|map| entry(map, ASKED)).unwrap_or_default();
    if asked.trim().is_empty() {
        return Wish::Back(BTreeMap::new());
    }
    match read_asked(asked) {
        Ok(back) => Wish::Back(back),
        Err(why) => Wish::Unknown(format!("{ASKED} of this node's ConfigMap {why}")),
    }
}

impl Cluster {
    /// Returns this node's ConfigMap, if it is there, as far as it was received.
    fn cloud_map(&self) -> Option<DynamicObject> {
        let name = map_of(&self.node);
        let mirror = self.mirror();
        let mut maps = mirror.all(Kind::NodeCloud);
        let found = maps.find(|map| map.metadata.name.as_deref() == Some(&name));
        found.cloned()
    }

    /// Returns what this node's agent is asked to give back.
    #[must_use]
    pub fn wish(&self) -> Wish {
        if !self.mirror().knows(Kind::NodeCloud) {
            return Wish::Unknown("the API server has not answered yet".to_owned());
        }
        wish(self.cloud_map().as_ref())
    }

    /// Writes this node's report, if there is a ConfigMap for it and it has another one. True if there is one.
    ///
    /// # Errors
    /// [`WriteError`] if the API server refuses, or does not answer. It may have written it then.
    pub async fn tell(&self, told: &NodeCloud) -> Result<bool, WriteError> {
        let Some(there) = self.cloud_map() else {
            return Ok(false);
        };
        let text = serde_json::to_string(told)?;
        if entry(&there, TOLD) == Some(&text) {
            return Ok(true);
        }
        let name = map_of(&self.node);
        let written = self.replace_told(&name, &text).await;
        written.map_err(|source| WriteError::Api {
            name,
            source: Box::new(source),
        })
    }

    async fn replace_told(&self, name: &str, text: &str) -> kube::Result<bool> {
        let api: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
        let mut tries = 0;
        loop {
            let Some(mut map) = api.get_opt(name).await? else {
                return Ok(false);
            };
            map.metadata.managed_fields = None;
            let data = map.data.get_or_insert_default();
            data.insert(TOLD.to_owned(), text.to_owned());
            match api.replace(name, &PostParams::default(), &map).await {
                Ok(map) => {
                    self.record_cloud_map(map);
                    return Ok(true);
                }
                Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE * tries).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Stores a ConfigMap as the API server has just returned it from a write.
    fn record_cloud_map(&self, map: ConfigMap) {
        let object = serde_json::to_value(map).and_then(serde_json::from_value::<DynamicObject>);
        if let Ok(object) = object {
            self.change(Kind::NodeCloud, |mirror| {
                mirror.set(Kind::NodeCloud, trimmed(Kind::NodeCloud, object))
            });
        }
    }
}

/// Returns the ConfigMap of a node, without contents.
fn new_map(node: &str, uid: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(map_of(node)),
            labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
            // It is deleted with its Node.
            owner_references: Some(vec![owner(node, uid)]),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// Returns a Node as the owner of what goes with it.
pub(super) fn owner(node: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: Kind::Node.name().into(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// Returns the nodes, with their UIDs; none if they are not known yet.
pub(super) fn nodes(cluster: &Cluster) -> Option<BTreeMap<String, String>> {
    let mirror = cluster.mirror();
    if !mirror.knows(Kind::Node) {
        return None;
    }
    let nodes = mirror.all(Kind::Node).filter_map(|node| {
        let meta = &node.metadata;
        Some((meta.name.clone()?, meta.uid.clone()?))
    });
    Some(nodes.collect())
}

/// Creates the missing ConfigMaps of nodes, while a network takes its addresses from the metadata: the controller's work,
/// as an agent may create none. True if all exist now.
pub(super) async fn prepare(cluster: &Cluster) -> bool {
    let Some(nodes) = nodes(cluster) else {
        return true;
    };
    let missing: Vec<(String, String)> = {
        let mirror = cluster.mirror();
        let is_wanted = !mirror.declared_catalog().metadata_links().is_empty();
        if !is_wanted || !mirror.knows(Kind::NodeCloud) {
            return true;
        }
        let names = mirror.all(Kind::NodeCloud);
        let there: Vec<&str> = names
            .filter_map(|map| map.metadata.name.as_deref())
            .collect();
        let is_missing = |node: &str| {
            let name = map_of(node);
            name.len() <= LONGEST_NAME && !there.contains(&name.as_str())
        };
        let missing = nodes.into_iter().filter(|(node, _)| is_missing(node));
        missing.collect()
    };
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client.clone());
    let mut done = true;
    for (node, uid) in missing {
        let map = new_map(&node, &uid);
        match api.create(&PostParams::default(), &map).await {
            Ok(map) => {
                info!(
                    node,
                    "a ConfigMap for the node's addresses from the cloud is made"
                );
                cluster.record_cloud_map(map);
            }
            // An earlier leader created it meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => {
                let name = map_of(&node);
                warn!(
                    "the ConfigMap {name} for a node's addresses from the cloud is not made yet: {e}"
                );
                done = false;
            }
        }
    }
    done
}

/// Returns what the agent of a node told: none if nothing of it is known now, which is not the same as no addresses.
pub(super) fn told(cluster: &Cluster, node: &str) -> Option<NodeCloud> {
    let name = ObjectName {
        namespace: cluster.client.default_namespace().to_owned(),
        name: map_of(node),
    };
    let mirror = cluster.mirror();
    let map = mirror.get(Kind::NodeCloud, &name)?;
    let told = read_told(entry(map, TOLD)?);
    let told = told.inspect_err(|why| tracing::debug!("{TOLD} of ConfigMap {} {why}", name.name));
    told.ok().filter(|told| told.node == node)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn map(asked: Value) -> DynamicObject {
        let object = json!({"metadata": {"name": "ebbtide-cloud.node1"}, "data": {ASKED: asked}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_cannot_be_read_is_not_the_wish_for_nothing() {
        let good = json!({"version": 1, "back": {"eni-6": {"v4": "10.0.0.5-10.0.0.6, 10.0.0.9", "v6": "fd00::5"}}});
        let Wish::Back(back) = wish(Some(&map(json!(good.to_string())))) else {
            panic!("it can be read")
        };
        let texts: Vec<String> = back["eni-6"].iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.5-10.0.0.6, 10.0.0.9", "fd00::5"]);
        let nothing = Wish::Back(BTreeMap::new());
        assert_eq!(wish(None), nothing);
        assert_eq!(wish(Some(&map(json!(null)))), nothing);
        assert_eq!(
            wish(Some(&map(json!(r#"{"version": 1, "back": {}}"#)))),
            nothing
        );
        for (text, said) in [
            ("{", "cannot be read"),
            (r#"{"version": 2, "back": {}}"#, "has version 2"),
            (r#"{"version": 1}"#, "missing field `back`"),
            (
                r#"{"version": 1, "back": {"eni-6": {"v4": "10.0.0.5-x"}}}"#,
                "of NIC eni-6",
            ),
            (
                r#"{"version": 1, "back": {"eni-6": {"v4": "fd00::5"}}}"#,
                "is not IPv4",
            ),
            (
                r#"{"version": 1, "back": {"eni-6": {"v5": ""}}}"#,
                "cannot be read",
            ),
        ] {
            let Wish::Unknown(why) = wish(Some(&map(json!(text)))) else {
                panic!("{text} was read")
            };
            assert!(why.contains(said), "{text}: {why}");
        }
    }

    #[test]
    fn a_report_of_another_version_or_with_less_is_not_read_and_more_than_is_known_is_passed_over()
    {
        let report = json!({"version": 1, "node": "node1", "cloud": "aws", "nics": []});
        let with = |field: &str, value: Value| {
            let mut report = report.clone();
            report[field] = value;
            report.to_string()
        };
        let good = read_told(&report.to_string()).unwrap();
        assert_eq!(read_told(&with("new", json!({"a": 1}))), Ok(good));
        for (text, said) in [
            (with("version", json!(2)), "has version 2, this one knows 1"),
            (with("version", json!("1")), "cannot be read"),
            (with("nics", Value::Null), "cannot be read"),
            (report.to_string().replace('}', ""), "cannot be read"),
            (String::new(), "cannot be read"),
        ] {
            let why = read_told(&text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
        }
    }

    #[test]
    fn a_nodes_map_goes_with_it() {
        let map = serde_json::to_value(new_map("node1", "u-1")).unwrap();
        assert_eq!(
            map["metadata"],
            json!({
                "name": "ebbtide-cloud.node1", "labels": {"ebbtide.io/node-cloud": "true"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "u-1"}],
            })
        );
        assert!(map.get("data").is_none());
    }
}
