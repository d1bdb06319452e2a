//! Pools that the controller publishes for people to see: what agents have derived, never read back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::derived::is_name_of;

/// The annotation of a published pool: where the node's agent has it from, as in `AWS eni-0a1b2c3d`.
pub const DERIVED: &str = "ebbtide.io/derived";

/// The label of a published pool: its node, as far as a label's value can be so long.
pub const OF_NODE: &str = "ebbtide.io/node";

/// Returns the node for which the controller published the pool; none if it is somebody's own.
///
/// Such a pool has three marks: [`DERIVED`], [`OF_NODE`], and the Node as its owner. Two are enough, with a name as
/// derived pools of that node have: so a person who removes one of them does not make a declared pool of it, and one
/// alone on a person's own pool does not make it vanish.
#[must_use]
pub fn published_for(metadata: &ObjectMeta) -> Option<&str> {
    let annotations = metadata.annotations.as_ref();
    let is_derived = annotations.is_some_and(|all| all.contains_key(DERIVED));
    let labels = metadata.labels.as_ref();
    let label = labels.and_then(|all| all.get(OF_NODE)).map(String::as_str);
    let owners = metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.kind == "Node" && owner.api_version == "v1");
    let owner = owners.next().map(|owner| owner.name.as_str());
    let node = match (is_derived, label, owner) {
        (_, Some(label), Some(owner)) if label == owner => owner,
        (true, _, Some(owner)) => owner,
        (true, Some(label), None) => label,
        _ => return None,
    };
    let name = metadata.name.as_deref().unwrap_or_default();
    is_name_of(name, node).then_some(node)
}

/// Whether the pool has the mark of published ones, whether it is one or not.
pub(super) fn is_marked(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key(DERIVED))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn two_of_three_marks_and_a_derived_name_make_a_published_pool() {
        let derived = json!({DERIVED: "AWS eni-6"});
        let label = json!({OF_NODE: "node1"});
        let owner = |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u"}]);
        let node = owner("Node", "node1");
        let none = json!(null);
        for (what, name, annotations, labels, owners, expected) in [
            ("all", "node1-ens6-v4", &derived, &label, &node, true),
            ("no annotation", "node1-ens6-v4", &none, &label, &node, true),
            ("no label", "node1-ens6-v4", &derived, &none, &node, true),
            ("no owner", "node1-ens6-v4", &derived, &label, &none, true),
            (
                "annotation alone",
                "node1-ens6-v4",
                &derived,
                &none,
                &none,
                false,
            ),
            ("label alone", "node1-ens6-v4", &none, &label, &none, false),
            ("owner alone", "node1-ens6-v4", &none, &none, &node, false),
            (
                "of a subnet",
                "node1-ens6-v6-fd00-5-64",
                &derived,
                &label,
                &node,
                true,
            ),
            ("another name", "mine", &derived, &label, &node, false),
            (
                "another family",
                "node1-ens6-v5",
                &derived,
                &label,
                &node,
                false,
            ),
            ("no link", "node1-v4", &derived, &label, &node, false),
            (
                "another node's name",
                "node2-ens6-v4",
                &derived,
                &label,
                &node,
                false,
            ),
            (
                "owned by something else",
                "node1-ens6-v4",
                &derived,
                &none,
                &owner("Pod", "node1"),
                false,
            ),
            (
                "two nodes",
                "node1-ens6-v4",
                &none,
                &label,
                &owner("Node", "node2"),
                false,
            ),
        ] {
            let metadata: ObjectMeta = serde_json::from_value(json!({
                "name": name, "annotations": annotations, "labels": labels, "ownerReferences": owners,
            }))
            .unwrap();
            let found = published_for(&metadata);
            assert_eq!(found, expected.then_some("node1"), "{what}");
        }
    }
}
