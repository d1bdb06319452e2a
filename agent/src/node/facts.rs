//! What the node has.

use std::net::IpAddr;

use ebbtide_layout::HOST_MAC;
use ipnet::IpNet;

use crate::netlink::{
    Error, Netlink,
    announcement::Announcement,
    link::{Link, LinkAddress},
    model::{Mac, Route},
};

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
    /// The default routes of the main table.
    pub defaults: Vec<Route>,
}

impl Nic {
    /// A link with its addresses. What is link-local is left out: it is no address of the node's
    /// that anybody far away could ask for.
    #[must_use]
    pub fn new(link: Link, addresses: &[LinkAddress]) -> Self {
        let own = addresses.iter().filter(|a| a.ifindex == link.ifindex);
        Self {
            addresses: own
                .map(|a| a.address)
                .filter(|net| !is_link_local(&net.addr()))
                .collect(),
            name: link.name,
            ifindex: link.ifindex,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            kind: link.kind,
        }
    }

    /// Whether `link` is this NIC, and as it was.
    #[must_use]
    pub fn is_still(&self, link: &Link) -> bool {
        let now = Self::new(link.clone(), &[]);
        let addresses = self.addresses.clone();
        *self == Self { addresses, ..now }
    }

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
        let defaults = netlink.default_routes(&links).await?;
        let nics = links
            .into_iter()
            .filter(concerns)
            .map(|link| Nic::new(link, &addresses))
            .collect();
        Ok(Self { nics, defaults })
    }

    /// Whether the announcement says something that these facts do not.
    #[must_use]
    pub fn is_news(&self, announcement: &Announcement) -> bool {
        let at = |ifindex: &u32| self.nics.iter().find(|nic| nic.ifindex == *ifindex);
        let has = |address: &LinkAddress| {
            at(&address.ifindex).map(|nic| nic.addresses.contains(&address.address))
        };
        let leads = |ifindex: &u32, via: &Option<IpAddr>| {
            at(ifindex).map(|nic| {
                let mut own = self.defaults.iter().filter(|route| route.link == nic.name);
                own.any(|route| route.via == *via)
            })
        };
        match announcement {
            Announcement::Link(link) => match at(&link.ifindex) {
                Some(nic) => !nic.is_still(link),
                None => concerns(link),
            },
            Announcement::LinkGone(ifindex) => at(ifindex).is_some(),
            Announcement::Address(new) => {
                !is_link_local(&new.address.addr()) && has(new) == Some(false)
            }
            Announcement::AddressGone(gone) => has(gone) == Some(true),
            Announcement::Default(link, via) => leads(link, via) == Some(false),
            Announcement::DefaultGone(link, via) => leads(link, via) == Some(true),
            Announcement::Overrun => true,
            Announcement::ObjectGone | Announcement::Other => false,
        }
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

/// Whether a link in the host is the host's end of one of our pairs. It is born with its address,
/// and gets its alias a moment later; somebody (udev, a network manager) may change the address.
#[must_use]
pub fn is_pod_veth(link: &Link) -> bool {
    let is_named_ours = || {
        let alias = link.alias.as_deref();
        alias.is_some_and(|alias| alias.starts_with("ebbtide: "))
    };
    link.kind.as_deref() == Some("veth") && (link.mac == Some(Mac(HOST_MAC)) || is_named_ours())
}

/// Whether a link is among the facts at all.
fn concerns(link: &Link) -> bool {
    !link.loopback && !is_pod_veth(link)
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
            ..NodeFacts::default()
        };
        let expected: Vec<IpAddr> = ["172.31.22.228", "2001:db8::1", "210.22.16.10"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect();
        assert_eq!(facts.addresses(), expected);
    }
    fn link(name: &str, ifindex: u32) -> Link {
        Link {
            ifindex,
            name: name.into(),
            alias: None,
            mac: None,
            mtu: 1500,
            up: true,
            loopback: false,
            kind: None,
            ipvlan_mode: None,
            below: None,
        }
    }

    #[test]
    fn only_what_the_facts_do_not_say_already_is_news() {
        let facts = NodeFacts {
            nics: vec![nic("ens5", &["172.31.22.228/20"])],
            defaults: vec![Route {
                link: "ens5".into(),
                destination: "0.0.0.0/0".parse().unwrap(),
                via: Some([172, 31, 16, 1].into()),
                source: None,
                table: 254,
            }],
        };
        let address = |ifindex, address: &str| LinkAddress {
            ifindex,
            address: address.parse().unwrap(),
        };
        let pods = Link {
            mac: Some(Mac(HOST_MAC)),
            kind: Some("veth".into()),
            ..link("veth0123", 9)
        };
        let larger = Link {
            mtu: 9001,
            ..link("ens5", 2)
        };
        let via = |last| Some([172, 31, 16, last].into());
        for (announcement, news) in [
            (Announcement::Link(link("ens5", 2)), false),
            (Announcement::Link(larger), true),
            (Announcement::Link(link("ens7", 7)), true),
            (Announcement::Link(pods), false),
            (Announcement::LinkGone(2), true),
            (Announcement::LinkGone(9), false),
            (Announcement::Address(address(2, "172.31.22.228/20")), false),
            (Announcement::Address(address(2, "172.31.22.229/20")), true),
            (Announcement::Address(address(2, "fe80::1/64")), false),
            (Announcement::Address(address(9, "10.0.0.1/32")), false),
            (
                Announcement::AddressGone(address(2, "172.31.22.228/20")),
                true,
            ),
            (Announcement::AddressGone(address(2, "10.0.0.1/32")), false),
            (Announcement::Default(2, via(1)), false),
            (Announcement::Default(2, via(2)), true),
            (Announcement::DefaultGone(2, via(1)), true),
            (Announcement::DefaultGone(9, via(1)), false),
            (Announcement::Overrun, true),
            (Announcement::ObjectGone, false),
        ] {
            assert_eq!(facts.is_news(&announcement), news, "{announcement:?}");
        }
    }
}
