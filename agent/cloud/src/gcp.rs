//! Google Cloud: one JSON document with a version, for whose change the service can wait.
//!
//! Sources: Compute Engine documentation, "Predefined metadata keys" and "Wait for updates to metadata values";
//! google-guest-agent for the long poll; an answer of a GKE node with three NICs, quoted in a DRA driver's source. Load
//! balancers' addresses (`forwardedIps`, `targetInstanceIps`) are the node's to answer, and never a pod's.

use std::{net::IpAddr, time::Duration};

use ebbtide_types::Family;
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    Client, Kind,
    client::Answer,
    draft::{Draft, reading},
    reading::{ReadError, Reading, Unreadable, shown},
    request_error::RequestError,
    text,
};

const PATH: &str = "/computeMetadata/v1/instance/network-interfaces/?recursive=true&alt=json";

/// The header that both sides send, so that neither takes a stranger for the other.
const FLAVOR: (&str, &str) = ("Metadata-Flavor", "Google");

/// The longest time for an answer that waits for a change: the service waits for 60 s.
const WAIT: Duration = Duration::from_secs(70);

const ALIASES: &str = "ipAliases";
const MASK: &str = "subnetmask";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    mac: String,
    ip: Option<String>,
    subnetmask: Option<String>,
    gateway: Option<String>,
    ip_aliases: Option<Vec<String>>,
    ipv6s: Option<Vec<String>>,
}

pub(crate) async fn read(client: &Client) -> Result<Reading, ReadError> {
    let answer = client.get(PATH, &[FLAVOR]).await;
    understood(client, answer)
}

/// Waits for another version than this one; without one the answer comes at once.
pub(crate) async fn follow(client: &Client, etag: Option<&str>) -> Result<Reading, ReadError> {
    let etag = etag.filter(|etag| is_etag(etag)).unwrap_or("NONE");
    let path = format!("{PATH}&wait_for_change=true&timeout_sec=60&last_etag={etag}");
    let answer = client.get_within(&path, &[FLAVOR], WAIT).await;
    understood(client, answer)
}

/// Whether this is a version as Google's service gives them (hex digits): it becomes a part of a request.
fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn understood(
    client: &Client,
    answer: Result<Option<Answer>, RequestError>,
) -> Result<Reading, ReadError> {
    let url = || format!("{}{PATH}", client.endpoint());
    let Some(answer) = answer? else {
        return Err(ReadError::NoList {
            url: url(),
            cloud: "Google Cloud",
        });
    };
    if answer.header(FLAVOR.0) != Some(FLAVOR.1) {
        return Err(ReadError::Stranger { url: url() });
    }
    let etag = answer.header("etag").filter(|etag| is_etag(etag));
    Ok(Reading {
        etag: etag.map(str::to_owned),
        ..parse(&answer.text)?
    })
}

/// Understands the document.
///
/// `ipAliases` has ranges and single addresses, usually of a secondary range, which is outside the NIC's subnet.
/// `subnetmask` is the subnet's, not the `/32` that DHCP gives to the node.
///
/// # Errors
/// If it is not the documented form.
pub fn parse(json: &str) -> Result<Reading, Unreadable> {
    let interfaces: Vec<Interface> =
        serde_json::from_str(json).map_err(|error| Unreadable::Json(shown(&error.to_string())))?;
    let mut drafts = Vec::new();
    for (number, interface) in interfaces.into_iter().enumerate() {
        let mut draft = Draft::new(text::mac(&interface.mac)?);
        // The console and gcloud name NICs by their place in this list.
        draft.id(&format!("nic{number}"));
        // A NIC with IPv6 alone has no `ip`, or an empty one.
        let ip = interface.ip.filter(|ip| !ip.is_empty());
        let ip = ip.map(|ip| text::address("ip", &ip)).transpose()?;
        if let Some(address) = ip {
            draft.primary(Family::V4, address);
            if let Some(mask) = interface.subnetmask.filter(|mask| !mask.is_empty()) {
                draft.subnet(Family::V4, text::by_mask(MASK, address, &mask)?);
            }
        }
        if let Some(gateway) = interface.gateway.filter(|gateway| !gateway.is_empty()) {
            draft.gateway(Family::V4, text::address("gateway", &gateway)?);
        }
        if let Some(aliases) = interface.ip_aliases {
            let (singles, ranges) = split(&aliases)?;
            draft.addresses(Kind::V4Addresses, singles);
            draft.prefixes(Kind::V4Prefixes, ranges);
        }
        if let Some(listed) = interface.ipv6s {
            let addresses: Result<Vec<_>, _> = listed
                .iter()
                .map(|each| text::address("ipv6s", each))
                .collect();
            draft.v6_addresses(addresses?);
        }
        drafts.push(draft);
    }
    reading(drafts)
}

/// Splits aliases into single addresses, with or without `/32`, and ranges.
fn split(aliases: &[String]) -> Result<(Vec<IpAddr>, Vec<IpNet>), Unreadable> {
    let (mut singles, mut ranges) = (Vec::new(), Vec::new());
    for alias in aliases {
        let net = match alias.contains('/') {
            true => text::prefix(ALIASES, alias)?,
            false => IpNet::from(text::address(ALIASES, alias)?),
        };
        match net.prefix_len() == net.max_prefix_len() {
            true => singles.push(net.addr()),
            false => ranges.push(net),
        }
    }
    Ok((singles, ranges))
}
