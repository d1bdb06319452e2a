//! Azure: JSON, in which all is strings, behind a header that no proxy sends.
//!
//! It answers the primary address of the first NIC alone, and five requests a second. It tells no gateways, and no
//! prefixes as far as known.

use hyper::Method;
use serde_json::{Value, json};

use super::{
    Knobs,
    exchange::{Asked, Reply},
    json,
    told::{Told, ToldNic},
};
use crate::plan::Family;

/// The versions that it knows; it lists the newest three.
const VERSIONS: [&str; 12] = [
    "2025-04-07",
    "2023-11-15",
    "2023-07-01",
    "2021-12-13",
    "2021-08-01",
    "2021-05-01",
    "2021-02-01",
    "2020-09-01",
    "2020-06-01",
    "2019-06-01",
    "2018-10-01",
    "2017-04-02",
];

/// Whether it answers this address of a node at all.
pub(super) fn knows(asked: &Asked, told: &Told) -> bool {
    told.first()
        .is_none_or(|first| asked.source == first.nic.primary(Family::V4))
}

/// Answers a request. `in_this_second` says how many came, with this one.
pub(super) fn answer(asked: &Asked, told: &Told, in_this_second: usize, knobs: &Knobs) -> Reply {
    let failure = |status, text: &str| Reply::json(status, &json!({ "error": text }));
    if in_this_second > knobs.azure_rate {
        return failure(429, "Too many requests").with("retry-after", "1");
    }
    if asked.is_forwarded() {
        return failure(400, "Bad request. X-Forwarded-For header is not allowed");
    }
    if !asked
        .header("metadata")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    {
        return failure(400, "Bad request. Required metadata header not specified");
    }
    if asked.method != Method::GET {
        return failure(405, "Method not allowed");
    }
    let parts = asked.parts();
    if parts == ["metadata", "versions"] {
        return Reply::json(200, &json!({ "apiVersions": VERSIONS }));
    }
    match asked.query.get("api-version") {
        Some(version) if VERSIONS.contains(&version.as_str()) => {}
        asked => {
            let what = match asked {
                Some(_) => "is invalid or not supported",
                None => "was not specified in the request",
            };
            let error = format!(
                "Bad request. api-version {what}. For more information refer to aka.ms/azureimds"
            );
            return Reply::json(
                400,
                &json!({ "error": error, "newest-versions": VERSIONS[..3] }),
            );
        }
    }
    let ["metadata", "instance", path @ ..] = parts.as_slice() else {
        return failure(404, "Not found");
    };
    let all = instance(told, knobs);
    let Some(value) = json::find(&all, path) else {
        return failure(404, "Not found");
    };
    let is_text = asked.query.get("format").is_some_and(|form| form == "text");
    match (is_text, json::is_branch(value)) {
        (false, true) => Reply::json(200, value),
        (true, true) => Reply::text(200, json::listing(value, "")),
        (true, false) => Reply::text(200, json::text(value)),
        // Microsoft: for leaves, the format of text must be requested.
        (false, false) => failure(404, "Not found"),
    }
}

fn instance(told: &Told, knobs: &Knobs) -> Value {
    let interfaces: Vec<Value> = told.nics.iter().map(|nic| interface(nic, knobs)).collect();
    json!({
        "compute": {
            "azEnvironment": "AzurePublicCloud",
            "location": "westeurope",
            "name": told.node,
            "osType": "Linux",
            "resourceGroupName": "ebbtide",
            "subscriptionId": "00000000-0000-4000-8000-000000000eb8",
            "tags": "",
            "vmId": format!("00000000-0000-4000-8000-{:012x}", told.number() >> 16),
            "vmSize": "Standard_D4s_v5",
            "zone": "1",
        },
        "network": { "interface": interfaces },
    })
}

fn interface(nic: &ToldNic, knobs: &Knobs) -> Value {
    let addresses = |family, public: bool| -> Vec<Value> {
        let all = if nic.is_bare {
            Vec::new()
        } else {
            nic.addresses(family)
        };
        all.iter()
            .map(|address| {
                if public {
                    json!({ "privateIpAddress": address.to_string(), "publicIpAddress": "" })
                } else {
                    json!({ "privateIpAddress": address.to_string() })
                }
            })
            .collect()
    };
    let subnet = |family| -> Value {
        let subnet = nic.subnet(family);
        json!([{
            "address": subnet.addr().to_string(),
            "prefix": subnet.prefix_len().to_string(),
        }])
    };
    let mut v6 = json!({ "ipAddress": addresses(Family::V6, false) });
    if knobs.azure_v6_subnets {
        v6["subnet"] = subnet(Family::V6);
    }
    json!({
        "ipv4": { "ipAddress": addresses(Family::V4, true), "subnet": subnet(Family::V4) },
        "ipv6": v6,
        "macAddress": nic.mac_with("").to_uppercase(),
    })
}
