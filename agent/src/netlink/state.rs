//! The kernel's state, read back as plans are written, and what of a plan it lacks.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::Hash,
    net::IpAddr,
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia},
    rule::{RuleAction, RuleAttribute, RuleMessage},
    tc::{TcAttribute, TcFilterBpfOption, TcOption},
};

use super::{
    Error, Netlink,
    link::Link,
    message::{self, FILTER_HANDLE, FILTER_PRIORITY},
    model::{
        Action, Address, Direction, Family, Filter, Mac, NamespacePlan, Neighbour, Route, Rule,
        Selector, Sysctl,
    },
    sysctl,
};

/// One object of a plan that the kernel does not have as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The setting has another value (or cannot be read).
    Sysctl(Sysctl, Option<String>),
    /// No such address.
    Address(Address),
    /// No such permanent neighbour.
    Neighbour(Neighbour),
    /// No such route.
    Route(Route),
    /// No such rule.
    Rule(Rule),
    /// The program is not attached.
    Filter(Filter),
    /// The link of this name is not as it was made: in what.
    Link(String, String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(want, Some(found)) => write!(f, "{want} is {found} instead"),
            Self::Sysctl(want, None) => write!(f, "{want} cannot be read"),
            Self::Address(object) => write!(f, "{object} is missing"),
            Self::Neighbour(object) => write!(f, "{object} is missing"),
            Self::Route(object) => write!(f, "{object} is missing"),
            Self::Rule(object) => write!(f, "{object} is missing"),
            Self::Filter(object) => write!(f, "{object} is not attached"),
            Self::Link(name, what) => write!(f, "link {name} {what}"),
        }
    }
}

/// What one namespace holds, as far as plans speak of it.
#[derive(Clone, Debug, Default)]
pub struct NamespaceState {
    /// Links by name.
    pub links: HashMap<String, Link>,
    /// Everything else.
    pub found: NamespacePlan,
}

impl NamespaceState {
    /// Reads what `plan` speaks of: its tables, its links, its families.
    ///
    /// # Errors
    /// When the kernel refuses to answer.
    pub async fn read(netlink: &Netlink, plan: &NamespacePlan) -> Result<Self, Error> {
        let links = netlink.links().await?;
        let names: HashMap<u32, String> =
            links.iter().map(|l| (l.ifindex, l.name.clone())).collect();
        let mut found = NamespacePlan {
            addresses: netlink
                .addresses()
                .await?
                .into_iter()
                .filter_map(|a| {
                    Some(Address {
                        link: names.get(&a.ifindex)?.clone(),
                        address: a.address,
                        no_prefix_route: false,
                    })
                })
                .collect(),
            ..NamespacePlan::default()
        };
        for family in Family::BOTH {
            found.routes.extend(routes(netlink, family, &names).await?);
            found.rules.extend(rules(netlink, family).await?);
            found
                .neighbours
                .extend(neighbours(netlink, family, &names).await?);
        }
        for filter in &plan.filters {
            if let Some(link) = links.iter().find(|l| l.name == filter.link) {
                found
                    .filters
                    .extend(our_filter(netlink, link, filter.direction).await?);
            }
        }
        Ok(Self {
            links: links.into_iter().map(|l| (l.name.clone(), l)).collect(),
            found,
        })
    }

    /// What `plan` has and the kernel has not, settings excepted.
    #[must_use]
    pub fn missing(&self, plan: &NamespacePlan) -> Vec<Missing> {
        fn lacking<T: Eq + Hash + Clone>(
            plan: &[T],
            found: &[T],
            missing: impl Fn(T) -> Missing,
        ) -> impl Iterator<Item = Missing> {
            let found: HashSet<&T> = found.iter().collect();
            plan.iter()
                .filter(move |object| !found.contains(object))
                .cloned()
                .map(missing)
        }
        let found = &self.found;
        // How an address came to be there cannot be changed any more.
        let as_found = |object: &Address| Address {
            no_prefix_route: false,
            ..object.clone()
        };
        let addresses = plan.addresses.iter();
        addresses
            .filter(move |object| !found.addresses.contains(&as_found(object)))
            .cloned()
            .map(Missing::Address)
            .chain(lacking(
                &plan.neighbours,
                &found.neighbours,
                Missing::Neighbour,
            ))
            .chain(lacking(&plan.routes, &found.routes, Missing::Route))
            .chain(lacking(&plan.rules, &found.rules, Missing::Rule))
            .chain(lacking(&plan.filters, &found.filters, Missing::Filter))
            .collect()
    }
}

/// The settings of `plan` that have another value in the calling thread's namespace.
#[must_use]
pub fn differing_sysctls(plan: &NamespacePlan) -> Vec<Missing> {
    let settings = sysctl::Settings::default();
    let differing = |want: &Sysctl| match settings.read(want) {
        Ok(None) => None,
        Ok(Some(value)) if value == want.value => None,
        Ok(found) => Some(Missing::Sysctl(want.clone(), found)),
        Err(_) => Some(Missing::Sysctl(want.clone(), None)),
    };
    plan.sysctls.iter().filter_map(differing).collect()
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// The routes of all tables.
async fn routes(
    netlink: &Netlink,
    family: Family,
    names: &HashMap<u32, String>,
) -> Result<Vec<Route>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = message::address_family(family);
    let request = RouteNetlinkMessage::GetRoute(message);
    netlink
        .dump("list routes", request, |answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => parse_route(family, &message, names),
            _ => None,
        })
        .await
}

/// The next hop, if that is what the attribute is: IPv4 may be sent by an IPv6 router (RFC 5549).
pub(super) fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    }
}

pub(super) fn parse_route(
    family: Family,
    message: &RouteMessage,
    names: &HashMap<u32, String>,
) -> Option<Route> {
    // A kernel without a family lists all others' when it is asked for that one (`rtnl_dump_all`).
    if message.header.address_family != message::address_family(family) {
        return None;
    }
    let mut link = None;
    let mut destination = family.everything().addr();
    let (mut via, mut source, mut table) = (None, None, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = names.get(index),
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Table(id) => table = *id,
            other => via = next_hop(other).or(via),
        }
    }
    Some(Route {
        link: link?.clone(),
        destination: IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        via,
        source,
        table,
    })
}

async fn rules(netlink: &Netlink, family: Family) -> Result<Vec<Rule>, Error> {
    let mut message = RuleMessage::default();
    message.header.family = message::address_family(family);
    let request = RouteNetlinkMessage::GetRule(message);
    netlink
        .dump("list rules", request, |answer| match answer {
            RouteNetlinkMessage::NewRule(message) => parse_rule(family, &message),
            _ => None,
        })
        .await
}

/// `None` for a rule that looks at something ours never do.
pub(super) fn parse_rule(family: Family, message: &RuleMessage) -> Option<Rule> {
    let is_of_family = message.header.family == message::address_family(family);
    if message.header.dst_len > 0 || !is_of_family {
        return None;
    }
    let (mut priority, mut table, mut goto) = (0, u32::from(message.header.table), 0);
    let (mut iif, mut oif, mut from) = (None, None, None);
    let (mut mark, mut mask) = (None, u32::MAX);
    let mut no_default = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Iifname(name) => iif = Some(name.as_str()),
            RuleAttribute::Oifname(name) => oif = Some(name.clone()),
            RuleAttribute::Goto(value) => goto = *value,
            RuleAttribute::Source(address) => {
                from = Some(IpNet::new(*address, message.header.src_len).ok()?);
            }
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::SuppressPrefixLen(0) => no_default = true,
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => return None,
        }
    }
    let selector = match (iif, oif, mark, from) {
        (None, None, None, None) if no_default => Selector::AllButDefault,
        _ if no_default => return None,
        (None, None, None, None) => Selector::All,
        (Some("lo"), None, Some(mark), None) => Selector::LocalMark { mark, mask },
        (Some(link), None, Some(mark), None) => Selector::InLinkMark {
            link: link.to_owned(),
            mark,
            mask,
        },
        (None, None, Some(mark), None) => Selector::Mark { mark, mask },
        (Some("lo"), None, Some(mark), Some(from)) => Selector::LocalFromMark { from, mark, mask },
        (None, Some(link), None, from) => Selector::OutLink {
            from: from.unwrap_or(family.everything()),
            link,
        },
        (None, None, None, Some(from)) if from.prefix_len() == from.max_prefix_len() => {
            Selector::From(from.addr())
        }
        _ => return None,
    };
    let action = match message.header.action {
        RuleAction::ToTable => Action::Table(table),
        RuleAction::Goto => Action::Goto(goto),
        RuleAction::Nop => Action::Nop,
        _ => return None,
    };
    Some(Rule {
        family,
        priority,
        selector,
        action,
    })
}

async fn neighbours(
    netlink: &Netlink,
    family: Family,
    names: &HashMap<u32, String>,
) -> Result<Vec<Neighbour>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = message::address_family(family);
    let request = RouteNetlinkMessage::GetNeighbour(message);
    netlink
        .dump("list neighbours", request, |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message)
                if message.header.state == NeighbourState::Permanent
                    && message.header.family != AddressFamily::Bridge =>
            {
                let mut address = None;
                let mut mac = None;
                for attribute in message.attributes {
                    match attribute {
                        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                            address = Some(v4.into());
                        }
                        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                            address = Some(v6.into());
                        }
                        NeighbourAttribute::LinkLayerAddress(bytes) => {
                            mac = bytes.try_into().ok().map(Mac);
                        }
                        _ => {}
                    }
                }
                Some(Neighbour {
                    link: names.get(&message.header.ifindex)?.clone(),
                    address: address?,
                    mac: mac?,
                })
            }
            _ => None,
        })
        .await
}

/// Our filter at one hook: found by its priority and handle, whichever program it holds.
async fn our_filter(
    netlink: &Netlink,
    link: &Link,
    direction: Direction,
) -> Result<Vec<Filter>, Error> {
    let message = message::filter_hook(link.ifindex, direction);
    let request = RouteNetlinkMessage::GetTrafficFilter(message);
    let ours = |answer| {
        let RouteNetlinkMessage::NewTrafficFilter(message) = answer else {
            return None;
        };
        if message.header.info >> 16 != u32::from(FILTER_PRIORITY)
            || u32::from(message.header.handle) != FILTER_HANDLE
        {
            return None;
        }
        let options = message.attributes.into_iter().find_map(|a| match a {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
        let (mut program, mut only_from) = (None, None);
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => program = Some(name),
                TcOption::Bpf(TcFilterBpfOption::ClassId(id)) => {
                    only_from = u16::try_from(u32::from(id)).ok()
                }
                _ => {}
            }
        }
        Some(Filter {
            link: link.name.clone(),
            direction,
            program: program?,
            only_from,
        })
    };
    let what = format!("list filters of {}", link.name);
    match netlink.dump(&what, request, ours).await {
        // No clsact there: the kernel has no hook to list.
        Err(e) if e.errno() == Some(nix::errno::Errno::EINVAL as i32) || e.is_gone() => {
            Ok(Vec::new())
        }
        found => found,
    }
}
