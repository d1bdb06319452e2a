//! Puts a NIC together from what its cloud says, and leaves out what cannot be a pod's.

use std::net::{IpAddr, Ipv4Addr};

use ebbtide_types::{Family, Mac};
use ipnet::IpNet;

use crate::{
    CloudNic, Kind,
    reading::{LeftOut, Reading, Unreadable, shown},
};

/// The most NICs of a machine. The largest of any cloud have about 30.
pub(crate) const MOST_NICS: usize = 64;

/// The most addresses and prefixes of a NIC. Azure allows 256, AWS 50, each of which can be a prefix.
pub(crate) const MOST_BLOCKS: usize = 4096;

/// The shortest prefixes, by family. No NIC was given more, and `0.0.0.0/0` would be all addresses of the world.
const fn shortest(family: Family) -> u8 {
    match family {
        Family::V4 => 8,
        Family::V6 => 32,
    }
}

const OTHER_FAMILY: &str = "it is of the other family than its list";
const UNUSABLE: &str = "no machine can be given such an address";
const HOST_BITS: &str = "it has bits set after its length, so it is unknown what is meant";
const NO_PRIMARY: &str = "which of them is the NIC's primary one is not told";
const TOO_SHORT: &str = "it is too large to be one NIC's";

/// A NIC that is being put together. Primary addresses are first: lists leave them out.
#[derive(Debug)]
pub(crate) struct Draft {
    nic: CloudNic,
    left_out: Vec<LeftOut>,
}

impl Draft {
    pub(crate) fn new(mac: Mac) -> Self {
        Self {
            nic: CloudNic {
                mac,
                id: String::new(),
                primary: Vec::new(),
                blocks: Default::default(),
                subnets: Vec::new(),
                gateways: Vec::new(),
            },
            left_out: Vec::new(),
        }
    }

    /// Leaves something out, and says why.
    pub(crate) fn leave_out(&mut self, what: &str, why: &'static str) {
        self.left_out.push(LeftOut {
            mac: self.nic.mac,
            what: shown(what),
            why,
        });
    }

    /// Sets the cloud's name of it.
    pub(crate) fn id(&mut self, text: &str) {
        let text = text.trim();
        let of_name = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        match text.len() <= 128 && text.chars().all(of_name) {
            true => text.clone_into(&mut self.nic.id),
            false => self.leave_out(text, "it is no name of a NIC"),
        }
    }

    /// Adds the primary address of a family.
    pub(crate) fn primary(&mut self, family: Family, address: IpAddr) {
        if let Err(why) = usable(address, family) {
            return self.leave_out(&address.to_string(), why);
        }
        let has_one = |known: &IpAddr| Family::of(*known) == family;
        if !self.nic.primary.iter().any(has_one) {
            self.nic.primary.push(address);
        }
    }

    /// Returns whether the primary address of a family is known.
    fn has_primary(&self, family: Family) -> bool {
        let of_family = |known: &IpAddr| Family::of(*known) == family;
        self.nic.primary.iter().any(of_family)
    }

    /// Adds addresses of a kind, without the primary ones; the kind is answered from now on.
    pub(crate) fn addresses(&mut self, kind: Kind, addresses: impl IntoIterator<Item = IpAddr>) {
        self.answered(kind);
        for address in addresses {
            if self.nic.primary.contains(&address) {
                continue;
            }
            match usable(address, kind.family()) {
                Ok(()) => self.push(kind, IpNet::from(address)),
                Err(why) => self.leave_out(&address.to_string(), why),
            }
        }
    }

    /// Adds addresses of a kind, from a list with the primary one among them. If that is not known, it could be any of them,
    /// and an empty list lacks it: the kind is not answered.
    pub(crate) fn addresses_beside_primary(
        &mut self,
        key: &str,
        kind: Kind,
        addresses: Vec<IpAddr>,
    ) {
        match self.has_primary(kind.family()) {
            _ if addresses.is_empty() => {}
            true => self.addresses(kind, addresses),
            false => self.leave_out(key, NO_PRIMARY),
        }
    }

    /// Adds addresses of a kind, the first of which is the node's own. If that one is unusable, the list is not what it
    /// should be: the kind is not answered, lest the node's own be one of the others. It is not answered by an empty list
    /// of IPv4 either, which lacks the NIC's own.
    pub(crate) fn addresses_after_first(&mut self, kind: Kind, addresses: Vec<IpAddr>) {
        if addresses.is_empty() && kind == Kind::V4Addresses {
            return;
        }
        if let Some(first) = addresses.first() {
            self.primary(kind.family(), *first);
            if !self.nic.primary.contains(first) {
                return;
            }
        }
        self.addresses(kind, addresses);
    }

    /// Adds IPv6 addresses of a cloud that calls none of them primary. The first is the one that DHCPv6 gives to the
    /// node, so a pod must not have it. Should a cloud change its order, nothing breaks: whatever the node itself has is
    /// not given to pods either.
    pub(crate) fn v6_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.addresses_after_first(Kind::V6Addresses, addresses);
    }

    /// Adds prefixes of a kind; the kind is answered from now on.
    pub(crate) fn prefixes(&mut self, kind: Kind, nets: impl IntoIterator<Item = IpNet>) {
        self.answered(kind);
        for net in nets {
            match usable_net(net, kind.family()) {
                Ok(()) => self.push(kind, net),
                Err(why) => self.leave_out(&net.to_string(), why),
            }
        }
    }

    fn answered(&mut self, kind: Kind) {
        self.nic.blocks.entry(kind).or_default();
    }

    fn push(&mut self, kind: Kind, net: IpNet) {
        self.nic.blocks.entry(kind).or_default().push(net);
    }

    /// Adds the prefix of a subnet.
    pub(crate) fn subnet(&mut self, family: Family, net: IpNet) {
        let net = net.trunc();
        match usable_net(net, family) {
            Ok(()) => self.nic.subnets.push(net),
            Err(why) => self.leave_out(&net.to_string(), why),
        }
    }

    /// Adds the gateway of a family. An IPv6 gateway may be link-local.
    pub(crate) fn gateway(&mut self, family: Family, address: IpAddr) {
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let known = |known: &IpAddr| Family::of(*known) == family;
        match usable(address, family) {
            Err(why) if !is_link_local || why == OTHER_FAMILY => {
                self.leave_out(&address.to_string(), why);
            }
            _ if self.nic.gateways.iter().any(known) => {}
            _ => self.nic.gateways.push(address),
        }
    }

    /// Adds the gateway of IPv4 by convention: the first address of the subnet. For clouds that document it and do not
    /// tell it. IPv6 routers are link-local there, and the kernel finds them.
    pub(crate) fn first_is_gateway(&mut self) {
        let subnet = self.nic.subnets.iter().find_map(|net| match net {
            IpNet::V4(net) if net.prefix_len() <= 30 => Some(net.network()),
            _ => None,
        });
        if let Some(network) = subnet {
            self.gateway(Family::V4, Ipv4Addr::from(u32::from(network) + 1).into());
        }
    }
}

fn usable(address: IpAddr, family: Family) -> Result<(), &'static str> {
    if Family::of(address) != family {
        return Err(OTHER_FAMILY);
    }
    let is_usable = match address {
        IpAddr::V4(v4) => {
            // 0.0.0.0/8 (RFC 1122). What was class E is used as private space on Google Cloud.
            v4.octets()[0] != 0
                && !v4.is_loopback()
                && !v4.is_link_local()
                && !v4.is_multicast()
                && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified()
                && !v6.is_loopback()
                && !v6.is_unicast_link_local()
                && !v6.is_multicast()
                && v6.to_ipv4_mapped().is_none()
        }
    };
    is_usable.then_some(()).ok_or(UNUSABLE)
}

fn usable_net(net: IpNet, family: Family) -> Result<(), &'static str> {
    if Family::of_net(&net) != family {
        return Err(OTHER_FAMILY);
    }
    if net.prefix_len() < shortest(family) {
        return Err(TOO_SHORT);
    }
    if net.addr() != net.network() {
        return Err(HOST_BITS);
    }
    usable(net.addr(), family)
}

/// Makes a view of NICs: ordered by MAC, each once, lists sorted.
pub(crate) fn reading(drafts: Vec<Draft>) -> Result<Reading, Unreadable> {
    if drafts.is_empty() {
        return Err(Unreadable::NoNics);
    }
    if drafts.len() > MOST_NICS {
        return Err(Unreadable::TooManyNics(drafts.len()));
    }
    let mut reading = Reading::default();
    let nics = &mut reading.view.nics;
    for Draft { mut nic, left_out } in drafts {
        let count = nic.blocks.values().map(Vec::len).sum::<usize>() + left_out.len();
        if count > MOST_BLOCKS {
            let mac = nic.mac;
            return Err(Unreadable::TooManyBlocks { mac, count });
        }
        for blocks in nic.blocks.values_mut() {
            blocks.sort_unstable();
            blocks.dedup();
        }
        nic.primary.sort_unstable();
        nic.subnets.sort_unstable();
        nic.subnets.dedup();
        nic.gateways.sort_unstable();
        reading.left_out.extend(left_out);
        nics.push(nic);
    }
    nics.sort_by_key(|nic| nic.mac);
    nics.dedup();
    if let Some([one, _]) = nics.array_windows().find(|[one, two]| one.mac == two.mac) {
        return Err(Unreadable::Contradiction(one.mac));
    }
    reading.left_out.sort_unstable();
    reading.left_out.dedup();
    Ok(reading)
}
