//! What the node has.

use std::net::IpAddr;

use ebbtide_layout::HOST_MAC;
use ipnet::IpNet;

use crate::netlink::{Error, Netlink, link::Link, model::Mac};

/// Links whose addresses are no addresses of the node's: bridges, tunnels and ports that container
/// engines and other CNI plugins make.
const NOT_THE_NODES: [&str; 16] = [
    "docker",
    "cbr",
    "cni",
    "virbr",
    "lxcbr",
    "lxdbr",
    "veth",
    "cali",
    "tunl",
    "vxlan.calico",
    "flannel",
    "cilium",
    "lxc",
    "kube-ipvs",
    "nodelocaldns",
    "dummy",
];

/// A network interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Link-layer address, if it has one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// What makes it, for what is no hardware (`ipvlan`, `macvlan`, `veth`...).
    pub kind: Option<String>,
    /// Its addresses, without link-local ones.
    pub addresses: Vec<IpNet>,
}

/// What the node has, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every link but the loopback and our own veth ends.
    pub nics: Vec<Nic>,
}

impl Nic {
    /// Whether its addresses are the node's: not another engine's bridge or port.
    #[must_use]
    pub fn is_the_nodes(&self) -> bool {
        !NOT_THE_NODES
            .iter()
            .any(|prefix| self.name.starts_with(prefix))
    }
}

impl NodeFacts {
    /// Reads them from the kernel.
    ///
    /// # Errors
    /// When the kernel refuses to answer.
    pub async fn read(netlink: &Netlink) -> Result<Self, Error> {
        let links = netlink.links().await?;
        let addresses = netlink.addresses().await?;
        let nics = links
            .into_iter()
            .filter(|link| !link.loopback && !is_pod_veth(link))
            .map(|link: Link| Nic {
                addresses: addresses
                    .iter()
                    .filter(|a| a.ifindex == link.ifindex && !is_link_local(&a.address.addr()))
                    .map(|a| a.address)
                    .collect(),
                name: link.name,
                ifindex: link.ifindex,
                mac: link.mac,
                mtu: link.mtu,
                up: link.up,
                kind: link.kind,
            })
            .collect();
        Ok(Self { nics })
    }

    /// The NIC called `name`.
    #[must_use]
    pub fn nic(&self, name: &str) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.name == name)
    }

    /// The node's own addresses, of every NIC and both families, in the order of the NICs.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.nics
            .iter()
            .filter(|nic| nic.is_the_nodes())
            .flat_map(|nic| nic.addresses.iter().map(IpNet::addr))
            .collect()
    }
}

/// Whether a link in the host is the host's end of one of our pairs. The alias is for people: a
/// crash can leave a link before its alias was set, but never without its address.
#[must_use]
pub fn is_pod_veth(link: &Link) -> bool {
    link.mac == Some(Mac(HOST_MAC)) && link.kind.as_deref() == Some("veth")
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(name: &str, addresses: &[&str]) -> Nic {
        Nic {
            name: name.into(),
            ifindex: 2,
            mac: None,
            mtu: 1500,
            up: true,
            kind: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn other_engines_bridges_are_not_the_node() {
        let facts = NodeFacts {
            nics: vec![
                nic("ens5", &["172.31.22.228/20", "2001:db8::1/64"]),
                nic("docker0", &["172.17.0.1/16"]),
                nic("kube-ipvs0", &["10.96.0.1/32"]),
                nic("ens6", &["210.22.16.10/24"]),
            ],
        };
        let expected: Vec<IpAddr> = ["172.31.22.228", "2001:db8::1", "210.22.16.10"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect();
        assert_eq!(facts.addresses(), expected);
    }
}
