//! Reads the kernel's state in the form of plans, and finds what of a plan is missing.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    hash::Hash,
    net::IpAddr,
};

use ebbtide_types::{Family, Mac};
use ipnet::IpNet;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia},
    rule::{RuleAction, RuleAttribute, RuleMessage},
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};

use super::{
    Error, Netlink,
    link::Link,
    message::{self, FILTER_HANDLE},
    model::{
        Action, Address, Direction, FairQueue, Filter, NamespacePlan, Neighbour, Route, Rule,
        Selector, Sysctl,
    },
    sysctl,
};

/// An object of a plan that the kernel lacks, or that differs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The sysctl has another value, or cannot be read (`None`).
    Sysctl(Sysctl, Option<String>),
    /// The address is missing.
    Address(Address),
    /// The permanent neighbour is missing.
    Neighbour(Neighbour),
    /// The route is missing.
    Route(Route),
    /// The rule is missing.
    Rule(Rule),
    /// The program is not attached.
    Filter(Filter),
    /// The queueing discipline is missing.
    Queue(FairQueue),
    /// The link of this name has changed since it was made: how.
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
            Self::Queue(object) => write!(f, "{object} is missing"),
            Self::Link(name, what) => write!(f, "link {name} {what}"),
        }
    }
}

/// The state of one namespace, as far as plans describe it.
#[derive(Clone, Debug, Default)]
pub struct NamespaceState {
    /// Links by name.
    pub links: HashMap<String, Link>,
    /// Everything else.
    pub found: NamespacePlan,
}

impl NamespaceState {
    /// Reads what `plan` names, and nothing else: its tables, links, neighbours and filters. The kernel leaves out the
    /// rest, so foreign routes and neighbours cost nothing.
    ///
    /// # Errors
    /// If the kernel refuses to answer.
    pub async fn read(netlink: &Netlink, plan: &NamespacePlan) -> Result<Self, Error> {
        Self::read_with(netlink, plan, &[]).await
    }

    /// As [`NamespaceState::read`], and reads `links` besides.
    ///
    /// # Errors
    /// If the kernel refuses to answer.
    pub async fn read_with(
        netlink: &Netlink,
        plan: &NamespacePlan,
        links: &[&str],
    ) -> Result<Self, Error> {
        let links = links_of(netlink, plan, links).await?;
        let mut found = NamespacePlan::default();
        if !plan.addresses.is_empty() {
            let names = names(&links);
            let all = netlink.addresses().await?.into_iter();
            found.addresses.extend(all.filter_map(|a| {
                Some(Address {
                    link: names.get(&a.ifindex)?.clone(),
                    address: a.address,
                    no_prefix_route: false,
                })
            }));
        }
        found.routes = routes(netlink, plan, &links).await?;
        for family in Family::BOTH {
            if plan.rules.iter().any(|rule| rule.family == family) {
                found.rules.extend(rules(netlink, family).await?);
            }
        }
        found.neighbours = neighbours(netlink, plan, &links).await?;
        found.filters = filters(netlink, plan, &links).await?;
        if !plan.queues.is_empty() {
            found.queues = queues(netlink, &links).await?;
        }
        Ok(Self { links, found })
    }

    /// Returns the objects of `plan` that the kernel lacks, sysctls excepted.
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
        // Whether an address was added without a prefix route cannot be changed any more.
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
            .chain(lacking(&plan.queues, &found.queues, Missing::Queue))
            .collect()
    }
}

/// Returns the sysctls of `plan` that have another value in the calling thread's namespace.
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

/// The most links that are looked up by name; if there are more, all of the namespace are listed.
const FEW: usize = 16;

/// Reads the links that `plan` and `more` name, and perhaps others.
async fn links_of(
    netlink: &Netlink,
    plan: &NamespacePlan,
    more: &[&str],
) -> Result<HashMap<String, Link>, Error> {
    let mut wanted: BTreeSet<&str> = more.iter().copied().collect();
    wanted.extend(plan.addresses.iter().map(|object| object.link.as_str()));
    wanted.extend(plan.neighbours.iter().map(|object| object.link.as_str()));
    wanted.extend(plan.routes.iter().map(|object| object.link.as_str()));
    wanted.extend(plan.filters.iter().map(|object| object.link.as_str()));
    wanted.extend(plan.queues.iter().map(|object| object.link.as_str()));
    if wanted.len() <= FEW {
        let wanted: Vec<&str> = wanted.into_iter().collect();
        return netlink.links_named(&wanted).await;
    }
    let all = netlink.links().await?;
    Ok(all.into_iter().map(|l| (l.name.clone(), l)).collect())
}

fn names(links: &HashMap<String, Link>) -> HashMap<u32, String> {
    let links = links.values();
    links.map(|l| (l.ifindex, l.name.clone())).collect()
}

/// Reads the routes in the tables of `plan`.
async fn routes(
    netlink: &Netlink,
    plan: &NamespacePlan,
    links: &HashMap<String, Link>,
) -> Result<Vec<Route>, Error> {
    let names = names(links);
    let table = |route: &Route| (Family::of_net(&route.destination), route.table);
    let tables: BTreeSet<_> = plan.routes.iter().map(table).collect();
    let mut found = Vec::new();
    for (family, table) in tables {
        let parse = |message: &RouteMessage| {
            parse_route(family, message, &names).filter(|route| route.table == table)
        };
        found.extend(netlink.routes_in(family, table, |_| true, parse).await?);
    }
    Ok(found)
}

/// Returns the next hop, if the attribute is one: IPv4 may use an IPv6 router (RFC 5549).
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
    // A kernel without this family lists all others instead (`rtnl_dump_all`).
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

/// Parses a rule; `None` if it has a selector or action that Ebbtide's rules never have.
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
        (Some(link), None, Some(mark), Some(from)) => Selector::InLinkFromMark {
            from,
            link: link.to_owned(),
            mark,
            mask,
        },
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

/// Reads the neighbours of `plan` that exist. Each is looked up by itself: a dump covers a link or the whole namespace,
/// and a busy node has thousands.
async fn neighbours(
    netlink: &Netlink,
    plan: &NamespacePlan,
    links: &HashMap<String, Link>,
) -> Result<Vec<Neighbour>, Error> {
    let names = names(links);
    let question = |wanted: &Neighbour| {
        let link = links.get(&wanted.link)?;
        let message = message::neighbour_at(wanted.address, link.ifindex);
        Some(RouteNetlinkMessage::GetNeighbour(message))
    };
    let questions = plan.neighbours.iter().filter_map(question).collect();
    let what = "look up neighbours";
    let mut found = Vec::new();
    for answer in netlink.ask_each(what, questions).await? {
        match answer {
            Ok(message) => found.extend(parse_neighbour(message, &names)),
            // Linux before 5.0 cannot look up a single neighbour.
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => {
                let all = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
                let parse = |message| parse_neighbour(message, &names);
                return netlink.dump("list neighbours", all, parse).await;
            }
            Err(e) => {
                let e = Error::new(format_args!("{what} {}", netlink.place()), e);
                if !e.is_gone() {
                    return Err(e);
                }
            }
        }
    }
    Ok(found)
}

fn parse_neighbour(answer: RouteNetlinkMessage, names: &HashMap<u32, String>) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = answer else {
        return None;
    };
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
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

/// Reads Ebbtide's filters at the hooks of `plan` by priority and handle, whichever program they hold.
async fn filters(
    netlink: &Netlink,
    plan: &NamespacePlan,
    links: &HashMap<String, Link>,
) -> Result<Vec<Filter>, Error> {
    /// The link has no clsact, so no hook; or another kind of filter has this priority.
    const NO_HOOK: i32 = nix::errno::Errno::EINVAL as i32;
    let at = |filter: &Filter| {
        let link = links.get(&filter.link)?;
        Some((link, filter.direction, message::priority(filter)))
    };
    let mut hooks: Vec<_> = plan.filters.iter().filter_map(at).collect();
    let key = |(link, direction, priority): &(&Link, Direction, u16)| {
        (link.ifindex, *direction, *priority)
    };
    hooks.sort_by_key(key);
    hooks.dedup_by_key(|hook| key(hook));
    let question = |(link, direction, priority): &(&Link, Direction, u16)| {
        let filter = message::owned_filter(link.ifindex, *direction, *priority);
        RouteNetlinkMessage::GetTrafficFilter(filter)
    };
    let questions = hooks.iter().map(question).collect();
    let what = "look up filters";
    let answers = netlink.ask_each(what, questions).await?;
    let mut found = Vec::new();
    for ((link, direction, priority), answer) in hooks.into_iter().zip(answers) {
        match answer {
            Ok(message) => found.extend(parse_filter(message, link, (direction, priority))),
            Err(e) => {
                let what = format_args!("{what} of {} {}", link.name, netlink.place());
                let e = Error::new(what, e);
                if e.errno() != Some(NO_HOOK) && !e.is_gone() {
                    return Err(e);
                }
            }
        }
    }
    Ok(found)
}

/// Reads which of `links` have a queueing discipline that paces.
async fn queues(netlink: &Netlink, links: &HashMap<String, Link>) -> Result<Vec<FairQueue>, Error> {
    let names = names(links);
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    netlink
        .dump(
            "list queueing disciplines",
            request,
            |answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(message) => {
                    let link = names.get(&message::paced_link(&message)?)?.clone();
                    Some(FairQueue { link })
                }
                _ => None,
            },
        )
        .await
}

fn parse_filter(
    answer: RouteNetlinkMessage,
    link: &Link,
    (direction, priority): (Direction, u16),
) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else {
        return None;
    };
    if message.header.info >> 16 != u32::from(priority)
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
}
