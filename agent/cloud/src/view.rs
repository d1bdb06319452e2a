//! What a cloud says of a machine's NICs, in the same words for all clouds.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_types::{Family, Mac};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What a metadata service said of the machine's NICs at one moment: all of them, or there is no view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The NICs, ordered by MAC.
    pub nics: Vec<CloudNic>,
}

/// A NIC as its cloud knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudNic {
    /// Its permanent MAC, which identifies it: names of links change.
    pub mac: Mac,
    /// The cloud's name of it, as `eni-0a1b2c3d`, to be shown to people; empty where there is none.
    pub id: String,
    /// Its primary addresses, one of a family at most: the node's own, never a pod's.
    pub primary: Vec<IpAddr>,
    /// What else was assigned to it, by kind; an address is a block of one. A kind that the service did not answer is
    /// missing, which is not the same as an empty list: that may mean none, not yet, or a fault.
    pub blocks: BTreeMap<Kind, Vec<IpNet>>,
    /// The prefixes of its subnets.
    pub subnets: Vec<IpNet>,
    /// Its gateways, one of a family at most; empty where the service does not tell.
    pub gateways: Vec<IpAddr>,
}

/// One list of a NIC's blocks, as services answer them one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Secondary IPv4 addresses.
    V4Addresses,
    /// IPv4 prefixes.
    V4Prefixes,
    /// IPv6 addresses; all of them where IPv6 has no primary one.
    V6Addresses,
    /// IPv6 prefixes.
    V6Prefixes,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [
        Self::V4Addresses,
        Self::V4Prefixes,
        Self::V6Addresses,
        Self::V6Prefixes,
    ];

    /// Returns the family of its blocks.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::V4Addresses | Self::V4Prefixes => Family::V4,
            Self::V6Addresses | Self::V6Prefixes => Family::V6,
        }
    }
}
