//! EC2's answers. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use ebbtide_types::{Family, Mac};
use ipnet::IpNet;
use roxmltree::Node;

use crate::xml::{self, BadAnswer};

/// A NIC, as EC2 describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its ID, as in `eni-0a1b2c3d`.
    pub id: String,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// The instance that it is attached to.
    pub instance: Option<String>,
    /// Its own addresses, which are never taken away.
    pub primary: BTreeSet<IpAddr>,
    /// What else was assigned to it: addresses as /32 and /128, and prefixes.
    pub blocks: BTreeSet<IpNet>,
}

impl Described {
    /// Returns how much of its quota is used: each address counts, and each prefix as one.
    #[must_use]
    pub fn slots(&self, family: Family) -> u64 {
        let own = self.primary.iter().map(|own| Family::of(*own));
        let blocks = self.blocks.iter().map(Family::of_net);
        own.chain(blocks).filter(|each| *each == family).count() as u64
    }
}

/// How much a NIC of an instance type may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// IPv4 addresses and prefixes, the NIC's own address included.
    pub v4: u64,
    /// IPv6 addresses and prefixes.
    pub v6: u64,
}

impl Limits {
    /// Returns the limit of a family.
    #[must_use]
    pub const fn of(self, family: Family) -> u64 {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn net(text: &str, name: &'static str) -> Result<IpNet, BadAnswer> {
    match text.contains('/') {
        true => xml::value(text, name).map(|net: IpNet| net.trunc()),
        false => xml::value(text, name).map(single),
    }
}

/// Reads the answer to DescribeNetworkInterfaces, and the token of its next page.
pub(super) fn described(text: &str) -> Result<(Vec<Described>, Option<String>), BadAnswer> {
    const SET: &str = "networkInterfaceSet";
    let document = xml::parse(text)?;
    let root = document.root_element();
    xml::child(root, SET).ok_or(BadAnswer::Missing(SET))?;
    let nics = xml::items(root, SET).map(nic).collect::<Result<_, _>>()?;
    Ok((nics, xml::text(root, "nextToken").map(str::to_owned)))
}

fn nic(item: Node<'_, '_>) -> Result<Described, BadAnswer> {
    let missing = |name| BadAnswer::Missing(name);
    let id = xml::text(item, "networkInterfaceId").ok_or(missing("networkInterfaceId"))?;
    let mac = xml::text(item, "macAddress").and_then(|mac| Mac::try_from(mac.to_owned()).ok());
    let attachment = xml::child(item, "attachment");
    let instance = attachment.and_then(|attached| xml::text(attached, "instanceId"));
    let (mut primary, mut blocks) = (BTreeSet::new(), BTreeSet::new());
    // The NIC's own address is here, too, also where a list does not mark it.
    if let Some(own) = xml::text(item, "privateIpAddress") {
        primary.insert(xml::value(own, "privateIpAddress")?);
    }
    for (set, field, mark) in [
        ("privateIpAddressesSet", "privateIpAddress", "primary"),
        ("ipv6AddressesSet", "ipv6Address", "isPrimaryIpv6"),
    ] {
        for each in xml::items(item, set) {
            let Some(address) = xml::text(each, field) else {
                return Err(missing("privateIpAddress"));
            };
            let address: IpAddr = xml::value(address, "an address")?;
            match xml::text(each, mark) == Some("true") {
                true => drop(primary.insert(address)),
                false => drop(blocks.insert(single(address))),
            }
        }
    }
    for (set, field) in [
        ("ipv4PrefixSet", "ipv4Prefix"),
        ("ipv6PrefixSet", "ipv6Prefix"),
    ] {
        for each in xml::items(item, set) {
            let prefix = xml::text(each, field).ok_or(missing("a prefix"))?;
            blocks.insert(net(prefix, "a prefix")?);
        }
    }
    blocks.retain(|block| !primary.iter().any(|own| single(*own) == *block));
    Ok(Described {
        id: id.to_owned(),
        mac,
        instance: instance.map(str::to_owned),
        primary,
        blocks,
    })
}

/// Reads the answer to both Assign actions.
pub(super) fn assigned(text: &str) -> Result<Vec<IpNet>, BadAnswer> {
    let document = xml::parse(text)?;
    let root = document.root_element();
    let mut all = Vec::new();
    for (set, field) in [
        ("assignedPrivateIpAddressesSet", "privateIpAddress"),
        ("assignedIpv4PrefixSet", "ipv4Prefix"),
    ] {
        for each in xml::items(root, set) {
            let text = xml::text(each, field).ok_or(BadAnswer::Missing("an address"))?;
            all.push(net(text, "an address")?);
        }
    }
    for set in ["assignedIpv6Addresses", "assignedIpv6PrefixSet"] {
        for each in xml::items(root, set) {
            all.push(net(each.text().unwrap_or_default(), "an address")?);
        }
    }
    Ok(all)
}

/// Reads the answer to DescribeInstanceTypes.
pub(super) fn limits(text: &str, instance_type: &str) -> Result<Option<Limits>, BadAnswer> {
    const SET: &str = "instanceTypeSet";
    let document = xml::parse(text)?;
    let root = document.root_element();
    xml::child(root, SET).ok_or(BadAnswer::Missing(SET))?;
    let found =
        xml::items(root, SET).find(|item| xml::text(*item, "instanceType") == Some(instance_type));
    let Some(found) = found else {
        return Ok(None);
    };
    let network = xml::child(found, "networkInfo").ok_or(BadAnswer::Missing("networkInfo"))?;
    let number = |name: &'static str| {
        let text = xml::text(network, name).ok_or(BadAnswer::Missing(name))?;
        xml::value(text, name)
    };
    Ok(Some(Limits {
        v4: number("ipv4AddressesPerInterface")?,
        v6: number("ipv6AddressesPerInterface")?,
    }))
}

#[cfg(test)]
mod tests;
