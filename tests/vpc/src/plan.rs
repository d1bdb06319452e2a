//! The test VPC as data: nodes, their NICs, and which addresses a NIC may send from.

mod clouds;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebbtide_types::IpvlanMode;
use ipnet::IpNet;

pub use crate::family::Family;
use crate::{metadata::Cloud, netlink::Mac};

/// The plan of a VPC: everything that is built.
///
/// # Examples
///
/// ```
/// use ebbtide_vpc::plan::{Family, Plan};
///
/// // AWS: each NIC has a subnet of its own. Alibaba Cloud: the nodes share the subnets.
/// let (aws, alibaba) = (Plan::default(), Plan::alibaba());
/// let nic = |plan: &Plan| plan.nics().next().cloned().expect("a NIC");
/// assert_eq!(aws.neighbours(&nic(&aws)).count(), 0);
/// assert_eq!(alibaba.neighbours(&nic(&alibaba)).count(), 1);
/// assert_eq!(nic(&aws).primary(Family::V4).to_string(), "172.31.22.228");
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// MTU in bytes of every wire inside the VPC; clouds offer 9001.
    pub mtu: u32,
    /// Whether the nodes filter reverse paths strictly, as some distributions do.
    pub strict_rp_filter: bool,
    /// Mode of the NICs' ipvlan children.
    pub mode: IpvlanMode,
    /// Whether the network is a plain one instead of a cloud's: its router asks for the pods' addresses by ARP and ND.
    pub asks: bool,
    /// Whether the pods' networks request that the nodes answer ARP and ND (`answer-neighbours`).
    pub answers: bool,
    /// Whether all packets from pods bypass their nodes' stack (`exemptFromMasquerade`).
    pub exempt: bool,
    /// The cloud whose metadata tell the pods' addresses (`ebbtide.io/addresses`). None: pools are declared.
    pub metadata: Option<Cloud>,
}

/// A virtual machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, as given to the agent.
    pub name: String,
    /// Its NICs; the first one carries the default route.
    pub nics: Vec<Nic>,
    /// Its kind.
    pub made_of: MadeOf,
}

/// The kind of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MadeOf {
    /// A network namespace of this kernel.
    #[default]
    Namespace,
    /// A machine with a kernel of its own, which somebody else starts. Only the VPC's ends of its NICs are built, as
    /// tap devices.
    Machine,
}

/// A virtual NIC.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The node it belongs to.
    pub node: String,
    /// Interface name.
    pub name: String,
    /// The only MAC from which the VPC accepts frames.
    pub mac: Mac,
    /// Its IPv4 subnet.
    pub v4: Subnet,
    /// Its IPv6 subnet.
    pub v6: Subnet,
}

/// The addresses of a NIC in its subnet.
#[derive(Clone, Debug)]
pub struct Subnet {
    /// The node's own address, with the subnet's prefix length.
    pub primary: IpNet,
    /// Addresses for pods. The VPC knows them; the node's interface does not have them.
    pub secondary: Vec<IpAddr>,
    /// The address of the VPC's router.
    pub gateway: IpAddr,
}

/// The link between the VPC's router and the edge.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The router's end.
    pub router: IpNet,
    /// The edge's end.
    pub edge: IpNet,
}

/// Returns a MAC of the test network: locally administered, and never one that the kernel or Ebbtide would choose.
const fn mac(last: u8) -> Mac {
    [0x02, 0xc1, 0x0d, 0x00, 0x00, last]
}

/// MAC of the router's end of its link with the edge.
pub const ROUTER_EDGE_MAC: Mac = mac(0xe1);
/// MAC of the edge's end of its link with the router.
pub const EDGE_ROUTER_MAC: Mac = mac(0xe2);
/// MAC of the edge's end of its link with the world.
pub(crate) const EDGE_WORLD_MAC: Mac = mac(0xe3);
pub(crate) const WORLD_MAC: Mac = mac(0xe4);

/// The addresses that the world sees, from the documentation ranges (RFC 5737, RFC 3849).
impl Plan {
    /// The public address to which the VPC's IPv4 traffic is translated.
    pub const NAT: IpAddr = v4(198, 51, 100, 1);
    /// The edge's address in the world's IPv6 subnet; IPv6 is not translated.
    pub const EDGE_V6: IpAddr = v6(0x2001, 0xdb8, 1, 0, 0x1);

    /// Returns the load balancer's public address.
    #[must_use]
    pub const fn load_balancer(family: Family) -> IpAddr {
        match family {
            Family::V4 => v4(198, 51, 100, 10),
            Family::V6 => v6(0x2001, 0xdb8, 1, 0, 0x10),
        }
    }

    /// Returns the address of the outside client.
    #[must_use]
    pub const fn client(family: Family) -> IpAddr {
        match family {
            Family::V4 => v4(198, 51, 100, 50),
            Family::V6 => v6(0x2001, 0xdb8, 1, 0, 0x50),
        }
    }

    /// Returns the address of the outside web server.
    #[must_use]
    pub const fn web_server(family: Family) -> IpAddr {
        match family {
            Family::V4 => v4(198, 51, 100, 80),
            Family::V6 => v6(0x2001, 0xdb8, 1, 0, 0x80),
        }
    }

    /// Returns the prefix length of the world's subnet.
    #[must_use]
    pub const fn world_prefix(family: Family) -> u8 {
        match family {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }

    /// Returns the link between router and edge.
    #[must_use]
    pub fn edge_link(family: Family) -> Link {
        let (router, edge, prefix) = match family {
            Family::V4 => (v4(100, 64, 0, 1), v4(100, 64, 0, 2), 30),
            Family::V6 => (v6(0xfd00, 0x64, 0, 0, 1), v6(0xfd00, 0x64, 0, 0, 2), 64),
        };
        Link {
            router: net(router, prefix),
            edge: net(edge, prefix),
        }
    }

    /// Returns the NICs of other nodes in the same subnet, which seem to be on one wire with it.
    pub fn neighbours(&self, nic: &Nic) -> impl Iterator<Item = &Nic> {
        let subnet = |nic: &Nic| nic.v4.primary.trunc();
        let (node, own) = (nic.node.clone(), subnet(nic));
        self.nics()
            .filter(move |other| other.node != node && subnet(other) == own)
    }

    /// Returns all NICs of all nodes.
    pub fn nics(&self) -> impl Iterator<Item = &Nic> {
        self.nodes.iter().flat_map(|node| &node.nics)
    }

    /// Returns the node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl Node {
    /// Returns the NIC of this name.
    #[must_use]
    pub fn nic(&self, name: &str) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.name == name)
    }
}

impl Nic {
    /// Returns the addresses of one family.
    #[must_use]
    pub fn subnet(&self, family: Family) -> &Subnet {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Returns the node's own address on this NIC.
    #[must_use]
    pub fn primary(&self, family: Family) -> IpAddr {
        self.subnet(family).primary.addr()
    }

    /// Returns every address that the VPC delivers to this NIC and accepts from it.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [&self.v4, &self.v6].into_iter().flat_map(Subnet::addresses)
    }

    /// Returns the name of the router's port for this NIC.
    #[must_use]
    pub fn port(&self) -> String {
        format!("p-{}-{}", self.node, self.name)
    }

    /// Returns the MAC of the router's port.
    #[must_use]
    pub fn port_mac(&self) -> Mac {
        let mut mac = self.mac;
        mac[4] = 0xff;
        mac
    }

    /// Returns the link-local address that the kernel derives from the MAC (RFC 4291, appendix A).
    #[must_use]
    pub fn link_local(&self) -> IpAddr {
        let [a, b, c, d, e, f] = self.mac;
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&[0xfe, 0x80]);
        bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from(bytes).into()
    }
}

impl Subnet {
    /// Returns the primary address, then the secondary ones.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.primary.addr()).chain(self.secondary.iter().copied())
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// Returns the address `a:b:c:d::last`.
const fn v6(a: u16, b: u16, c: u16, d: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last))
}

fn net(address: IpAddr, prefix: u8) -> IpNet {
    IpNet::new_assert(address, prefix)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn all() -> [Plan; 2] {
        [Plan::default().cluster(), Plan::alibaba().cluster()]
    }

    #[test]
    fn every_address_belongs_to_one_nic_and_its_subnet() {
        for plan in all() {
            let mut seen = HashSet::new();
            let gateways: HashSet<IpAddr> = plan
                .nics()
                .flat_map(|nic| [nic.v4.gateway, nic.v6.gateway])
                .collect();
            for nic in plan.nics() {
                for family in Family::BOTH {
                    let subnet = nic.subnet(family);
                    assert_eq!(subnet.addresses().count(), 6);
                    assert!(subnet.primary.contains(&subnet.gateway));
                    for address in subnet.addresses() {
                        assert!(subnet.primary.contains(&address), "{address}");
                        assert!(seen.insert(address), "{address} is there twice");
                        assert!(!gateways.contains(&address), "{address} is a gateway");
                    }
                }
            }
        }
    }

    #[test]
    fn interface_names_fit_the_kernel_and_macs_are_different() {
        for plan in all() {
            let mut seen = HashSet::new();
            for nic in plan.nics() {
                assert!(nic.port().len() < 16, "{}", nic.port());
                assert!(seen.insert(nic.mac), "{nic:?}");
            }
        }
    }

    #[test]
    fn nodes_are_neighbours_where_they_share_a_subnet() {
        for (plan, neighbours) in [(Plan::default(), 0), (Plan::alibaba(), 1)] {
            for nic in plan.nics() {
                assert_eq!(plan.neighbours(nic).count(), neighbours, "{nic:?}");
            }
        }
    }

    #[test]
    fn link_local_follows_the_mac() {
        let plan = Plan::default();
        let nic = plan.nics().next().unwrap();
        assert_eq!(nic.link_local().to_string(), "fe80::c1:dff:fe00:15");
    }
}
