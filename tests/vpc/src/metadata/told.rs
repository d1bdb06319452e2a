//! What a node is told, before a dialect puts it into its words.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::{
    delivery::is_single,
    netlink::Mac,
    plan::{Family, Nic},
};

/// What a node is told of itself.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) node: String,
    /// Its NICs, as they are listed.
    pub(super) nics: Vec<ToldNic>,
    /// The VPC's subnets.
    pub(super) subnets: Vec<IpNet>,
    pub(super) mtu: u32,
}

/// What a node is told of one of its NICs.
#[derive(Clone, Debug)]
pub(super) struct ToldNic {
    pub(super) nic: Nic,
    /// Its number at the node, the first one's is 0.
    pub(super) number: usize,
    /// What is assigned to it besides the primary addresses.
    pub(super) blocks: Vec<IpNet>,
    /// AWS' ID of it, if another service has given it.
    pub(super) id: Option<String>,
    /// Whether it is only listed.
    pub(super) is_bare: bool,
}

impl Told {
    /// Returns the NIC with the default route, if it is listed.
    pub(super) fn first(&self) -> Option<&ToldNic> {
        self.nics.iter().find(|nic| nic.number == 0)
    }

    /// Returns the node's own address.
    pub(super) fn address(&self) -> String {
        self.first()
            .map(|nic| nic.nic.primary(Family::V4).to_string())
            .unwrap_or_default()
    }

    /// Returns the VPC's subnets of a family.
    pub(super) fn subnets(&self, family: Family) -> Vec<String> {
        self.subnets
            .iter()
            .filter(|subnet| Family::of(subnet.addr()) == family)
            .map(ToString::to_string)
            .collect()
    }

    /// Returns a number that is the node's own, for names of it.
    pub(super) fn number(&self) -> u64 {
        // FNV-1a.
        self.node.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

impl ToldNic {
    /// Returns all addresses of a family, the primary one first.
    pub(super) fn addresses(&self, family: Family) -> Vec<IpAddr> {
        let mut all = vec![self.nic.primary(family)];
        all.extend(self.secondary(family));
        all
    }

    /// Returns the addresses of a family, without the primary one.
    pub(super) fn secondary(&self, family: Family) -> Vec<IpAddr> {
        self.blocks_of(family)
            .filter(|block| is_single(*block))
            .map(|block| block.addr())
            .collect()
    }

    /// Returns the prefixes of a family.
    pub(super) fn prefixes(&self, family: Family) -> Vec<IpNet> {
        self.blocks_of(family)
            .filter(|block| !is_single(*block))
            .collect()
    }

    /// Returns all that is assigned of a family, besides the primary address.
    pub(super) fn blocks_of(&self, family: Family) -> impl Iterator<Item = IpNet> {
        self.blocks
            .iter()
            .copied()
            .filter(move |block| Family::of(block.addr()) == family)
    }

    /// Returns the subnet of a family.
    pub(super) fn subnet(&self, family: Family) -> IpNet {
        self.nic.subnet(family).primary.trunc()
    }

    /// Returns the gateway of a family.
    pub(super) fn gateway(&self, family: Family) -> IpAddr {
        self.nic.subnet(family).gateway
    }

    /// Returns the mask of the IPv4 subnet.
    pub(super) fn netmask(&self) -> String {
        match self.subnet(Family::V4) {
            IpNet::V4(subnet) => subnet.netmask().to_string(),
            IpNet::V6(_) => Ipv4Addr::BROADCAST.to_string(),
        }
    }

    /// Returns its MAC in lower case, with colons.
    pub(super) fn mac(&self) -> String {
        mac(self.nic.mac, ":")
    }

    /// Returns its MAC in lower case, with this between the bytes.
    pub(super) fn mac_with(&self, between: &str) -> String {
        mac(self.nic.mac, between)
    }
}

fn mac(mac: Mac, between: &str) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(between)
}

/// Writes a list of something with this between its members.
pub(super) fn joined<T: ToString>(all: &[T], between: &str) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(between)
}
