//! AWS: a text tree with a token (IMDSv2; version 1 is never asked).
//!
//! Sources: Amazon EC2 User Guide, "Use IMDSv2" and "Instance metadata categories"; "Prefix delegation for Amazon EC2
//! network interfaces"; the test data of cloud-init (`test_ec2.py`); amazon-ec2-net-utils for which keys answer 404.

use ebbtide_types::Family;

use crate::{
    Kind, Tree,
    draft::{Draft, reading},
    reading::{ReadError, Reading, Unreadable},
    session::Session,
    text,
    tree::Walk,
};

const ID: &str = "interface-id";
const V4: &str = "local-ipv4s";
const V4_PREFIXES: &str = "ipv4-prefix";
const V6: &str = "ipv6s";
const V6_PREFIXES: &str = "ipv6-prefix";
const SUBNET: &str = "subnet-ipv4-cidr-block";
const SUBNETS_V6: &str = "subnet-ipv6-cidr-blocks";

/// What is asked of each NIC. What there is none of answers 404, as does what is younger than the instance's launch.
const KEYS: [&str; 7] = [ID, V4, V4_PREFIXES, V6, V6_PREFIXES, SUBNET, SUBNETS_V6];

pub(crate) async fn read(session: &mut Session<'_>) -> Result<Reading, ReadError> {
    Ok(parse(&Walk::over(session, &KEYS).await?)?)
}

/// Understands what the tree answered.
///
/// The first of `local-ipv4s` is the primary address; IPv6 has none, so that the first one counts as the node's. The
/// gateway is not told: it is the subnet's first address ("Subnet CIDR blocks" of the Amazon VPC User Guide), and a
/// link-local router for IPv6.
///
/// # Errors
/// If it is not a list of NICs with addresses and prefixes.
pub fn parse(tree: &Tree) -> Result<Reading, Unreadable> {
    let mut drafts = Vec::new();
    for nic in tree.nics()? {
        let mut draft = Draft::new(nic.mac);
        if let Some(id) = tree.leaf(&nic, ID) {
            draft.id(id);
        }
        if let Some(text) = tree.leaf(&nic, V4) {
            draft.addresses_after_first(Kind::V4Addresses, text::addresses(V4, text)?);
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
        for (key, family) in [(SUBNET, Family::V4), (SUBNETS_V6, Family::V6)] {
            for net in text::prefixes(key, tree.leaf(&nic, key).unwrap_or_default())? {
                draft.subnet(family, net);
            }
        }
        draft.first_is_gateway();
        drafts.push(draft);
    }
    reading(drafts)
}
