//! Azure: one JSON document, all of it strings.
//!
//! Sources: "Azure Instance Metadata Service" (the header `Metadata: true`, no proxy, no `X-Forwarded-For`, five requests
//! a second, the order of NICs not guaranteed); the test data of cloud-init (`test_azure.py`). A virtual function shares
//! its MAC with the synthetic NIC that it accelerates: one NIC here, two links on the node.

use std::net::IpAddr;

use ebbtide_types::Family;
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    Client, Kind,
    draft::{Draft, reading},
    reading::{ReadError, Reading, Unreadable, shown},
    text,
};

const PATH: &str = "/metadata/instance/network?api-version=2021-08-01&format=json";

const ADDRESS: &str = "privateIpAddress";
const SUBNET: &str = "subnet";

#[derive(Debug, Deserialize)]
struct Network {
    interface: Vec<Interface>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    mac_address: String,
    ipv4: Option<OfFamily>,
    ipv6: Option<OfFamily>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfFamily {
    ip_address: Option<Vec<Address>>,
    subnet: Option<Vec<Subnet>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    private_ip_address: String,
}

#[derive(Debug, Deserialize)]
struct Subnet {
    address: String,
    prefix: String,
}

pub(crate) async fn read(client: &Client) -> Result<Reading, ReadError> {
    match client.get(PATH, &[("Metadata", "true")]).await? {
        Some(answer) => Ok(parse(&answer.text)?),
        None => Err(ReadError::NoList {
            url: format!("{}{PATH}", client.endpoint()),
            cloud: "Azure",
        }),
    }
}

/// Understands the document.
///
/// The first address of a family is the primary one, which DHCP gives to the node. An address with a length is a prefix:
/// NICs can be given them, but whether the service tells of them, and how, is documented nowhere. The gateway is not told:
/// it is the subnet's first address ("Azure Virtual Network FAQ").
///
/// # Errors
/// If it is not the documented form.
pub fn parse(json: &str) -> Result<Reading, Unreadable> {
    let network: Network =
        serde_json::from_str(json).map_err(|error| Unreadable::Json(shown(&error.to_string())))?;
    let mut drafts = Vec::new();
    for interface in network.interface {
        let mut draft = Draft::new(text::mac(&interface.mac_address)?);
        for (family, answered) in [(Family::V4, interface.ipv4), (Family::V6, interface.ipv6)] {
            let Some(OfFamily { ip_address, subnet }) = answered else {
                continue;
            };
            if let Some(listed) = ip_address {
                add(&mut draft, family, &listed)?;
            }
            for Subnet { address, prefix } in subnet.unwrap_or_default() {
                let net = text::prefix(SUBNET, &format!("{address}/{prefix}"))?;
                draft.subnet(family, net);
            }
        }
        draft.first_is_gateway();
        drafts.push(draft);
    }
    reading(drafts)
}

fn add(draft: &mut Draft, family: Family, listed: &[Address]) -> Result<(), Unreadable> {
    let (addresses, prefixes) = match family {
        Family::V4 => (Kind::V4Addresses, Kind::V4Prefixes),
        Family::V6 => (Kind::V6Addresses, Kind::V6Prefixes),
    };
    let mut singles: Vec<IpAddr> = Vec::new();
    let mut nets: Vec<IpNet> = Vec::new();
    for Address { private_ip_address } in listed {
        match private_ip_address.contains('/') {
            true => nets.push(text::prefix(ADDRESS, private_ip_address)?),
            false => singles.push(text::address(ADDRESS, private_ip_address)?),
        }
    }
    draft.addresses_after_first(addresses, singles);
    draft.prefixes(prefixes, nets);
    Ok(())
}
