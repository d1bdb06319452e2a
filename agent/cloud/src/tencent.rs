//! Tencent Cloud: a text tree without a token; a NIC's addresses are directories in it.
//!
//! Source: CVM documentation, "Querying Instance Metadata" (product 213, document 4934), with its example. It has no IPv6
//! and no prefixes.

use std::net::IpAddr;

use ebbtide_types::Family;

use crate::{
    Kind, Tree,
    draft::{Draft, reading},
    reading::{ReadError, Reading, Unreadable},
    session::Session,
    text,
    tree::Walk,
};

const PRIMARY: &str = "primary-local-ipv4";
/// With the slash: it is a directory, whose entries end with one, too.
const V4: &str = "local-ipv4s/";
const GATEWAY: &str = "gateway";
const MASK: &str = "subnet-mask";

const NO_PRIMARY: &str = "which of them is the NIC's primary one is not told";

fn of_address(address: IpAddr, key: &str) -> String {
    format!("{V4}{address}/{key}")
}

/// The gateway and the mask are told for each address. They are those of the NIC's one subnet, so it is enough to ask for
/// the primary address', and not twice for each of thirty.
pub(crate) async fn read(session: &mut Session<'_>) -> Result<Reading, ReadError> {
    let (mut walk, nics) = Walk::begin(session).await?;
    for nic in &nics {
        walk.leaf(nic, V4).await?;
        let primary = walk.leaf(nic, PRIMARY).await?.unwrap_or_default();
        for address in text::addresses(PRIMARY, primary)?.into_iter().take(1) {
            for key in [GATEWAY, MASK] {
                walk.leaf(nic, &of_address(address, key)).await?;
            }
        }
    }
    Ok(parse(&walk.end().await?)?)
}

/// Understands what the tree answered.
///
/// # Errors
/// If it is not a list of NICs with addresses.
pub fn parse(tree: &Tree) -> Result<Reading, Unreadable> {
    let mut drafts = Vec::new();
    for nic in tree.nics()? {
        let mut draft = Draft::new(nic.mac);
        let primary = tree.leaf(&nic, PRIMARY).unwrap_or_default();
        for address in text::addresses(PRIMARY, primary)?.into_iter().take(1) {
            draft.primary(Family::V4, address);
            let gateway = tree.leaf(&nic, &of_address(address, GATEWAY));
            for gateway in text::addresses(GATEWAY, gateway.unwrap_or_default())? {
                draft.gateway(Family::V4, gateway);
            }
            if let Some(mask) = tree.leaf(&nic, &of_address(address, MASK)) {
                draft.subnet(Family::V4, text::by_mask(MASK, address, mask)?);
            }
        }
        if let Some(text) = tree.leaf(&nic, V4) {
            let entries = text::items(text).map(|entry| entry.strip_suffix('/').unwrap_or(entry));
            let addresses: Result<Vec<_>, _> =
                entries.map(|entry| text::address(V4, entry)).collect();
            let addresses = addresses?;
            match draft.has_primary(Family::V4) {
                // The primary one is missing, so it is no answer.
                _ if addresses.is_empty() => {}
                true => draft.addresses(Kind::V4Addresses, addresses),
                false => draft.leave_out(V4, NO_PRIMARY),
            }
        }
        drafts.push(draft);
    }
    reading(drafts)
}
