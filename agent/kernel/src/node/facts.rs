//! What the node has.

use std::net::IpAddr;

use ebbtide_layout::HOST_MAC;
use ebbtide_types::{Family, Mac};
use ipnet::IpNet;

use super::host::REDIRECT_DEVICE;
use crate::netlink::{
    Error, Netlink,
    link::{Link, LinkAddress},
    model::{Route, Sysctl},
    notification::Notification,
    sysctl,
};

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
    /// The index of the bridge, bond or VRF that it is a port of.
    pub port_of: Option<u32>,
    /// The index of the link that it is made upon, if that is the node's, too.
    pub below: Option<u32>,
    /// Whether IPv6 is on there.
    pub ipv6: bool,
    /// Its addresses, without link-local ones.
    pub addresses: Vec<IpNet>,
}

/// What the node has, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every link but the loopback and our own.
    pub nics: Vec<Nic>,
    /// The default routes that are not ours: the main table's first.
    pub defaults: Vec<Route>,
    /// The addresses on the loopback that others may ask for.
    pub loopback: Vec<IpNet>,
    /// The kernel has no IPv6 at all.
    pub no_ipv6: bool,
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
            port_of: link.port_of,
            below: link.below.filter(|_| !link.below_elsewhere),
            ipv6: true,
        }
    }

    /// Whether `link` is this NIC, and as it was.
    #[must_use]
    pub fn is_still(&self, link: &Link) -> bool {
        let now = Self::new(link.clone(), &[]);
        let addresses = self.addresses.clone();
        let ipv6 = self.ipv6;
        *self
            == Self {
                addresses,
                ipv6,
                ..now
            }
    }

    /// Whether this family can be used there.
    #[must_use]
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => true,
            Family::V6 => self.ipv6,
        }
    }
}

/// Whether IPv6 is on on the link: the kernel has it (`ipv6.disable=1` takes it away, and then there are no
/// settings of it), and the setting `disable_ipv6` does not turn it off there.
#[must_use]
pub fn has_ipv6(link: &str) -> bool {
    let setting = Sysctl {
        path: format!("net/ipv6/conf/{link}/disable_ipv6"),
        value: "0".to_owned(),
    };
    matches!(sysctl::read(&setting), Ok(Some(value)) if value == "0")
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
        let loopback = addresses
            .iter()
            .filter(|own| own.ifindex == LOOPBACK && is_for_others(&own.address.addr()))
            .map(|own| own.address)
            .collect();
        let nics = links
            .into_iter()
            .filter(concerns)
            .map(|link| Nic {
                ipv6: has_ipv6(&link.name),
                ..Nic::new(link, &addresses)
            })
            .collect();
        Ok(Self {
            nics,
            defaults,
            loopback,
            no_ipv6: !sysctl::root().join("net/ipv6").exists(),
        })
    }

    /// Whether the notification says something that these facts do not.
    #[must_use]
    pub fn changes_facts(&self, notification: &Notification) -> bool {
        let at = |ifindex: &u32| self.nics.iter().find(|nic| nic.ifindex == *ifindex);
        let has = |address: &LinkAddress| {
            let net = &address.address;
            match address.ifindex {
                LOOPBACK => is_for_others(&net.addr()).then(|| self.loopback.contains(net)),
                other => at(&other).map(|nic| nic.addresses.contains(net)),
            }
        };
        let leads = |(ifindex, via): &(u32, Option<IpAddr>)| {
            at(ifindex).map(|nic| {
                let mut own = self.defaults.iter().filter(|route| route.link == nic.name);
                own.any(|route| route.via == *via)
            })
        };
        match notification {
            Notification::Link(link) => match at(&link.ifindex) {
                Some(nic) => !nic.is_still(link),
                None => concerns(link),
            },
            Notification::LinkGone(link) => at(&link.ifindex).is_some(),
            Notification::Address(new) => match says_ipv6(new) {
                Some(ifindex) => at(&ifindex).is_some_and(|nic| !nic.ipv6),
                None => !is_link_local(&new.address.addr()) && has(new) == Some(false),
            },
            Notification::AddressGone(gone) => match says_ipv6(gone) {
                Some(ifindex) => at(&ifindex).is_some_and(|nic| nic.ipv6),
                None => has(gone) == Some(true),
            },
            Notification::Default(hops) => hops.iter().any(|hop| leads(hop) == Some(false)),
            Notification::DefaultGone(hops) => hops.iter().any(|hop| leads(hop) == Some(true)),
            Notification::Overrun => true,
            Notification::ForeignRule
            | Notification::RouteGone(_)
            | Notification::RuleGone
            | Notification::HookGone(_)
            | Notification::Other => false,
        }
    }

    /// Every address that the node itself has and others may ask for, each with its link.
    pub fn own_addresses(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        let nics = self.nics.iter();
        let of_nics = nics.flat_map(|nic| nic.addresses.iter().map(|net| (net.addr(), &*nic.name)));
        of_nics.chain(self.loopback.iter().map(|net| (net.addr(), "lo")))
    }

    /// Whether the kernel has this family.
    #[must_use]
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => true,
            Family::V6 => !self.no_ipv6,
        }
    }

    /// The NIC called `name`.
    #[must_use]
    pub fn nic(&self, name: &str) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.name == name)
    }
}

/// What the alias of each link of ours begins with.
pub const ALIAS: &str = "ebbtide: ";

/// Whether a link in the host is the host's end of one of our pairs. It is born with its address,
/// and gets its alias a moment later; somebody (udev, a network manager) may change the address.
#[must_use]
pub fn is_pod_veth(link: &Link) -> bool {
    let is_named_ours = || {
        let alias = link.alias.as_deref();
        alias.is_some_and(|alias| alias.starts_with(ALIAS))
    };
    link.kind.as_deref() == Some("veth") && (link.mac == Some(Mac(HOST_MAC)) || is_named_ours())
}

/// The link of an address that comes and goes with IPv6 there: its setting is announced by nothing else that is heard.
fn says_ipv6(address: &LinkAddress) -> Option<u32> {
    let ip = address.address.addr();
    (ip.is_ipv6() && is_link_local(&ip)).then_some(address.ifindex)
}

/// The loopback's index in every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK: u32 = 1;

/// Whether a link is among the facts at all.
fn concerns(link: &Link) -> bool {
    !link.loopback && !is_pod_veth(link) && link.name != REDIRECT_DEVICE
}

/// Whether an address on the loopback is one that others may ask for.
fn is_for_others(address: &IpAddr) -> bool {
    !address.is_loopback() && !is_link_local(address)
}

/// Whether an address means something on its link alone (RFC 3927, RFC 4291 section 2.5.6).
#[must_use]
pub const fn is_link_local(address: &IpAddr) -> bool {
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
            port_of: None,
            below: None,
            ipv6: true,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
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
            below_elsewhere: false,
            port_of: None,
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
            loopback: vec!["192.0.2.7/32".parse().unwrap()],
            no_ipv6: false,
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
        for (notification, news) in [
            (Notification::Link(link("ens5", 2)), false),
            (Notification::Link(larger), true),
            (Notification::Link(link("ens7", 7)), true),
            (Notification::Link(pods), false),
            (Notification::LinkGone(link("ens5", 2)), true),
            (Notification::LinkGone(link("ens9", 9)), false),
            (Notification::Address(address(2, "172.31.22.228/20")), false),
            (Notification::Address(address(2, "172.31.22.229/20")), true),
            (Notification::Address(address(2, "fe80::1/64")), false),
            (Notification::AddressGone(address(2, "fe80::1/64")), true),
            (Notification::AddressGone(address(9, "fe80::1/64")), false),
            (
                Notification::AddressGone(address(2, "169.254.7.7/16")),
                false,
            ),
            (Notification::Address(address(9, "10.0.0.1/32")), false),
            (
                Notification::AddressGone(address(2, "172.31.22.228/20")),
                true,
            ),
            (Notification::AddressGone(address(2, "10.0.0.1/32")), false),
            (Notification::Default(vec![(2, via(1))]), false),
            (Notification::Default(vec![(2, via(2))]), true),
            (Notification::DefaultGone(vec![(2, via(1))]), true),
            (Notification::DefaultGone(vec![(9, via(1))]), false),
            (Notification::Default(vec![(2, via(1)), (2, via(3))]), true),
            (Notification::Address(address(1, "192.0.2.7/32")), false),
            (Notification::Address(address(1, "192.0.2.8/32")), true),
            (Notification::Address(address(1, "127.0.0.2/8")), false),
            (Notification::AddressGone(address(1, "192.0.2.7/32")), true),
            (Notification::Overrun, true),
            (Notification::ForeignRule, false),
            (Notification::RuleGone, false),
        ] {
            assert_eq!(facts.changes_facts(&notification), news, "{notification:?}");
        }
    }
}
