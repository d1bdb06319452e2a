//! What Ebbtide has in the host, found in the kernel alone: without an agent's memory, programs or maps. It is what an
//! uninstallation removes, once no pod is left.

use std::{collections::BTreeSet, fmt, path::Path};

use ebbtide_layout::HOST_MAC;
use ebbtide_types::{Family, Mac};

use super::{REDIRECT_DEVICE, is_pod_veth, put_before_local};
use crate::{
    datapath,
    netlink::{
        self, Batch, Netlink,
        link::Link,
        model::{Direction, Filter, Route, Rule},
    },
};

/// An object of Ebbtide's in the host's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A program that is attached as a tc filter.
    Filter {
        /// Its place and name.
        filter: Filter,
        /// The link's index.
        ifindex: u32,
    },
    /// A queueing discipline `clsact` that an agent added, and that nobody has a filter in.
    Clsact {
        /// The link's name.
        link: String,
        /// Its index.
        ifindex: u32,
    },
    /// A routing policy rule.
    Rule(Rule),
    /// The second one of the kernel's rules for the table `local`, which an agent leaves that dies at a bad moment.
    SecondLocalRule(Family),
    /// A route.
    Route {
        /// The route.
        route: Route,
        /// Its link's index.
        ifindex: u32,
    },
    /// The redirect device.
    RedirectDevice(u32),
}

impl Leftover {
    /// Returns its kind, one word for programs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Filter { .. } => "filter",
            Self::Clsact { .. } => "qdisc",
            Self::Rule(_) | Self::SecondLocalRule(_) => "rule",
            Self::Route { .. } => "route",
            Self::RedirectDevice(_) => "link",
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter { filter, .. } => write!(f, "{filter}"),
            Self::Clsact { link, .. } => write!(f, "qdisc clsact of {link}"),
            Self::Rule(rule) => write!(f, "{rule}"),
            Self::SecondLocalRule(family) => {
                write!(f, "the second {family} rule for the table `local`")
            }
            Self::Route { route, .. } => write!(f, "{route}"),
            Self::RedirectDevice(_) => write!(f, "link {REDIRECT_DEVICE}"),
        }
    }
}

/// Everything of Ebbtide's in the host's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// The objects, in the order in which they are to be removed.
    pub objects: Vec<Leftover>,
    /// Pods' veth pairs: they end with their pods, and are none to remove.
    pub pod_veths: Vec<String>,
    /// Links that others' traffic may be forwarded by: containers' and machines', tunnels.
    pub forwarding_links: Vec<String>,
    /// Programs that TCX links attach. They end with their pins.
    pub by_link: Vec<String>,
    /// The names of all links.
    pub links: Vec<String>,
}

impl Leftovers {
    /// Finds everything. `clsact_made` says at which links an agent added the queueing discipline, by index and name.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn find(
        host: &Netlink,
        clsact_made: &BTreeSet<(u32, String)>,
    ) -> Result<Self, netlink::Error> {
        let links = host.links().await?;
        let mut found = Self::default();
        let hooks = host.tc_hooks().await?;
        for link in links.iter().filter(|link| hooks.are_at(link.ifindex)) {
            let mut is_empty = true;
            for direction in [Direction::Ingress, Direction::Egress] {
                for filter in host.filters_at(link.ifindex, direction).await? {
                    let program = filter.program_in_our_place();
                    match program.filter(|name| datapath::is_own_program(name)) {
                        Some(program) => found.objects.push(Leftover::Filter {
                            filter: Filter {
                                link: link.name.clone(),
                                direction,
                                program: program.to_owned(),
                                only_from: None,
                            },
                            ifindex: link.ifindex,
                        }),
                        None => is_empty = false,
                    }
                }
            }
            let is_made = clsact_made.contains(&(link.ifindex, link.name.clone()));
            if is_made && is_empty && hooks.are_both_at(link.ifindex) {
                found.objects.push(Leftover::Clsact {
                    link: link.name.clone(),
                    ifindex: link.ifindex,
                });
            }
        }
        let owned = host.owned(&links).await?;
        let rules = super::apply::in_order(&owned.rules).into_iter().rev();
        found.objects.extend(rules.cloned().map(Leftover::Rule));
        // Found and removed once Ebbtide's own rules of priority 0 are gone.
        for family in Family::BOTH {
            if host.has_second_local_rule(family).await? {
                found.objects.push(Leftover::SecondLocalRule(family));
            }
        }
        for route in owned.routes {
            let link = links.iter().find(|link| link.name == route.link);
            // A route of a link that went meanwhile went with it.
            if let Some(ifindex) = link.map(|link| link.ifindex) {
                found.objects.push(Leftover::Route { route, ifindex });
            }
        }
        let redirect_device = links.iter().find(|link| is_redirect_device(link));
        let redirect_device = redirect_device.map(|link| Leftover::RedirectDevice(link.ifindex));
        found.objects.extend(redirect_device);
        let addresses = host.addresses().await?;
        let has_address = |link: &Link| {
            let mut on_it = addresses.iter();
            on_it.any(|own| {
                own.ifindex == link.ifindex && !super::is_link_local(&own.address.addr())
            })
        };
        for link in &links {
            found.links.push(link.name.clone());
            if is_pod_veth(link) {
                found.pod_veths.push(link.name.clone());
            } else if forwards(link, &links, has_address(link)) {
                found.forwarding_links.push(link.name.clone());
            }
            found
                .by_link
                .extend(datapath::own_programs_by_link(&link.name));
        }
        Ok(found)
    }
}

impl Leftover {
    /// Removes it from the host. One that is gone meanwhile is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn remove(&self, host: &Netlink) -> Result<(), netlink::Error> {
        let mut batch = Batch::default();
        match self {
            Self::Filter { filter, ifindex } => batch.delete_filter(filter, *ifindex),
            Self::Clsact { link, ifindex } => batch.delete_clsact(link, *ifindex),
            Self::Rule(rule) => batch.delete_rule(rule),
            Self::SecondLocalRule(family) => {
                put_before_local(host, std::iter::once(*family)).await?;
            }
            Self::Route { route, ifindex } => batch.delete_route(route, *ifindex),
            Self::RedirectDevice(ifindex) => batch.delete_link(REDIRECT_DEVICE, *ifindex),
        }
        batch.run(host).await
    }
}

/// Whether it is the link that the agent makes; another one of that name is not.
fn is_redirect_device(link: &Link) -> bool {
    link.name == REDIRECT_DEVICE
        && link.kind.as_deref() == Some("dummy")
        && link.mac == Some(Mac(HOST_MAC))
}

/// Whether the node forwards packets of others by this link: a container's or a machine's end, a bridge that has ports,
/// a tunnel, a VPN. A veth with an address of its own is a NIC of a node that is itself a container. A tunnel that is down
/// forwards nothing: each tunnel's module adds one of its kind to the node (`tunl0`, `gre0`, `sit0`, ...), used or not.
/// A container's end that is down is one whose container just starts.
fn forwards(link: &Link, all: &[Link], has_address: bool) -> bool {
    match link.kind.as_deref() {
        Some("veth" | "netkit") => link.iflink_in_other_netns && !has_address,
        Some("bridge") => all.iter().any(|port| port.port_of == Some(link.ifindex)),
        Some(kind) => link.up && super::role::is_tunnel_or_vpn(kind),
        None => false,
    }
}

/// Returns whether a bpf file system is mounted at `directory` or above it: without one nothing is pinned there.
#[must_use]
pub fn is_on_bpffs(directory: &Path) -> bool {
    datapath::is_on_bpffs(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            mtu: 1500,
            up: true,
            kind: Some(kind.to_owned()).filter(|kind| !kind.is_empty()),
            ..Link::named(name, index)
        }
    }

    #[test]
    fn the_redirect_device_is_told_from_another_link_of_its_name() {
        let ours = Link {
            mac: Some(Mac(HOST_MAC)),
            ..link(2, REDIRECT_DEVICE, "dummy")
        };
        assert!(is_redirect_device(&ours));
        let foreign = Link {
            mac: Some(Mac([2, 0, 0, 0, 0, 9])),
            ..ours.clone()
        };
        assert!(!is_redirect_device(&foreign));
        let bridge = Link {
            kind: Some("bridge".to_owned()),
            ..ours
        };
        assert!(!is_redirect_device(&bridge));
    }

    #[test]
    fn links_by_which_others_are_forwarded_are_known() {
        let inner = Link {
            iflink_in_other_netns: true,
            ..link(5, "cali1", "veth")
        };
        let port = Link {
            port_of: Some(7),
            ..link(8, "veth8", "veth")
        };
        let all = [link(7, "br0", "bridge"), port, link(9, "docker0", "bridge")];
        let starting = Link {
            up: false,
            ..inner.clone()
        };
        for (one, has_address, expected) in [
            (inner.clone(), false, true),
            // Its container is not up yet.
            (starting, false, true),
            // A NIC of a node in a container.
            (inner, true, false),
            (link(6, "pair", "veth"), false, false),
            (all[0].clone(), true, true),
            (all[2].clone(), true, false),
            (link(3, "ens5", ""), true, false),
            (link(4, "flannel.1", "vxlan"), true, true),
            (link(4, "wg0", "wireguard"), true, true),
            (link(4, "ens5.7", "vlan"), true, false),
            // Its module's own, which nobody set up.
            (
                Link {
                    up: false,
                    ..link(4, "tunl0", "ipip")
                },
                false,
                false,
            ),
        ] {
            assert_eq!(forwards(&one, &all, has_address), expected, "{}", one.name);
        }
    }
}
