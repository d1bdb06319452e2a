//! Finds fields of manifests that have no effect: they are kept, and reported. Pure.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use super::manifest::{CoordinatorSpec, MultusConfigSpec};

/// The path of a `SpiderCoordinator`'s fields.
pub(super) const CLUSTER: &str = "spec";

/// A field without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// Its path.
    pub(super) field: String,
    /// The reason, and what can be done.
    pub(super) message: String,
}

fn note(field: impl Into<String>, message: &str) -> Note {
    Note {
        field: field.into(),
        message: format!("has no effect: {message}"),
    }
}

/// Returns the unknown fields: those of `written` that its parsed form `understood` does not have.
pub(super) fn unknown(field: &str, written: &Value, understood: &impl Serialize) -> Vec<Note> {
    let understood = serde_json::to_value(understood).unwrap_or(Value::Null);
    let mut notes = Vec::new();
    compare(field, written, &understood, &mut notes);
    notes
}

fn compare(path: &str, written: &Value, understood: &Value, notes: &mut Vec<Note>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written {
                let path = format!("{path}.{key}");
                match understood.get(key) {
                    Some(known) => compare(&path, value, known, notes),
                    None if is_nothing(value) => {}
                    None => notes.push(note(
                        path,
                        "no such field is known; correct its name, or remove it",
                    )),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) => {
            for (position, (written, understood)) in written.iter().zip(understood).enumerate() {
                compare(&format!("{path}[{position}]"), written, understood, notes);
            }
        }
        _ => {}
    }
}

/// Whether the value means the same as a missing field.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Returns the fields without effect of a network that the agent makes.
pub(super) fn of_network(spec: &MultusConfigSpec) -> Vec<Note> {
    let mut notes = Vec::new();
    if spec
        .chain_cni_json_data
        .as_ref()
        .is_some_and(|all| !all.is_empty())
    {
        notes.push(note(
            "spec.chainCNIJsonData",
            "where no Multus is in front. This agent makes the interface alone, and runs no other plugins after it; \
             for all pods of a node these can be chained in the CNI configuration (cni.conflist of the chart)",
        ));
    }
    let ipvlan = spec.ipvlan.as_ref();
    let rdma = ipvlan.and_then(|ipvlan| ipvlan.rdma_resource_name.as_deref());
    if rdma.is_some_and(|name| !name.is_empty()) {
        notes.push(note(
            "spec.ipvlan.rdmaResourceName",
            "this agent asks for no RDMA devices; the pod's own `resources` do",
        ));
    }
    // Without it the block is not read, and Spiderpool fills it in by itself.
    if spec.enable_coordinator.unwrap_or(true)
        && let Some(coordinator) = &spec.coordinator
    {
        notes.extend(of_coordinator("spec.coordinator", coordinator));
    }
    notes
}

/// Returns the fields without effect of a coordinator, or a network's block of the same fields.
/// Defaults that Spiderpool fills in are not reported.
pub(super) fn of_coordinator(place: &str, spec: &CoordinatorSpec) -> Vec<Note> {
    let text = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let other = |number: Option<i64>, usual: &[i64]| number.is_some_and(|n| !usual.contains(&n));
    let link = spec.veth_link_address.as_deref().unwrap_or_default();
    let of_cluster = place == CLUSTER;
    let mut notes = Vec::new();
    for (field, is_set, why) in [
        (
            "mode",
            of_cluster && !matches!(spec.mode.as_deref(), None | Some("" | "auto" | "underlay")),
            "each network's own `coordinator.mode` is looked at; write it there",
        ),
        (
            "podCIDRType",
            !of_cluster && spec.pod_cidr_type.as_deref() == Some("cluster"),
            "it is the SpiderCoordinator's, for all networks; write it there",
        ),
        (
            "podCIDRType",
            !matches!(
                spec.pod_cidr_type.as_deref(),
                None | Some("" | "auto" | "cluster" | "none")
            ),
            "the networks of another plugin's pods are not looked for; name them in hijackCIDR where pods are to reach \
             them through their node",
        ),
        (
            "policyRoutes",
            spec.policy_routes
                .as_ref()
                .is_some_and(|all| !all.is_empty()),
            "write them as `routes` of the pool, or in the pod's annotation ipam.spidernet.io/routes",
        ),
        (
            "podMACPrefix",
            text(&spec.pod_mac_prefix),
            "an ipvlan interface has its NIC's MAC address",
        ),
        (
            "tunePodRoutes",
            spec.tune_pod_routes == Some(false),
            "the routes of several interfaces are always kept apart",
        ),
        (
            "hostRuleTable",
            other(spec.host_rule_table, &[0, 500]),
            "set `hostTable` in the agent's configuration",
        ),
        (
            "podRPFilter",
            other(spec.pod_rp_filter, &[0]),
            "rp_filter is left as it is, and works in every setting",
        ),
        (
            "hostRPFilter",
            other(spec.host_rp_filter, &[0]),
            "rp_filter is left as it is, and works in every setting",
        ),
        (
            "txQueueLen",
            other(spec.tx_queue_len, &[0]),
            "an ipvlan interface has no queue of its own",
        ),
        (
            "vethLinkAddress",
            text(&spec.veth_link_address),
            if link.parse::<IpAddr>().is_ok() {
                "the veth needs no address of its own"
            } else {
                "the veth needs no address of its own (and this is no address)"
            },
        ),
        (
            "vethMTU",
            other(spec.veth_mtu, &[0, 1500]),
            "the veth's MTU follows the NIC's",
        ),
        ("tuneMode", text(&spec.tune_mode), "it is called `mode`"),
        (
            "detectIPConflict",
            spec.detect_ip_conflict == Some(true),
            "addresses are not probed before they are handed out",
        ),
        (
            "detectGateway",
            spec.detect_gateway == Some(true),
            "gateways are not probed before a pod starts",
        ),
        (
            "detectOptions",
            spec.detect_options.is_some(),
            "nothing is probed before a pod starts",
        ),
    ] {
        if is_set {
            notes.push(note(format!("{place}.{field}"), why));
        }
    }
    notes
}
