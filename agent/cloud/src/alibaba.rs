//! Alibaba Cloud: a text tree, with a token where the instance is in the hardened mode or can be.
//!
//! Sources: ECS documentation, "Instance metadata"; Terway's metadata package for lists in brackets with and without
//! quotes, and for 404 where there is no IPv6; the test data of cloud-init (`test_aliyun.py`).

use ebbtide_types::Family;

use crate::{
    Kind, Tree,
    draft::{Draft, reading},
    reading::{ReadError, Reading, Unreadable},
    session::Session,
    text,
    tree::Walk,
};

const ID: &str = "network-interface-id";
const PRIMARY: &str = "primary-ip-address";
const V4: &str = "private-ipv4s";
const V4_PREFIXES: &str = "ipv4-prefixes";
const V6: &str = "ipv6s";
const V6_PREFIXES: &str = "ipv6-prefixes";
const SUBNET: &str = "vswitch-cidr-block";
const SUBNET_V6: &str = "vswitch-ipv6-cidr-block";
const GATEWAY: &str = "gateway";
const GATEWAY_V6: &str = "ipv6-gateway";

const KEYS: [&str; 10] = [
    ID,
    PRIMARY,
    V4,
    V4_PREFIXES,
    V6,
    V6_PREFIXES,
    SUBNET,
    SUBNET_V6,
    GATEWAY,
    GATEWAY_V6,
];

const NO_PRIMARY: &str = "which of them is the NIC's primary one is not told";

pub(crate) async fn read(session: &mut Session<'_>) -> Result<Reading, ReadError> {
    let (mut walk, nics) = Walk::begin(session).await?;
    for nic in &nics {
        for key in KEYS {
            walk.leaf(nic, key).await?;
        }
    }
    Ok(parse(&walk.end().await?)?)
}

/// Understands what the tree answered.
///
/// `private-ipv4s` includes the primary address, at any place. The gateway is told, and never guessed: it is the last but
/// two of its subnet in all captures, but nobody promises that.
///
/// # Errors
/// If it is not a list of NICs with addresses and prefixes.
pub fn parse(tree: &Tree) -> Result<Reading, Unreadable> {
    let mut drafts = Vec::new();
    for nic in tree.nics()? {
        let mut draft = Draft::new(nic.mac);
        let leaf = |key| tree.leaf(&nic, key).unwrap_or_default();
        draft.id(leaf(ID));
        for address in text::addresses(PRIMARY, leaf(PRIMARY))? {
            draft.primary(Family::V4, address);
        }
        if let Some(text) = tree.leaf(&nic, V4) {
            let addresses = text::addresses(V4, text)?;
            match draft.has_primary(Family::V4) {
                // The primary one is missing, so it is no answer.
                _ if addresses.is_empty() => {}
                true => draft.addresses(Kind::V4Addresses, addresses),
                false => draft.leave_out(V4, NO_PRIMARY),
            }
        }
        if let Some(text) = tree.leaf(&nic, V6) {
            draft.v6_addresses(text::addresses(V6, text)?);
        }
        for (key, kind) in [
            (V4_PREFIXES, Kind::V4Prefixes),
            (V6_PREFIXES, Kind::V6Prefixes),
        ] {
            if let Some(text) = tree.leaf(&nic, key) {
                draft.prefixes(kind, text::prefixes(key, text)?);
            }
        }
        for (subnet, gateway, family) in [
            (SUBNET, GATEWAY, Family::V4),
            (SUBNET_V6, GATEWAY_V6, Family::V6),
        ] {
            for net in text::prefixes(subnet, leaf(subnet))? {
                draft.subnet(family, net);
            }
            for address in text::addresses(gateway, leaf(gateway))? {
                draft.gateway(family, address);
            }
        }
        drafts.push(draft);
    }
    reading(drafts)
}
