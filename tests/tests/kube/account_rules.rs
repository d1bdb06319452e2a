//! The account policies' rules about ConfigMaps and pools, evaluated without an API server: those before 1.30 have no
//! policies.

use std::{fs, path::Path};

use anyhow::{Result, bail, ensure};
use cel::Value;
use ebbtide_types::yaml;
use serde_json::{Value as Json, json};

use crate::{
    account_objects::with,
    cel::{evaluate, map, value},
    setup::DEPLOY,
};

/// Returns a policy from the shipped file.
fn policy(name: &str) -> Result<Json> {
    let text = fs::read_to_string(Path::new(DEPLOY).join("policy-accounts.yaml"))?;
    for document in yaml::documents(&text) {
        let object: Json = yaml::read(&document)?;
        if object["kind"] == "ValidatingAdmissionPolicy" && object["metadata"]["name"] == name {
            return Ok(object["spec"].clone());
        }
    }
    bail!("there is no policy {name}")
}

fn text<'a>(item: &'a Json, field: &str) -> &'a str {
    item[field].as_str().unwrap_or_default()
}

/// Returns the messages of the rules that refuse a write. Without `now` it is a deletion, without `was` a creation.
fn refused(policy: &Json, was: Option<&Json>, now: Option<&Json>) -> Result<Vec<String>> {
    let operation = match (was, now) {
        (None, _) => "CREATE",
        (_, None) => "DELETE",
        _ => "UPDATE",
    };
    let request = json!({
        "operation": operation,
        "userInfo": {"username": "x", "extra": {"authentication.kubernetes.io/node-name": ["node-a"]}},
    });
    let object = |object: Option<&Json>| object.map_or(Value::Null, value);
    let base = [
        ("object", object(now)),
        ("oldObject", object(was)),
        ("request", value(&request)),
    ];
    let list = |field: &str| policy[field].as_array().cloned().unwrap_or_default();
    let mut variables: Vec<(String, Value)> = Vec::new();
    let given = |variables: &[(String, Value)]| {
        let known = variables.iter();
        let known = map(known.map(|(name, value)| (name.as_str(), value.clone())));
        [&base[..], &[("variables", known)]].concat()
    };
    for variable in list("variables") {
        // Variables are evaluated when a rule uses them, so an error is the rule's.
        if let Ok(found) = evaluate(text(&variable, "expression"), &given(&variables))? {
            variables.push((text(&variable, "name").to_owned(), found));
        }
    }
    let all = given(&variables);
    let mut broken = Vec::new();
    for rule in list("validations") {
        match evaluate(text(&rule, "expression"), &all)? {
            Ok(Value::Bool(true)) => {}
            Ok(Value::Bool(false)) => broken.push(text(&rule, "message").to_owned()),
            other => bail!("{}: {other:?}", text(&rule, "expression")),
        }
    }
    Ok(broken)
}

/// A write: what it is, the object before and after it, and whether it is allowed.
type Row = (&'static str, Option<Json>, Option<Json>, bool);

fn check(name: &str, rows: Vec<Row>) -> Result<()> {
    let policy = policy(name)?;
    let mut wrong = Vec::new();
    for (what, was, now, is_allowed) in rows {
        let broken = refused(&policy, was.as_ref(), now.as_ref())?;
        if broken.is_empty() != is_allowed {
            wrong.push(format!("{what}: {broken:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{name}: {wrong:#?}");
    Ok(())
}

fn cloud_map(node: &str) -> Json {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": format!("ebbtide-cloud.{node}"), "labels": {"ebbtide.io/node-cloud": "true"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": "x"}],
        },
        "data": {"told.json": "{}", "asked.json": "{}"},
    })
}

fn leases() -> Json {
    json!({
        "metadata": {"name": "ebbtide-leases.a", "labels": {"ebbtide.io/leases": "true"}},
        "data": {"node-a": "10.0.0.1", "node-b": "10.0.0.2"},
    })
}

/// A pool as the controller publishes it.
fn published() -> Json {
    json!({
        "metadata": {
            "name": "node-a-ens6-v4", "labels": {"ebbtide.io/node": "node-a"},
            "annotations": {"ebbtide.io/derived": "aws eni-6"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "x"}],
        },
        "spec": {"subnet": "10.0.1.0/24", "ips": ["10.0.1.5"], "nodeName": ["node-a"]},
    })
}

fn declared() -> Json {
    json!({
        "metadata": {"name": "mine", "labels": {"team": "a"}},
        "spec": {"subnet": "10.0.1.0/24", "ips": ["10.0.1.5"]},
    })
}

#[test]
fn an_agent_writes_what_it_tells_of_its_own_node_alone() -> Result<()> {
    let own = cloud_map("node-a");
    let update =
        |was: &Json, place: &str, to: Json| (Some(was.clone()), Some(with(was, place, to)));
    let mut rows = Vec::new();
    for (what, was, place, to, is_allowed) in [
        ("told", &own, "/data/told.json", json!("{1}"), true),
        ("asked", &own, "/data/asked.json", json!("{1}"), false),
        ("another key", &own, "/data/node-a", json!("x"), false),
        ("a label", &own, "/metadata/labels/x", json!("y"), false),
        (
            "the owner",
            &own,
            "/metadata/ownerReferences",
            json!([]),
            false,
        ),
        ("for ever", &own, "/immutable", json!(true), false),
        (
            "another node's",
            &cloud_map("node-b"),
            "/data/told.json",
            json!("{1}"),
            false,
        ),
        (
            "its lease",
            &leases(),
            "/data/node-a",
            json!("10.0.0.3"),
            true,
        ),
        (
            "another's lease",
            &leases(),
            "/data/node-b",
            json!("10.0.0.3"),
            false,
        ),
        (
            "a report among leases",
            &leases(),
            "/data/told.json",
            json!("{1}"),
            false,
        ),
    ] {
        let (was, now) = update(was, place, to);
        rows.push((what, was, now, is_allowed));
    }
    let plain = with(&own, "/metadata/labels", json!({}));
    let (was, now) = update(&plain, "/data/told.json", json!("{1}"));
    rows.push(("without the label", was, now, false));
    rows.push(("made", None, Some(own.clone()), false));
    rows.push(("deleted", Some(own), None, false));
    check("ebbtide-node-leases", rows)
}

#[test]
fn the_controller_makes_nodes_maps_and_writes_nothing_into_them() -> Result<()> {
    let full = cloud_map("node-a");
    let empty = with(&full, "/data", json!({}));
    let new_leases = with(&leases(), "/data", json!({}));
    let unowned = with(&empty, "/metadata/ownerReferences", json!([]));
    let other = with(&empty, "/metadata/name", json!("ebbtide-cloud.node-b"));
    let plain = with(&empty, "/metadata/labels", json!({}));
    let told = with(&full, "/data/told.json", json!("{1}"));
    let mut without = full.clone();
    if let Some(data) = without["data"].as_object_mut() {
        data.remove("asked.json");
    }
    check(
        "ebbtide-controller-leases",
        vec![
            ("a node's", None, Some(empty), true),
            ("a pool's", None, Some(new_leases), true),
            ("with contents", None, Some(full.clone()), false),
            ("that nothing takes along", None, Some(unowned), false),
            ("of another node's name", None, Some(other), false),
            ("without the label", None, Some(plain), false),
            ("what the agent told", Some(full.clone()), Some(told), false),
            ("what it is asked", Some(full.clone()), Some(without), false),
            ("deleted", Some(full), None, false),
        ],
    )
}

#[test]
fn the_controller_writes_pools_that_it_publishes_and_completes_others() -> Result<()> {
    let ours = published();
    let mine = declared();
    let new = |place: &str, to: Json| Some(with(&published(), place, to));
    let finalizers = json!(["spiderpool.spidernet.io"]);
    let disguised = with(&ours, "/metadata/name", json!("mine"));
    check(
        "ebbtide-controller-pools",
        vec![
            ("one for a node", None, Some(ours.clone()), true),
            (
                "without a label: a long name",
                None,
                new("/metadata/labels", json!({})),
                true,
            ),
            (
                "without the mark",
                None,
                new("/metadata/annotations", json!({})),
                false,
            ),
            (
                "without an owner",
                None,
                new("/metadata/ownerReferences", json!([])),
                false,
            ),
            (
                "another node's label",
                None,
                new("/metadata/labels", json!({"ebbtide.io/node": "b"})),
                false,
            ),
            (
                "for another node",
                None,
                new("/spec/nodeName", json!(["node-b"])),
                false,
            ),
            (
                "for all nodes",
                None,
                new("/spec/nodeName", json!([])),
                false,
            ),
            (
                "owned by a pod",
                None,
                new("/metadata/ownerReferences/0/kind", json!("Pod")),
                false,
            ),
            (
                "that stays",
                None,
                new("/metadata/finalizers", json!(["x/y"])),
                false,
            ),
            ("a declared one", None, Some(mine.clone()), false),
            (
                "its addresses",
                Some(ours.clone()),
                new("/spec/ips", json!(["10.0.1.6"])),
                true,
            ),
            (
                "put back: the mark",
                Some(with(&ours, "/metadata/annotations", json!({}))),
                Some(ours.clone()),
                true,
            ),
            (
                "put back: the owner",
                Some(with(&ours, "/metadata/ownerReferences", json!([]))),
                Some(ours.clone()),
                true,
            ),
            (
                "the mark taken away",
                Some(ours.clone()),
                new("/metadata/annotations", json!({})),
                false,
            ),
            ("deleted", Some(ours.clone()), None, true),
            ("a declared one deleted", Some(mine.clone()), None, false),
            (
                "one with the mark alone deleted",
                Some(with(
                    &mine,
                    "/metadata/annotations",
                    json!({"ebbtide.io/derived": "x"}),
                )),
                None,
                false,
            ),
            (
                "a declared one made ours",
                Some(mine.clone()),
                Some(disguised),
                false,
            ),
            (
                "its version",
                Some(mine.clone()),
                Some(with(&mine, "/spec/ipVersion", json!(4))),
                true,
            ),
            (
                "its finalizer",
                Some(mine.clone()),
                Some(with(&mine, "/metadata/finalizers", finalizers)),
                true,
            ),
            (
                "its addresses, declared",
                Some(mine.clone()),
                Some(with(&mine, "/spec/ips", json!([]))),
                false,
            ),
            (
                "its label",
                Some(mine.clone()),
                Some(with(&mine, "/metadata/labels/team", json!("b"))),
                false,
            ),
        ],
    )
}
