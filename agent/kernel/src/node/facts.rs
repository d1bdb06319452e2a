//! Facts of the node: its links, addresses and default routes, as read from the kernel.

use std::net::IpAddr;

use ebbtide_layout::HOST_MAC;
use ebbtide_types::{Family, Mac};
use ipnet::IpNet;

use super::REDIRECT_DEVICE;
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
    /// The link-layer address that the hardware came with, by which a cloud knows it.
    pub permanent_mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Link kind of a virtual link (`ipvlan`, `macvlan`, `veth`...); `None` for hardware.
    pub kind: Option<String>,
    /// Index of the bridge, bond or VRF that it is a port of.
    pub port_of: Option<u32>,
    /// Index of the lower link, if that is in the node's namespace, too.
    pub iflink: Option<u32>,
    /// Whether IPv6 is enabled on it.
    pub ipv6: bool,
    /// Its addresses, without link-local ones.
    pub addresses: Vec<IpNet>,
}

/// Facts of the node at one moment.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::node::{Nic, NodeFacts};
/// use ebbtide_types::{Mac, settings::LinkNames};
///
/// let node = NodeFacts {
///     nics: vec![Nic {
///         mac: Some(Mac([2, 0, 0, 0, 0, 5])),
///         mtu: 9001,
///         addresses: vec!["10.0.0.228/24".parse()?],
///         ..Nic::named("ens5", 2)
///     }],
///     ..NodeFacts::default()
/// };
/// assert_eq!(node.nic("ens5").map(|nic| nic.mtu), Some(9001));
/// assert_eq!(node.addresses(&LinkNames::default()), ["10.0.0.228".parse::<std::net::IpAddr>()?]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// All links but the loopback and Ebbtide's own.
    pub nics: Vec<Nic>,
    /// Foreign default routes, those of the main table first.
    pub defaults: Vec<Route>,
    /// Addresses on the loopback that are reachable from elsewhere.
    pub loopback: Vec<IpNet>,
    /// What else is local to the node: others' routes in the table `local`, which google-guest-agent and kin add, and,
    /// as [`NodeFacts::without`] says, addresses that belong to pods.
    pub local: Vec<IpNet>,
    /// Addresses on links that are not the node's own though it has them, since pods have them or may get them. None are read
    /// from the kernel: the agent adds them, which knows the pods.
    pub not_its_own: Vec<IpAddr>,
    /// Whether the kernel has no IPv6 at all.
    pub no_ipv6: bool,
}

impl Nic {
    /// Creates a NIC with only a name and an index, to be completed by the caller: hardware that is up and has IPv6, an
    /// MTU of 1500 bytes, and no address of any kind.
    #[must_use]
    pub fn named(name: impl Into<String>, ifindex: u32) -> Self {
        Self {
            name: name.into(),
            ifindex,
            mac: None,
            permanent_mac: None,
            mtu: 1500,
            up: true,
            kind: None,
            port_of: None,
            iflink: None,
            ipv6: true,
            addresses: Vec::new(),
        }
    }

    /// Creates a NIC from a link and its addresses. Link-local addresses are left out: nobody beyond the link can reach
    /// them.
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
            permanent_mac: link.permanent_mac,
            mtu: link.mtu,
            up: link.up,
            kind: link.kind,
            port_of: link.port_of,
            iflink: link.iflink.filter(|_| !link.iflink_in_other_netns),
            ipv6: true,
        }
    }

    /// Whether `link` is this NIC, unchanged.
    #[must_use]
    pub fn matches(&self, link: &Link) -> bool {
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

    /// Whether this family is usable on the NIC.
    #[must_use]
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => true,
            Family::V6 => self.ipv6,
        }
    }
}

/// Whether IPv6 is enabled on the link: the kernel has it (with `ipv6.disable=1` its settings do not exist), and
/// `disable_ipv6` is off there.
fn has_ipv6(settings: &sysctl::Settings, link: &str) -> bool {
    let setting = Sysctl {
        path: format!("net/ipv6/conf/{link}/disable_ipv6"),
        value: "0".to_owned(),
    };
    matches!(settings.read(&setting), Ok(Some(value)) if value == "0")
}

impl NodeFacts {
    /// Reads the facts from the kernel.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn read(netlink: &Netlink) -> Result<Self, Error> {
        let links = netlink.links().await?;
        let addresses = netlink.addresses().await?;
        let defaults = netlink.default_routes(&links).await?;
        let local = netlink.local_routes_of_others().await?;
        let loopback = addresses
            .iter()
            .filter(|own| own.ifindex == LOOPBACK && is_for_others(&own.address.addr()))
            .map(|own| own.address)
            .collect();
        // The directories of the settings are looked up once for all links (`sysctl::Settings`).
        let settings = sysctl::Settings::default();
        let nics = links
            .into_iter()
            .filter(concerns)
            .map(|link| Nic {
                ipv6: has_ipv6(&settings, &link.name),
                ..Nic::new(link, &addresses)
            })
            .collect();
        Ok(Self {
            nics,
            defaults,
            loopback,
            local,
            not_its_own: Vec::new(),
            no_ipv6: !sysctl::root().join("net/ipv6").exists(),
        })
    }

    /// Whether the notification contradicts or extends these facts.
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
                Some(nic) => !nic.matches(link),
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
            Notification::LocalRoute(net) => !self.local.contains(net),
            Notification::LocalRouteGone(net) => self.local.contains(net),
            Notification::Overrun => true,
            Notification::ForeignRule
            | Notification::RouteGone(_)
            | Notification::RuleGone
            | Notification::HookGone(_)
            | Notification::Other => false,
        }
    }

    /// Every address of the node that is reachable from elsewhere, each with the name of its link.
    pub fn own_addresses(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        let nics = self.nics.iter();
        let of_nics = nics.flat_map(|nic| nic.addresses.iter().map(|net| (net.addr(), &*nic.name)));
        of_nics.chain(self.loopback.iter().map(|net| (net.addr(), "lo")))
    }

    /// Whether the node takes this address for its own: it is on a link, or local by a route of somebody else's.
    #[must_use]
    pub fn takes(&self, address: IpAddr) -> bool {
        let mut local = self.local.iter();
        local.any(|net| net.contains(&address))
            || self.own_addresses().any(|(own, _)| own == address)
    }

    /// Returns the facts without the addresses on links that `is_pods` says are pods': these are no addresses of the
    /// node's, but it takes them for its own ([`NodeFacts::takes`]). `None` if there are none.
    #[must_use]
    pub fn without(&self, is_pods: impl Fn(IpAddr) -> bool) -> Option<Self> {
        let held = |net: &&IpNet| is_pods(net.addr());
        let on_links = self.nics.iter().flat_map(|nic| &nic.addresses);
        let held: Vec<IpNet> = on_links
            .chain(&self.loopback)
            .filter(held)
            .map(|net| IpNet::from(net.addr()))
            .collect();
        if held.is_empty() {
            return None;
        }
        let mut facts = self.clone();
        let lists = facts.nics.iter_mut().map(|nic| &mut nic.addresses);
        for list in lists.chain([&mut facts.loopback]) {
            list.retain(|net| !is_pods(net.addr()));
        }
        let of_pods = held.iter().map(IpNet::addr);
        facts.not_its_own.extend(of_pods);
        facts.local.extend(held);
        Some(facts)
    }

    /// Returns the addresses on links that `is_for_pods` says are for pods, without those of links that would have no other
    /// of the family: somebody has declared the node's own to be for pods.
    #[must_use]
    pub fn spare(&self, is_for_pods: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for nic in &self.nics {
            for family in Family::BOTH {
                let all = nic.addresses.iter().map(IpNet::addr);
                let all = all.filter(|address| Family::of(*address) == family);
                // Most links have one: nobody is asked whose that is.
                if all.clone().nth(1).is_none() {
                    continue;
                }
                let (spare, own): (Vec<_>, Vec<_>) = all.partition(|a| is_for_pods(*a));
                if !own.is_empty() {
                    found.extend(spare);
                }
            }
        }
        found
    }

    /// Whether the kernel has this family.
    #[must_use]
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => true,
            Family::V6 => !self.no_ipv6,
        }
    }

    /// Returns the NIC with this name.
    #[must_use]
    pub fn nic(&self, name: &str) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.name == name)
    }
}

/// Prefix of the alias of each of Ebbtide's links.
pub const ALIAS: &str = "ebbtide: ";

/// Whether a link in the host is the host's end of one of Ebbtide's pairs. It has its address from the start and gets
/// its alias a moment later; udev or a network manager may change the address.
#[must_use]
pub fn is_pod_veth(link: &Link) -> bool {
    let is_named_ours = || {
        let alias = link.alias.as_deref();
        alias.is_some_and(|alias| alias.starts_with(ALIAS))
    };
    link.kind.as_deref() == Some("veth") && (link.mac == Some(Mac(HOST_MAC)) || is_named_ours())
}

/// The link of a link-local IPv6 address, which comes and goes with IPv6 there: no other event announces that.
fn says_ipv6(address: &LinkAddress) -> Option<u32> {
    let ip = address.address.addr();
    (ip.is_ipv6() && is_link_local(&ip)).then_some(address.ifindex)
}

/// The loopback's index in every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK: u32 = 1;

/// Whether a link is part of the facts.
fn concerns(link: &Link) -> bool {
    !link.loopback && !is_pod_veth(link) && link.name != REDIRECT_DEVICE
}

/// Whether an address on the loopback is reachable from elsewhere.
fn is_for_others(address: &IpAddr) -> bool {
    !address.is_loopback() && !is_link_local(address)
}

/// Whether an address is valid on its link only (RFC 3927, RFC 4291 section 2.5.6).
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
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..Nic::named(name, 2)
        }
    }

    fn link(name: &str, ifindex: u32) -> Link {
        Link {
            mtu: 1500,
            up: true,
            ..Link::named(name, ifindex)
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
            local: vec!["10.24.3.0/24".parse().unwrap()],
            not_its_own: Vec::new(),
            no_ipv6: false,
        };
        let address = |ifindex, address: &str| LinkAddress {
            ifindex,
            address: address.parse().unwrap(),
        };
        let pods = Link {
            permanent_mac: None,
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
            (
                Notification::LocalRoute("10.24.3.0/24".parse().unwrap()),
                false,
            ),
            (
                Notification::LocalRoute("10.24.3.0/28".parse().unwrap()),
                true,
            ),
            (
                Notification::LocalRouteGone("10.24.3.0/24".parse().unwrap()),
                true,
            ),
            (
                Notification::LocalRouteGone("10.24.3.0/28".parse().unwrap()),
                false,
            ),
            (Notification::Overrun, true),
            (Notification::ForeignRule, false),
            (Notification::RuleGone, false),
        ] {
            assert_eq!(facts.changes_facts(&notification), news, "{notification:?}");
        }
    }

    #[test]
    fn an_address_on_a_link_that_is_a_pods_is_not_the_nodes_but_taken() {
        let facts = NodeFacts {
            nics: vec![nic("ens5", &["172.31.22.228/20", "172.31.16.4/32"])],
            loopback: vec!["fd00:16::4/128".parse().unwrap()],
            local: vec!["10.24.3.0/24".parse().unwrap()],
            ..NodeFacts::default()
        };
        let pods: [IpAddr; 3] =
            ["172.31.16.4", "fd00:16::4", "10.24.3.7"].map(|a| a.parse().unwrap());
        let without = facts.without(|address| pods.contains(&address)).unwrap();
        let own: Vec<_> = without.own_addresses().collect();
        assert_eq!(own, [("172.31.22.228".parse().unwrap(), "ens5")]);
        assert_eq!(without.not_its_own, pods[..2]);
        for facts in [&facts, &without] {
            assert!(pods.iter().all(|pod| facts.takes(*pod)));
            assert!(!facts.takes("172.31.16.5".parse().unwrap()));
        }
        assert_eq!(facts.without(|address| address == pods[2]), None);
    }

    #[test]
    fn an_address_for_pods_is_spare_only_beside_one_of_the_nodes_own() {
        let is_for_pods = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets()[3] < 100,
            IpAddr::V6(v6) => v6.segments()[7] < 100,
        };
        for (addresses, expected) in [
            (&["10.0.0.228/24", "fd00::228/64"][..], &[][..]),
            (&["10.0.0.228/24", "10.0.0.7/32"], &["10.0.0.7"]),
            (&["10.0.0.7/32", "10.0.0.8/24"], &[]),
            (&["10.0.0.7/32", "fd00::228/64"], &[]),
            (
                &["fd00::7/128", "fd00::8/128", "fd00::228/128"],
                &["fd00::7", "fd00::8"],
            ),
        ] {
            let facts = NodeFacts {
                nics: vec![nic("ens5", addresses)],
                loopback: vec!["10.0.0.1/32".parse().unwrap()],
                ..NodeFacts::default()
            };
            let spare: Vec<String> = facts
                .spare(is_for_pods)
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(spare, expected, "{addresses:?}");
        }
    }
}
