//! Google Cloud: a tree that is text or JSON, behind a header that no proxy sends, with long polls.
//!
//! Names are with dashes in paths and in camel case in JSON. Addresses of a NIC besides its own are alias ranges.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use hyper::Method;
use serde_json::{Map, Value, json};

use super::{
    exchange::{Asked, Reply},
    json,
    told::{Told, ToldNic, joined},
};
use crate::plan::Family;

const PROJECT: u64 = 628_944_397_724;
const PROJECT_NAME: &str = "ebbtide";
const ZONE: &str = "europe-west3-a";

/// A request to be answered only after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// The etag of the state that the client knows; `None` for the one at which the request comes.
    pub(super) etag: Option<String>,
    /// The time after which it is answered without a change; `None` for never.
    pub(super) limit: Option<Duration>,
}

/// Returns what a request waits for, if it waits.
pub(super) fn wait(asked: &Asked) -> Option<Wait> {
    asked.is_set("wait_for_change").then(|| Wait {
        etag: asked.query.get("last_etag").cloned(),
        limit: asked
            .query
            .get("timeout_sec")
            .and_then(|seconds| seconds.parse().ok())
            // Zero is no limit.
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
    })
}

/// Returns the etag of a reply.
pub(super) fn etag(reply: &Reply) -> Option<&str> {
    let (_, etag) = reply.headers.iter().find(|(name, _)| *name == "etag")?;
    Some(etag)
}

/// Answers a request.
pub(super) fn answer(asked: &Asked, told: &Told) -> Reply {
    reply(asked, told)
        .with("metadata-flavor", "Google")
        .with("server", "Metadata Server for VM")
        .with("x-frame-options", "SAMEORIGIN")
}

fn reply(asked: &Asked, told: &Told) -> Reply {
    let parts = asked.parts();
    if asked.method != Method::GET && asked.method != Method::HEAD {
        return page(405);
    }
    // What a client asks to find out where it is.
    if parts.is_empty() {
        return Reply::text(200, "computeMetadata/\n").with("content-type", "application/text");
    }
    let is_meant = asked.header("metadata-flavor") == Some("Google")
        || asked.header("x-google-metadata-request") == Some("True");
    if !is_meant || asked.is_forwarded() {
        return page(403);
    }
    let path = match parts.as_slice() {
        ["computeMetadata"] => return Reply::text(200, "v1/\n"),
        ["computeMetadata", "v1", path @ ..] => path,
        _ => return page(404),
    };
    let all = metadata(told);
    let Some(value) = json::find(&all, path) else {
        return page(404);
    };
    let is_recursive = asked.is_set("recursive");
    if json::is_branch(value) && !is_recursive && !asked.path.ends_with('/') {
        return page(301).with("location", format!("{}/", asked.path));
    }
    let alt = asked.query.get("alt").map(String::as_str);
    let as_json = alt == Some("json") || alt.is_none() && is_recursive;
    let reply = match (as_json, is_recursive || !json::is_branch(value)) {
        (true, true) => Reply::json(200, &camel(value)).with("content-type", "application/json"),
        (true, false) => Reply::json(200, &names(value)).with("content-type", "application/json"),
        (false, _) if !json::is_branch(value) => Reply::text(200, json::text(value)),
        (false, true) => Reply::text(200, flat("", value)),
        (false, false) => Reply::text(200, json::listing(value, "\n")),
    };
    let reply = if as_json {
        reply
    } else {
        reply.with("content-type", "application/text")
    };
    let mut hasher = DefaultHasher::new();
    reply.body.hash(&mut hasher);
    reply.with("etag", format!("{:016x}", hasher.finish()))
}

/// A reply without metadata, which is a page of HTML.
fn page(status: u16) -> Reply {
    let body = format!(
        "<!DOCTYPE html>\n<html lang=en>\n  <title>Error {status}</title>\n  <p><b>{status}.</b>\n"
    );
    Reply::text(status, body).with("content-type", "text/html; charset=UTF-8")
}

/// Lists names as JSON.
fn names(value: &Value) -> Value {
    json::listing(value, "").lines().collect()
}

/// Writes all leaves below a value, a path and a value a line.
fn flat(path: &str, value: &Value) -> String {
    let below = |name: &str, value: &Value| match path {
        "" => flat(name, value),
        path => flat(&format!("{path}/{name}"), value),
    };
    match value {
        Value::Object(all) => all.iter().map(|(name, value)| below(name, value)).collect(),
        Value::Array(all) => (0..)
            .zip(all)
            .map(|(number, value): (usize, _)| below(&number.to_string(), value))
            .collect(),
        leaf => format!("{path} {}\n", json::text(leaf)),
    }
}

/// Puts all names into camel case, but not those of attributes, which are their owners'.
fn camel(value: &Value) -> Value {
    match value {
        Value::Object(all) => all
            .iter()
            .map(|(name, below)| match name.as_str() {
                "attributes" => (name.clone(), below.clone()),
                _ => (camel_name(name), camel(below)),
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(all) => all.iter().map(camel).collect(),
        leaf => leaf.clone(),
    }
}

fn camel_name(name: &str) -> String {
    let mut parts = name.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let mut letters = part.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        name + &first.into_iter().chain(letters).collect::<String>()
    })
}

fn metadata(told: &Told) -> Value {
    let interfaces: Vec<Value> = told.nics.iter().map(|nic| interface(nic, told)).collect();
    json!({
        "instance": {
            "attributes": {},
            "cpu-platform": "Intel Broadwell",
            "description": "",
            "disks": [{ "device-name": told.node, "index": 0, "mode": "READ_WRITE", "type": "PERSISTENT" }],
            "guest-attributes": {},
            "hostname": format!("{}.{ZONE}.c.{PROJECT_NAME}.internal", told.node),
            // Readers of JSON take numbers up to 2^63.
            "id": told.number() >> 2,
            "image": "projects/debian-cloud/global/images/debian-12",
            "licenses": [{ "id": "1000205" }],
            "machine-type": format!("projects/{PROJECT}/machineTypes/n2-standard-4"),
            "maintenance-event": "NONE",
            "name": told.node,
            "network-interfaces": interfaces,
            "preempted": "FALSE",
            "remaining-cpu-time": -1,
            "scheduling": {
                "automatic-restart": "TRUE",
                "on-host-maintenance": "MIGRATE",
                "preemptible": "FALSE",
            },
            "service-accounts": {},
            "tags": [],
            "virtual-clock": { "drift-token": "0" },
            "zone": format!("projects/{PROJECT}/zones/{ZONE}"),
        },
        "oslogin": {},
        "project": {
            "attributes": {},
            "numeric-project-id": PROJECT,
            "project-id": PROJECT_NAME,
        },
    })
}

fn interface(nic: &ToldNic, told: &Told) -> Value {
    let texts = |all: Vec<String>| -> Value { all.into() };
    let ranges = |family| -> Vec<String> {
        if nic.is_bare {
            return Vec::new();
        }
        nic.blocks_of(family)
            .map(|block| block.to_string())
            .collect()
    };
    json!({
        "access-configs": [{ "external-ip": "", "type": "ONE_TO_ONE_NAT" }],
        "dns-servers": ["169.254.169.254"],
        "forwarded-ips": [],
        "forwarded-ipv6s": texts(ranges(Family::V6)),
        "gateway": nic.gateway(Family::V4).to_string(),
        "gateway-ipv6": nic.gateway(Family::V6).to_string(),
        "ip": if nic.is_bare { String::new() } else { joined(&nic.addresses(Family::V4)[..1], "") },
        "ip-aliases": texts(ranges(Family::V4)),
        "ipv6s": texts(vec![nic.nic.primary(Family::V6).to_string()]),
        "mac": nic.mac(),
        "mtu": told.mtu,
        "network": format!("projects/{PROJECT}/networks/{}", nic.nic.name),
        "subnetmask": nic.netmask(),
        "target-instance-ips": [],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_camel_case_and_those_of_attributes_are_left() {
        let value = json!({
            "network-interfaces": [{ "ip-aliases": [], "forwarded-ipv6s": [] }],
            "attributes": { "kube-env": "x" },
        });
        assert_eq!(
            camel(&value),
            json!({
                "networkInterfaces": [{ "ipAliases": [], "forwardedIpv6s": [] }],
                "attributes": { "kube-env": "x" },
            })
        );
        assert_eq!(
            flat("", &json!({ "a": { "b": 1, "c": ["x"] } })),
            "a/b 1\na/c/0 x\n"
        );
    }
}
