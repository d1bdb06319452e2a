//! What the account policies refuse and allow: a token stolen from a node gives access to that node only.

use anyhow::{Result, ensure};
use ebbtide_cluster::{ControlPlane, Release};
use serde_json::{Value, json};

use crate::{
    account_objects::{ENDPOINTS, MAPS, PODS, endpoint, event, of_others, uid, with},
    accounts::{NAMESPACE, site, until_refused, without_policies},
    attempt::{Act, Attempt, Holder, attempt},
};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// A patch of a pod's annotations, by its status subresource.
fn annotated(key: &str, value: Value) -> Act {
    Act::Patch(json!({"metadata": {"annotations": {key: value}}}))
}

/// Returns the requests of node-a's agent, all of which must succeed.
fn work(cluster: &ControlPlane) -> Result<Vec<Attempt>> {
    let uid = uid(cluster, "web-a")?;
    let own = endpoint("web-a", &uid, "node-a");
    let shared = cluster.get(&["-n", NAMESPACE, "configmap", "ebbtide-leases.shared"])?;
    // Without a resource version, so that both can be applied in turn.
    let shared = with(&shared, "/metadata/resourceVersion", json!(""));
    let lease = |node: Value, wanted: Value| {
        let mut map = with(&shared, "/data/node-a", node);
        if wanted.is_string() {
            map = with(&map, "/data/_wanted.node-a", wanted);
        }
        if let Some(data) = map["data"].as_object_mut() {
            data.retain(|_, value| value.is_string());
        }
        Act::Replace(map)
    };
    let cloud = cluster.get(&["-n", NAMESPACE, "configmap", "ebbtide-cloud.node-a"])?;
    let cloud = with(&cloud, "/metadata/resourceVersion", json!(""));
    let (status, place) = (format!("{PODS}/web-a/status"), format!("{ENDPOINTS}/web-a"));
    let leases = format!("{MAPS}/ebbtide-leases.shared");
    let note = json!({"metadata": {"uid": uid, "annotations": {STATUS: "[]"}}});
    Ok(vec![
        attempt("network-status", &status, Act::Patch(note)),
        attempt("another one", &status, annotated(STATUS, json!("[{}]"))),
        attempt("none", &status, annotated(STATUS, Value::Null)),
        attempt("an endpoint made", &place, Act::Apply(own.clone())),
        attempt(
            "an endpoint changed",
            &place,
            Act::Apply(with(&own, "/status/ownerControllerType", json!("Job"))),
        ),
        attempt("an endpoint deleted", &place, Act::Delete),
        attempt(
            "more leased",
            &leases,
            lease(json!("10.9.0.1,10.9.0.3"), Value::Null),
        ),
        attempt(
            "waiting for some",
            &leases,
            lease(json!("10.9.0.1"), json!("2")),
        ),
        attempt("all given back", &leases, lease(Value::Null, Value::Null)),
        attempt(
            "addresses from the cloud told",
            format!("{MAPS}/ebbtide-cloud.node-a"),
            Act::Replace(with(&cloud, "/data/told.json", json!("{1}"))),
        ),
        attempt(
            "an Event",
            EVENTS,
            Act::Create(event("of-node-a", "ebbtide", "node-a")),
        ),
        attempt(
            "an Event counted up",
            format!("{EVENTS}/of-node-a"),
            Act::Patch(
                json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}}),
            ),
        ),
    ])
}

/// Returns attacks by the holder of node-a's token, all of which its roles allow.
fn attacks(cluster: &ControlPlane) -> Result<Vec<Attempt>> {
    let (a, b, host_b) = (
        uid(cluster, "web-a")?,
        uid(cluster, "web-b")?,
        uid(cluster, "host-b")?,
    );
    let (own, theirs) = (
        endpoint("web-a", &a, "node-a"),
        endpoint("web-b", &b, "node-b"),
    );
    let made = |what, object: Value| attempt(what, ENDPOINTS, Act::Create(object));
    let own_pod =
        |what, change: Value| attempt(what, format!("{PODS}/web-a/status"), Act::Patch(change));
    let shared = cluster.get(&["-n", NAMESPACE, "configmap", "ebbtide-leases.shared"])?;
    let shared = with(&shared, "/metadata/resourceVersion", json!(""));
    let lease = |what, place: &str, value: Value| {
        attempt(
            what,
            format!("{MAPS}/ebbtide-leases.shared"),
            Act::Replace(with(&shared, place, value)),
        )
    };
    let of_map = |what, name: &str| -> Result<Attempt> {
        let found = cluster.get(&["-n", NAMESPACE, "configmap", name])?;
        let found = with(&found, "/metadata/resourceVersion", json!(""));
        let changed = with(&found, "/data/node-a", json!("10.9.0.9"));
        Ok(attempt(
            what,
            format!("{MAPS}/{name}"),
            Act::Replace(changed),
        ))
    };
    let of_cloud = |what, name: &str, place: &str, value: Value| -> Result<Attempt> {
        let found = cluster.get(&["-n", NAMESPACE, "configmap", name])?;
        let found = with(&found, "/metadata/resourceVersion", json!(""));
        let changed = with(&found, place, value);
        Ok(attempt(
            what,
            format!("{MAPS}/{name}"),
            Act::Replace(changed),
        ))
    };
    let mut without_b = shared.clone();
    if let Some(data) = without_b["data"].as_object_mut() {
        data.remove("node-b");
    }
    Ok(vec![
        attempt(
            "network-status of another node's pod",
            format!("{PODS}/web-b/status"),
            annotated(STATUS, json!("[]")),
        ),
        own_pod(
            "a pod's address",
            json!({"status": {"podIP": "10.9.0.7", "podIPs": [{"ip": "10.9.0.7"}]}}),
        ),
        own_pod("a pod's end", json!({"status": {"phase": "Succeeded"}})),
        own_pod("readiness", json!({"status": {"conditions": []}})),
        own_pod("a label", json!({"metadata": {"labels": {"app": "bank"}}})),
        own_pod(
            "a label removed",
            json!({"metadata": {"labels": {"app": null}}}),
        ),
        own_pod("a finalizer", json!({"metadata": {"finalizers": ["x/y"]}})),
        own_pod(
            "another annotation",
            json!({"metadata": {"annotations": {"x/y": "z"}}}),
        ),
        own_pod(
            "the pod's networks",
            json!({"metadata": {"annotations": {"v1.multus-cni.io/default-network": "x"}}}),
        ),
        own_pod(
            "an annotation removed",
            json!({"metadata": {"annotations": {"v1.multus-cni.io/default-network": null}}}),
        ),
        own_pod(
            "one more beside network-status",
            json!({"metadata": {"annotations": {STATUS: "[]", "x/y": "z"}}}),
        ),
        made(
            "an endpoint of node-b",
            endpoint("host-b", &host_b, "node-b"),
        ),
        made(
            "one that node-b would look after",
            with(
                &own,
                "/metadata/labels",
                json!({"ebbtide.io/node": "node-b"}),
            ),
        ),
        made(
            "one of no node",
            with(&own, "/status/current/node", json!("")),
        ),
        made("one of nothing", with(&own, "/status", json!({}))),
        made(
            "one that nothing takes along",
            with(&own, "/metadata/ownerReferences", json!([])),
        ),
        made(
            "one that goes with something else",
            with(&own, "/metadata/ownerReferences/0/kind", json!("Node")),
        ),
        made(
            "one of another pod's name",
            with(&own, "/metadata/ownerReferences/0/name", json!("web-b")),
        ),
        made(
            "one whose owner is another pod",
            with(&own, "/metadata/ownerReferences/0/uid", json!("x")),
        ),
        made(
            "one that keeps its namespace",
            with(&own, "/metadata/finalizers", json!(["x/y"])),
        ),
        attempt(
            "node-b's taken",
            format!("{ENDPOINTS}/web-b"),
            Act::Apply(endpoint("web-b", &b, "node-a")),
        ),
        attempt(
            "node-b's changed",
            format!("{ENDPOINTS}/web-b"),
            Act::Apply(with(&theirs, "/status/ownerControllerName", json!("x"))),
        ),
        attempt(
            "node-b's emptied",
            format!("{ENDPOINTS}/web-b"),
            Act::Patch(json!({"status": null})),
        ),
        attempt(
            "node-b's deleted",
            format!("{ENDPOINTS}/web-b"),
            Act::Delete,
        ),
        lease("node-b's lease", "/data/node-b", json!("10.9.0.9")),
        lease("node-b's wish", "/data/_wanted.node-b", json!("1000")),
        lease("a lease of nobody", "/data/node-c", json!("10.9.0.9")),
        lease("the label", "/metadata/labels", json!({})),
        lease("a second label", "/metadata/labels/x", json!("y")),
        lease(
            "the owner",
            "/metadata/ownerReferences",
            json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]),
        ),
        lease(
            "a finalizer of leases",
            "/metadata/finalizers",
            json!(["x/y"]),
        ),
        lease("leases for ever", "/immutable", json!(true)),
        lease("bytes", "/binaryData", json!({"x": "eA=="})),
        attempt(
            "node-b's lease removed",
            format!("{MAPS}/ebbtide-leases.shared"),
            Act::Replace(without_b),
        ),
        of_cloud(
            "node-b's addresses told",
            "ebbtide-cloud.node-b",
            "/data/told.json",
            json!("{1}"),
        )?,
        of_cloud(
            "what it is asked to give back",
            "ebbtide-cloud.node-a",
            "/data/asked.json",
            json!("{1}"),
        )?,
        of_cloud(
            "another key of its map",
            "ebbtide-cloud.node-a",
            "/data/x",
            json!("y"),
        )?,
        of_cloud(
            "its map's owner",
            "ebbtide-cloud.node-a",
            "/metadata/ownerReferences",
            json!([{"apiVersion": "v1", "kind": "Node", "name": "node-b", "uid": "x"}]),
        )?,
        of_map("the agents' configuration", "ebbtide")?,
        of_map(
            "a ConfigMap that is merely called so",
            "ebbtide-leases.plain",
        )?,
        of_map("a ConfigMap that merely has the label", "other")?,
        attempt(
            "an Event of the kubelet's",
            EVENTS,
            Act::Create(event("x", "kubelet", "node-a")),
        ),
        attempt(
            "an Event of node-b's",
            EVENTS,
            Act::Create(event("x", "ebbtide", "node-b")),
        ),
        attempt(
            "the kubelet's Event",
            format!("{EVENTS}/of-the-kubelet"),
            Act::Patch(json!({"metadata": {"labels": {"x": "y"}}})),
        ),
        attempt(
            "node-b's Event",
            format!("{EVENTS}/of-node-b"),
            Act::Patch(json!({"metadata": {"labels": {"x": "y"}}})),
        ),
    ])
}

#[test]
fn a_token_from_a_node_writes_what_is_that_nodes_and_one_that_names_no_node_writes_nothing()
-> Result<()> {
    let Some((cluster, can)) = site()? else {
        return Ok(());
    };
    if !can {
        return without_policies(&cluster);
    }
    of_others(&cluster)?;
    let of = |pod| Holder::of(&cluster.kubeconfig_of(NAMESPACE, "ebbtide", pod)?);
    let (agent, unbound) = (of(Some("agent-a"))?, of(None)?);
    let (attacks, work) = (attacks(&cluster)?, work(&cluster)?);
    // Each policy is enforced from a moment of its own, so one attack is tried on each.
    for what in [
        "network-status of another node's pod",
        "an endpoint of node-b",
        "node-b's wish",
        "an Event of node-b's",
    ] {
        let probe = attacks.iter().find(|attack| attack.what == what);
        until_refused(&agent, probe.unwrap_or(&attacks[0]));
    }
    let mut wrong = agent.wrong(&attacks, true);
    // The opposite: node-b's agent must not do the work of node-a's.
    let other = of(Some("agent-b"))?;
    // Except for objects that do not exist before they are created.
    let on_things = |each: &&Attempt| {
        !["deleted", "counted up"]
            .iter()
            .any(|later| each.what.ends_with(later))
    };
    let elsewhere: Vec<Attempt> = work.iter().filter(on_things).cloned().collect();
    wrong.extend(other.wrong(&elsewhere, true));
    wrong.extend(unbound.wrong(&elsewhere, true));
    wrong.extend(agent.wrong(&work, false));
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Checks that the API server's controller reports no type errors in the expressions.
#[test]
fn the_account_policies_expressions_are_of_the_right_types() -> Result<()> {
    let options = ebbtide_cluster::Options {
        controllers: true,
        ..Default::default()
    };
    let Some(cluster) = ControlPlane::start(options)? else {
        return Ok(());
    };
    if cluster.release()? < Release::new(30) {
        return without_policies(&cluster);
    }
    let deploy = |file: &str| format!("{}/{file}", crate::setup::DEPLOY);
    cluster.install_crds(deploy("crds").as_ref())?;
    cluster.kubectl(&["apply", "-f", &deploy("policy-accounts.yaml")])?;
    let list = cluster.get(&["validatingadmissionpolicies"])?;
    let names = list["items"].as_array().into_iter().flatten();
    let names: Vec<&str> = names
        .filter_map(|each| each["metadata"]["name"].as_str())
        .collect();
    ensure!(names.len() >= 9, "{names:?}");
    for name in names.iter().filter(|name| name.starts_with("ebbtide-")) {
        let policy = cluster.wait_until(&["validatingadmissionpolicy", name], |policy| {
            policy["status"]["observedGeneration"] == policy["metadata"]["generation"]
        })?;
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        ensure!(warnings.is_null(), "{name}: {warnings:#}");
    }
    Ok(())
}
