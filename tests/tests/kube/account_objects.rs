//! Objects as Ebbtide's accounts write them, and foreign objects that the holder of a stolen token finds.

use anyhow::Result;
use ebbtide_cluster::ControlPlane;
use serde_json::{Value, json};

use crate::accounts::{NAMESPACE, pod};

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const MAPS: &str = "/api/v1/namespaces/ebbtide-system/configmaps";
pub(crate) const ENDPOINTS: &str =
    "/apis/spiderpool.spidernet.io/v2beta1/namespaces/default/spiderendpoints";

/// Returns the SpiderEndpoint of a pod as an agent writes it.
pub(crate) fn endpoint(pod: &str, uid: &Value, node: &str) -> Value {
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint",
        "metadata": {
            "name": pod, "namespace": "default", "labels": {"ebbtide.io/node": node},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}],
        },
        "status": {
            "current": {"uid": uid, "node": node, "ips": [
                {"interface": "eth0", "ipv4": "10.9.0.1/24", "ipv4Pool": "shared"},
            ]},
            "ownerControllerType": "Pod", "ownerControllerName": pod,
        },
    })
}

/// Returns the object with another value at a JSON pointer (`/metadata/name`).
pub(crate) fn with(object: &Value, place: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, key) = place.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = object.pointer_mut(parent) {
        parent[key] = value;
    }
    object
}

pub(crate) fn event(name: &str, controller: &str, node: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Warning", "reason": "R", "action": "A",
        "reportingController": controller, "reportingInstance": node,
        "regarding": {"kind": "Pod", "namespace": "default", "name": "web-a"},
    })
}

pub(crate) fn map(name: &str, labels: Value, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "data": data,
    })
}

/// Creates the foreign objects that the holder of a stolen token finds.
pub(crate) fn of_others(cluster: &ControlPlane) -> Result<()> {
    let label = json!({"ebbtide.io/leases": "true"});
    let cloud = json!({"ebbtide.io/node-cloud": "true"});
    let reports = json!({"told.json": "{}", "asked.json": "{}"});
    let leases = json!({"node-a": "10.9.0.1", "node-b": "10.9.0.2", "_wanted.node-b": "1"});
    for object in [
        map("ebbtide-leases.shared", label.clone(), leases.clone()),
        map("ebbtide-leases.plain", json!({}), leases.clone()),
        map("other", label, leases),
        map("ebbtide-cloud.node-a", cloud.clone(), reports.clone()),
        map("ebbtide-cloud.node-b", cloud, reports.clone()),
        map("ebbtide-cloud.plain", json!({}), reports),
        endpoint("web-b", &uid(cluster, "web-b")?, "node-b"),
        // Of Spiderpool, whose pod no longer exists.
        with(
            &endpoint("gone", &json!("u-1"), "node-b"),
            "/metadata/finalizers",
            json!(["spiderpool.spidernet.io"]),
        ),
        event("of-the-kubelet", "kubelet", "node-b"),
        event("of-node-b", "ebbtide", "node-b"),
        pod("default", "host-b", "node-b", "default"),
    ] {
        cluster.apply(&object.to_string())?;
    }
    cluster.set_status(
        &format!("{PODS}/web-a"),
        &json!({"phase": "Running", "podIP": "10.9.0.1", "podIPs": [{"ip": "10.9.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}]}),
    )
}

pub(crate) fn uid(cluster: &ControlPlane, pod: &str) -> Result<Value> {
    Ok(cluster.get(&["pod", pod])?["metadata"]["uid"].clone())
}
