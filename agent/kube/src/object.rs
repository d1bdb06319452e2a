//! Trims the API server's objects to what the agent needs. Pure.

use std::{cmp::Ordering, collections::BTreeMap};

use ebbtide_ipam::catalog::manifest::GROUP;
use ebbtide_types::ObjectName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::LeaseTable;

/// The watched kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `SpiderIPPool`.
    Pool,
    /// `SpiderMultusConfig`.
    Network,
    /// `SpiderReservedIP`.
    Reserved,
    /// `SpiderCoordinator`.
    Coordinator,
    /// `NetworkAttachmentDefinition`.
    Attachment,
    /// This node, or for the controller all nodes; only their metadata.
    Node,
    /// This node's pods, only their metadata.
    Pod,
    /// Namespaces, only their metadata.
    Namespace,
    /// ConfigMaps with the leases of a pool: which node has which addresses.
    Lease,
    /// The ConfigMap of this node's addresses from the cloud, or for the controller those of all nodes.
    NodeCloud,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Pool,
        Self::Network,
        Self::Reserved,
        Self::Coordinator,
        Self::Attachment,
        Self::Node,
        Self::Pod,
        Self::Namespace,
        Self::Lease,
        Self::NodeCloud,
    ];

    /// The kinds that the controller watches: it has no node, so pods and namespaces are not among them.
    pub const OF_CLUSTER: [Self; 8] = [
        Self::Pool,
        Self::Network,
        Self::Reserved,
        Self::Coordinator,
        Self::Attachment,
        Self::Lease,
        Self::Node,
        Self::NodeCloud,
    ];

    /// The kinds that make up the catalog.
    pub const DECLARED: [Self; 4] = [Self::Pool, Self::Network, Self::Reserved, Self::Coordinator];

    /// Whether its objects are kept on disk. What a node has from the cloud has files of its own.
    #[must_use]
    pub const fn is_saved(self) -> bool {
        !matches!(self, Self::NodeCloud)
    }

    /// Returns the `kind` of such an object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pool => "SpiderIPPool",
            Self::Network => "SpiderMultusConfig",
            Self::Reserved => "SpiderReservedIP",
            Self::Coordinator => "SpiderCoordinator",
            Self::Attachment => "NetworkAttachmentDefinition",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Lease | Self::NodeCloud => "ConfigMap",
        }
    }
}

/// The domains, subdomains included, whose annotations are kept. Other annotations are often large
/// and never read. By domain, not by name: a new annotation cannot be forgotten here.
const DOMAINS: [&str; 4] = ["ebbtide.io", "spidernet.io", "cni.cncf.io", "multus-cni.io"];

/// Foreign annotations that are kept: the kubelet's notes about static pods, and Istio's interception mode.
const OF_OTHERS: [&str; 2] = ["kubernetes.io/config.", "sidecar.istio.io/interceptionMode"];

fn is_kept(annotation: &str) -> bool {
    let domain = annotation.split_once('/').map_or("", |(domain, _)| domain);
    let below = |kept: &str| {
        domain
            .strip_suffix(kept)
            .is_some_and(|front| front.is_empty() || front.ends_with('.'))
    };
    let is_others = OF_OTHERS.iter().any(|other| annotation.starts_with(other));
    DOMAINS.into_iter().any(below) || is_others
}

/// Removes the leases of other nodes from a pool's ConfigMap: the mirror does not grow with the cluster.
#[must_use]
pub fn own_leases(node: &str, mut map: DynamicObject) -> DynamicObject {
    if let Some(Value::Object(leases)) = map.data.get_mut("data") {
        leases.retain(|key, _| LeaseTable::concerns(key, node));
    }
    map
}

/// Removes what is never read from the object: `managedFields`, status, foreign annotations.
#[must_use]
pub fn trimmed(kind: Kind, object: DynamicObject) -> DynamicObject {
    let meta = object.metadata;
    let annotations = meta.annotations.map(|all| {
        all.into_iter()
            .filter(|(key, _)| is_kept(key))
            .collect::<BTreeMap<_, _>>()
    });
    let mut data = serde_json::Map::new();
    // Only the coordinator's status has facts that are not known here anyway.
    let fields: &[&str] = match kind {
        Kind::Coordinator => &["spec", "status"],
        Kind::Lease | Kind::NodeCloud => &["data"],
        _ => &["spec"],
    };
    for field in fields {
        if let Some(value) = object.data.get(field) {
            data.insert((*field).to_owned(), value.clone());
        }
    }
    DynamicObject {
        types: object.types,
        metadata: ObjectMeta {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            // To distinguish an older state of a ConfigMap from a newer one.
            resource_version: meta
                .resource_version
                .filter(|_| matches!(kind, Kind::Lease | Kind::NodeCloud)),
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            labels: meta.labels,
            annotations: annotations.filter(|kept| !kept.is_empty()),
            owner_references: meta.owner_references,
            finalizers: meta.finalizers,
            ..ObjectMeta::default()
        },
        data: Value::Object(data),
    }
}

/// Returns the API resource of a kind. Objects are read untyped: one that does not match its type
/// must not stop the others.
pub(super) fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = match kind {
        Kind::Pool => (GROUP, "v2beta1", "spiderippools"),
        Kind::Network => (GROUP, "v2beta1", "spidermultusconfigs"),
        Kind::Reserved => (GROUP, "v2beta1", "spiderreservedips"),
        Kind::Coordinator => (GROUP, "v2beta1", "spidercoordinators"),
        Kind::Attachment => ("k8s.cni.cncf.io", "v1", "network-attachment-definitions"),
        Kind::Node => ("", "v1", "nodes"),
        Kind::Pod => ("", "v1", "pods"),
        Kind::Namespace => ("", "v1", "namespaces"),
        Kind::Lease | Kind::NodeCloud => ("", "v1", "configmaps"),
    };
    let gvk = GroupVersionKind::gvk(group, version, kind.name());
    ApiResource::from_gvk_with_plural(&gvk, plural)
}

/// Converts the metadata into an object.
pub(super) fn of_metadata<K>(meta: PartialObjectMeta<K>) -> DynamicObject {
    // Metadata is trimmed alike for all kinds.
    let kind = Kind::Pod;
    let object = DynamicObject {
        types: None,
        metadata: meta.metadata,
        data: Value::Null,
    };
    trimmed(kind, object)
}

/// Returns the object's name, with an empty namespace if it has none.
#[must_use]
pub fn name_of(meta: &ObjectMeta) -> ObjectName {
    ObjectName {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

/// Orders objects by age, and by name if equally old: of two conflicting objects, every node then uses the same one.
#[must_use]
pub fn by_age(a: &DynamicObject, b: &DynamicObject) -> Ordering {
    let key = |object: &DynamicObject| {
        let meta = &object.metadata;
        let created = meta.creation_timestamp.as_ref().map(|time| time.0);
        (created, meta.namespace.clone(), meta.name.clone())
    };
    key(a).cmp(&key(b))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_reads_is_not_kept() {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
            "metadata": {
                "name": "a", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": "kubectl"}],
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{}",
                    "ipam.spidernet.io/ippool": "{}",
                },
            },
            "spec": {"subnet": "10.0.0.0/24"},
            "status": {"allocatedIPs": "{}"},
        }))
        .unwrap();
        let kept = serde_json::to_value(trimmed(Kind::Pool, object)).unwrap();
        assert_eq!(
            kept,
            json!({
                "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
                "metadata": {
                    "name": "a", "uid": "u",
                    "annotations": {"ipam.spidernet.io/ippool": "{}"},
                },
                "spec": {"subnet": "10.0.0.0/24"},
            })
        );
    }

    /// Returns the texts of these sources that look like an annotation's name.
    fn annotations_in(text: &str) -> Vec<&str> {
        let domain = |text: &str| text.contains('.') && !text.contains(char::is_whitespace);
        let quoted = text.split('"').skip(1).step_by(2);
        let names = quoted.filter(|each| {
            each.split_once('/').is_some_and(|(front, rest)| {
                domain(front)
                    && !rest.is_empty()
                    && rest
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b"-.0123456789".contains(&b))
            })
        });
        let ours = |each: &&str| DOMAINS.into_iter().any(|domain| each.contains(domain));
        names.filter(ours).collect()
    }

    #[test]
    fn every_annotation_that_these_sources_name_is_kept() {
        fn walk(dir: &std::path::Path, seen: &mut usize) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, seen);
                } else if path.extension().is_some_and(|kind| kind == "rs") {
                    for name in annotations_in(&std::fs::read_to_string(&path).unwrap()) {
                        *seen += 1;
                        assert!(is_kept(name), "{}: {name}", path.display());
                    }
                }
            }
        }
        let mut seen = 0;
        walk(
            &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
            &mut seen,
        );
        assert!(seen > 15, "{seen} found: does the search still work?");
    }

    #[test]
    fn annotations_are_kept_by_their_domain() {
        for (name, kept) in [
            ("ebbtide.io/answer-neighbours", true),
            ("ipam.spidernet.io/ippool", true),
            ("k8s.v1.cni.cncf.io/networks", true),
            ("v1.multus-cni.io/default-network", true),
            ("kubernetes.io/config.hash", true),
            ("kubectl.kubernetes.io/last-applied-configuration", false),
            ("not-ebbtide.io/x", false),
            ("plain", false),
        ] {
            assert_eq!(is_kept(name), kept, "{name}");
        }
    }

    #[test]
    fn of_a_thousand_nodes_leases_one_is_kept_and_who_waits() {
        let mut leases: serde_json::Map<String, Value> = (0..1000)
            .map(|n| {
                (
                    format!("node-{n}"),
                    json!(format!("10.0.{}.{}", n / 250, n % 250)),
                )
            })
            .collect();
        leases.insert("_wanted.node-7".into(), json!("2"));
        let map: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "ebbtide-leases.a", "resourceVersion": "7"},
            "data": leases,
        }))
        .unwrap();
        let kept = trimmed(Kind::Lease, own_leases("node-42", map));
        assert_eq!(kept.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(
            kept.data,
            json!({"data": {"node-42": "10.0.0.42", "_wanted.node-7": "2"}})
        );
    }
}
