//! A cluster of 40 nodes on which some things are wrong.

use anyhow::{Context as _, Result};
use ebbtide_cluster::ControlPlane;
use serde_json::{Value, json};

/// The address that two pods have.
pub(super) const ADDRESS: &str = "10.0.7.7";

const SPIDERPOOL: &str = "spiderpool.spidernet.io/v2beta1";
const NODES: u32 = 40;
const PODS: u32 = 400;

/// Makes the objects.
pub(super) fn fill(cluster: &ControlPlane) -> Result<()> {
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ebbtide-system"}}),
    ];
    all.extend((0..NODES).map(node));
    apply(cluster, all)?;
    // The last one has none, and that of a node with pods was evicted.
    let with_agents = |number: &u32| ![8, NODES - 1].contains(number);
    let mut all: Vec<Value> = (0..NODES).filter(with_agents).map(agent).collect();
    all.extend(["twin-a", "twin-b"].map(twin));
    all.extend(networks());
    all.extend(POOLS.map(|(name, networks, _, _)| pool(name, networks)));
    all.extend((0..20).map(event));
    all.push(of_others());
    apply(cluster, all)?;
    for number in (0..NODES).filter(with_agents) {
        let path = format!(
            "/api/v1/namespaces/ebbtide-system/pods/ebbtide-{}",
            name(number)
        );
        cluster.set_status(&path, &agent_status(number))?;
    }
    for (name, _, total, allocated) in POOLS {
        let path = format!("/apis/{SPIDERPOOL}/spiderippools/{name}");
        cluster.set_status(
            &path,
            &json!({"totalIPCount": total, "allocatedIPCount": allocated}),
        )?;
    }
    let mut all: Vec<Value> = (0..PODS).map(web).collect();
    for (pod, node) in [("twin-a", 3), ("twin-b", 4), ("twin-gone", 5)] {
        let uid = match pod {
            "twin-gone" => "00000000-0000-0000-0000-000000000000".to_owned(),
            _ => {
                let pod = cluster.get(&["pod", pod])?;
                pod["metadata"]["uid"].as_str().context("a UID")?.to_owned()
            }
        };
        let ips =
            json!([{"interface": "eth0", "ipv4": format!("{ADDRESS}/16"), "ipv4Pool": "fast-v4"}]);
        all.push(endpoint(pod, &uid, node, &ips));
    }
    apply(cluster, all)
}

/// Name, networks, addresses in all, and in use.
const POOLS: [(&str, &[&str], u64, u64); 6] = [
    ("fast-v4", &["default/fast"], 900, 210),
    ("fast-v6", &["default/fast"], i64::MAX as u64, 200),
    ("wide-v4", &["default/wide"], 600, 240),
    ("full-v4", &["default/wide"], 20, 20),
    ("nearly-v4", &["default/wide"], 40, 39),
    ("any-v4", &[], 100, 0),
];

fn name(number: u32) -> String {
    format!("node-{number:02}")
}

fn apply(cluster: &ControlPlane, objects: Vec<Value>) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    // `apply` would ask for each object before.
    cluster
        .kubectl_with(&["create", "-f", "-"], &list.to_string())
        .map(drop)
}

fn node(number: u32) -> Value {
    let ready = if number == 9 { "Unknown" } else { "True" };
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name(number)},
        "spec": {"unschedulable": number == 10},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    })
}

fn agent(number: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("ebbtide-{}", name(number)), "namespace": "ebbtide-system",
            "labels": {"app.kubernetes.io/name": "ebbtide"},
        },
        "spec": {
            "nodeName": name(number),
            "containers": [{"name": "agent", "image": "registry.example/ebbtide:v0.2.0"}],
        },
    })
}

fn agent_status(number: u32) -> Value {
    let state = match number {
        7 => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
        _ => json!({"running": {}}),
    };
    let restarts = match number {
        7 => 31,
        12 => 1,
        _ => 0,
    };
    json!({"phase": "Running", "containerStatuses": [{
        "name": "agent", "ready": number != 7, "restartCount": restarts, "state": state,
        "image": "registry.example/ebbtide:v0.2.0", "imageID": "",
    }]})
}

fn twin(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "none"}]},
    })
}

fn networks() -> [Value; 2] {
    [("fast", "ens6"), ("wide", "ens7")].map(|(name, master)| {
        json!({
            "apiVersion": SPIDERPOOL, "kind": "SpiderMultusConfig",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"cniType": "ipvlan", "ipvlan": {"master": [master]}},
        })
    })
}

fn pool(name: &str, networks: &[&str]) -> Value {
    let subnet = match name {
        "fast-v6" => "fd00::/64",
        "fast-v4" => "10.0.0.0/16",
        "wide-v4" => "10.1.0.0/16",
        "full-v4" => "10.2.0.0/24",
        "nearly-v4" => "10.3.0.0/24",
        _ => "10.4.0.0/24",
    };
    json!({
        "apiVersion": SPIDERPOOL, "kind": "SpiderIPPool", "metadata": {"name": name},
        "spec": {"subnet": subnet, "multusName": networks},
    })
}

/// A pod on one of the nodes but the last. Each second one has two interfaces, the first of both families.
fn web(number: u32) -> Value {
    let (high, low) = (number / 200, number % 200 + 10);
    let mut ips = vec![json!({
        "interface": "eth0", "ipv4": format!("10.1.{high}.{low}/16"), "ipv4Pool": "wide-v4",
    })];
    if number.is_multiple_of(2) {
        ips = vec![
            json!({
                "interface": "eth0", "ipv4": format!("10.0.{high}.{low}/16"), "ipv4Pool": "fast-v4",
                "ipv6": format!("fd00::{number:x}/64"), "ipv6Pool": "fast-v6",
            }),
            json!({
                "interface": "net1", "ipv4": format!("10.1.{high}.{low}/16"), "ipv4Pool": "wide-v4",
            }),
        ];
    }
    endpoint(
        &format!("web-6d4cf56db6-{number:03}"),
        "u",
        number % (NODES - 1),
        &json!(ips),
    )
}

fn endpoint(pod: &str, uid: &str, node: u32, ips: &Value) -> Value {
    json!({
        "apiVersion": SPIDERPOOL, "kind": "SpiderEndpoint",
        "metadata": {
            "name": pod, "namespace": "default", "labels": {"ebbtide.io/node": name(node)},
        },
        "status": {
            "current": {"uid": uid, "node": name(node), "ips": ips},
            "ownerControllerType": "Deployment", "ownerControllerName": "web",
        },
    })
}

/// An Event as agents write them.
fn event(number: u32) -> Value {
    let (reason, note) = match number % 5 {
        4 => (
            "AddressWithdrawn",
            "10.0.0.12 is no longer assigned to ens6: the cloud has taken it away",
        ),
        _ => (
            "Repaired",
            "rule 1003 (from all fwmark 0x6 lookup 1006) is missing: repaired; something on this node removes or changes it",
        ),
    };
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": format!("{}.{number}", name(number)), "namespace": "default"},
        "eventTime": format!("2026-01-01T10:{:02}:00.000000Z", 59 - number),
        "reportingController": "ebbtide", "reportingInstance": name(number),
        "action": "Repairing", "reason": reason, "type": "Warning", "note": note,
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": name(number), "namespace": "default"},
    })
}

fn of_others() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": "other", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "twin-a", "namespace": "default"},
        "reason": "Pulled", "message": "x", "type": "Normal", "source": {"component": "kubelet"},
        "lastTimestamp": "2026-01-02T00:00:00Z",
    })
}
