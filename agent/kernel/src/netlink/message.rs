//! Encodes objects as netlink messages.

use std::{net::IpAddr, os::fd::RawFd};

use ebbtide_types::Family;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope,
            RouteType, RouteVia,
        },
        rule::{RuleAction, RuleAttribute, RuleMessage},
        tc::{
            TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
        },
    },
};

use super::{
    Batch,
    model::{
        Action, Address, Direction, FairQueue, Filter, LOCAL_TABLE, Neighbour, PROTOCOL, Route,
        Rule, Selector, host_net,
    },
};

/// The priority of Ebbtide's filters at a hook. Priority and handle are fixed, so that a newer program replaces the
/// older one in one step and there is never a second.
pub const FILTER_PRIORITY: u16 = 0xeb;
/// The handle of Ebbtide's filters; see [`FILTER_PRIORITY`].
pub const FILTER_HANDLE: u32 = 1;
/// The priority of Ebbtide's filters that limit bandwidth: behind the others, which may send a packet by another link.
pub const LIMIT_PRIORITY: u16 = FILTER_PRIORITY + 1;

/// The handle of Ebbtide's queueing disciplines, `eb:`.
const QUEUE_HANDLE: u16 = 0xeb;

const EEXIST: &[i32] = &[Errno::EEXIST as i32];
const GONE: &[i32] = &[
    Errno::ENOENT as i32,
    Errno::ESRCH as i32,
    Errno::ENODEV as i32,
    Errno::EADDRNOTAVAIL as i32,
];

/// There is no such filter, or no clsact that could have it.
const NO_FILTER: &[i32] = &[
    Errno::ENOENT as i32,
    Errno::ENODEV as i32,
    Errno::EINVAL as i32,
];

/// The kind of the queueing discipline that paces (net/sched/sch_fq.c).
const FAIR_QUEUE: &str = "fq";

/// `AF_INET` or `AF_INET6`.
#[must_use]
pub fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn address(object: &Address, ifindex: u32) -> AddressMessage {
    let ip = object.address.addr();
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(ip));
    message.header.prefix_len = object.address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    let mut flags = AddressFlags::empty();
    // The pool guarantees that nobody else has it, and ipvlan l3 could not probe anyway.
    flags.set(AddressFlags::Nodad, ip.is_ipv6());
    flags.set(AddressFlags::Noprefixroute, object.no_prefix_route);
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

pub(super) fn route(object: &Route, ifindex: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let family = Family::of_net(&object.destination);
    message.header.address_family = address_family(family);
    message.header.destination_prefix_length = object.destination.prefix_len();
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (family, object.via) {
        (Family::V4, None) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    message.attributes.push(RouteAttribute::Table(object.table));
    message.attributes.push(RouteAttribute::Oif(ifindex));
    if object.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(
            object.destination.addr().into(),
        ));
    }
    if let Some(via) = object.via {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(match (family, via) {
            (Family::V4, IpAddr::V6(router)) => RouteAttribute::Via(RouteVia::Inet6(router)),
            (_, via) => RouteAttribute::Gateway(RouteAddress::from(via)),
        });
    }
    if let Some(source) = object.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    message
}

/// Makes the kernel's own rule for the table `local` (`fib_default_rules_init`, net/ipv4/fib_rules.c), byte for byte.
fn local_rule(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    message.header.action = RuleAction::ToTable;
    message.attributes.extend([
        RuleAttribute::Priority(0),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
        RuleAttribute::Table(LOCAL_TABLE),
    ]);
    message
}

fn rule(object: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(object.family);
    message.attributes.extend([
        RuleAttribute::Priority(object.priority),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ]);
    message.header.action = match object.action {
        Action::Table(table) => {
            message.attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Action::Goto(priority) => {
            message.attributes.push(RuleAttribute::Goto(priority));
            RuleAction::Goto
        }
        Action::Nop => RuleAction::Nop,
    };
    match &object.selector {
        Selector::All => {}
        Selector::AllButDefault => message.attributes.push(RuleAttribute::SuppressPrefixLen(0)),
        Selector::LocalMark { mark, mask } => message.attributes.extend([
            RuleAttribute::Iifname("lo".to_owned()),
            RuleAttribute::FwMark(*mark),
            RuleAttribute::FwMask(*mask),
        ]),
        Selector::Mark { mark, mask } => message
            .attributes
            .extend([RuleAttribute::FwMark(*mark), RuleAttribute::FwMask(*mask)]),
        Selector::InLinkMark { link, mark, mask } => message.attributes.extend([
            RuleAttribute::Iifname(link.clone()),
            RuleAttribute::FwMark(*mark),
            RuleAttribute::FwMask(*mask),
        ]),
        Selector::LocalFromMark { from, mark, mask } => {
            message.header.src_len = from.prefix_len();
            message.attributes.extend([
                RuleAttribute::Source(from.addr()),
                RuleAttribute::Iifname("lo".to_owned()),
                RuleAttribute::FwMark(*mark),
                RuleAttribute::FwMask(*mask),
            ]);
        }
        Selector::InLinkFromMark {
            from,
            link,
            mark,
            mask,
        } => {
            message.header.src_len = from.prefix_len();
            message.attributes.extend([
                RuleAttribute::Source(from.addr()),
                RuleAttribute::Iifname(link.clone()),
                RuleAttribute::FwMark(*mark),
                RuleAttribute::FwMask(*mask),
            ]);
        }
        Selector::OutLink { from, link } => {
            message.header.src_len = from.prefix_len();
            if from.prefix_len() > 0 {
                message.attributes.push(RuleAttribute::Source(from.addr()));
            }
            message
                .attributes
                .push(RuleAttribute::Oifname(link.clone()));
        }
        Selector::From(address) => {
            message.header.src_len = host_net(*address).prefix_len();
            message.attributes.push(RuleAttribute::Source(*address));
        }
    }
    message
}

/// Makes a message with the key of a neighbour entry: its address and its link.
pub(super) fn neighbour_at(address: IpAddr, ifindex: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = ifindex;
    message.header.kind = RouteType::Unspec;
    let address = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    let destination = NeighbourAttribute::Destination(address);
    message.attributes.push(destination);
    message
}

fn neighbour(object: &Neighbour, ifindex: u32) -> NeighbourMessage {
    let mut message = neighbour_at(object.address, ifindex);
    message.header.state = NeighbourState::Permanent;
    let mac = NeighbourAttribute::LinkLayerAddress(object.mac.0.to_vec());
    message.attributes.push(mac);
    message
}

/// Makes a message with the place of filters in a link's `direction`.
#[must_use]
pub fn filter_hook(ifindex: u32, direction: Direction) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle {
        major: 0xffff,
        minor: match direction {
            Direction::Ingress => TcHandle::MIN_INGRESS,
            Direction::Egress => TcHandle::MIN_EGRESS,
        },
    };
    message
}

/// Returns the priority of a filter at its hook.
pub(super) fn priority(filter: &Filter) -> u16 {
    match filter.is_limit() {
        true => LIMIT_PRIORITY,
        false => FILTER_PRIORITY,
    }
}

/// Makes a message with the key of Ebbtide's filter of a priority at a hook, whichever program it holds.
pub(super) fn owned_filter(ifindex: u32, direction: Direction, priority: u16) -> TcMessage {
    /// `ETH_P_ALL` (include/uapi/linux/if_ether.h), in network byte order as tc wants it.
    const ETH_P_ALL: u16 = 0x0003_u16.to_be();
    let mut message = filter_hook(ifindex, direction);
    message.header.handle = TcHandle::from(FILTER_HANDLE);
    message.header.info = (u32::from(priority) << 16) | u32::from(ETH_P_ALL);
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message
}

fn filter(object: &Filter, ifindex: u32, program: RawFd) -> TcMessage {
    let mut message = owned_filter(ifindex, object.direction, priority(object));
    let mut options = vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(object.program.clone())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ];
    let class = object.only_from.map(|pod| TcHandle::from(u32::from(pod)));
    options.extend(class.map(|class| TcOption::Bpf(TcFilterBpfOption::ClassId(class))));
    message.attributes.push(TcAttribute::Options(options));
    message
}

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    message
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    message
}

fn fair_queue(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle {
        major: QUEUE_HANDLE,
        minor: 0,
    };
    message
        .attributes
        .push(TcAttribute::Kind(FAIR_QUEUE.to_owned()));
    message
}

/// Parses a link's queueing discipline, if it is one that paces; returns the link's index.
pub(super) fn paced_link(message: &TcMessage) -> Option<u32> {
    let is_kind = |a: &TcAttribute| matches!(a, TcAttribute::Kind(kind) if kind == FAIR_QUEUE);
    let paces = message.header.parent == TcHandle::ROOT && message.attributes.iter().any(is_kind);
    u32::try_from(message.header.index).ok().filter(|_| paces)
}

impl Batch {
    /// Gives the link its queueing discipline, in place of another one. One that is there keeps its packets.
    pub fn add_queue(&mut self, object: &FairQueue, ifindex: u32) {
        self.push(
            format_args!("add {object}"),
            RouteNetlinkMessage::NewQueueDiscipline(fair_queue(ifindex)),
            NLM_F_CREATE | NLM_F_REPLACE,
        );
    }

    /// Gives the link the kernel's default queueing discipline again.
    pub fn delete_queue(&mut self, object: &FairQueue, ifindex: u32) {
        self.push_tolerant(
            format_args!("remove {object}"),
            RouteNetlinkMessage::DelQueueDiscipline(fair_queue(ifindex)),
            0,
            NO_FILTER,
        );
    }

    /// Adds the address; an existing one stays as it is.
    pub fn add_address(&mut self, object: &Address, ifindex: u32) {
        let message = RouteNetlinkMessage::NewAddress(address(object, ifindex));
        self.push(
            format_args!("add {object}"),
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
        );
    }

    /// Adds the route, or replaces an older one of Ebbtide's. A foreign route in conflict stays, and is an error
    /// (`taken`).
    pub fn add_route(&mut self, object: &Route, ifindex: u32) {
        let message = RouteNetlinkMessage::NewRoute(route(object, ifindex));
        self.push(
            format_args!("add {object}"),
            message,
            NLM_F_CREATE | NLM_F_EXCL,
        );
    }

    /// Removes the route, if it exists. One that was read back may have been added with another scope, for example if
    /// the kernel took its next hop for none.
    pub fn delete_route(&mut self, object: &Route, ifindex: u32) {
        let mut message = route(object, ifindex);
        // This matches any scope (`fib_table_delete`, net/ipv4/fib_trie.c).
        message.header.scope = RouteScope::NoWhere;
        let message = RouteNetlinkMessage::DelRoute(message);
        self.push_tolerant(format_args!("delete {object}"), message, 0, GONE);
    }

    /// Adds the rule; an identical one stays.
    pub fn add_rule(&mut self, object: &Rule) {
        let message = RouteNetlinkMessage::NewRule(rule(object));
        // NLM_F_EXCL: without it the kernel adds the same rule a second time.
        self.push_tolerant(
            format_args!("add {object}"),
            message,
            NLM_F_CREATE | NLM_F_EXCL,
            EEXIST,
        );
    }

    /// Removes the rule, if it exists.
    pub fn delete_rule(&mut self, object: &Rule) {
        let message = RouteNetlinkMessage::DelRule(rule(object));
        self.push_tolerant(format_args!("delete {object}"), message, 0, GONE);
    }

    /// Adds the kernel's rule for the table `local` once more, behind all rules of its priority, 0.
    pub(super) fn repeat_local_rule(&mut self, family: Family) {
        let message = RouteNetlinkMessage::NewRule(local_rule(family));
        let what = format_args!("add the {family} rule for the table `local` a second time");
        self.push(what, message, NLM_F_CREATE);
    }

    /// Removes the first one of the kernel's rules for the table `local`.
    pub(super) fn delete_first_local_rule(&mut self, family: Family) {
        let message = RouteNetlinkMessage::DelRule(local_rule(family));
        let what = format_args!("delete the first {family} rule for the table `local`");
        self.push_tolerant(what, message, 0, GONE);
    }

    /// Adds the permanent neighbour entry, or replaces an existing one.
    pub fn add_neighbour(&mut self, object: &Neighbour, ifindex: u32) {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour(object, ifindex));
        self.push(
            format_args!("add {object}"),
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
        );
    }

    /// Removes the neighbour entry, if it exists.
    pub fn delete_neighbour(&mut self, object: &Neighbour, ifindex: u32) {
        let message = RouteNetlinkMessage::DelNeighbour(neighbour(object, ifindex));
        self.push_tolerant(format_args!("delete {object}"), message, 0, GONE);
    }

    /// Attaches the program, or replaces an older one, without a gap.
    pub fn add_filter(&mut self, object: &Filter, ifindex: u32, program: RawFd) {
        self.push_tolerant(
            format_args!("add clsact to {}", object.link),
            RouteNetlinkMessage::NewQueueDiscipline(clsact(ifindex)),
            NLM_F_CREATE | NLM_F_EXCL,
            EEXIST,
        );
        self.push(
            format_args!("attach {object}"),
            RouteNetlinkMessage::NewTrafficFilter(filter(object, ifindex, program)),
            NLM_F_CREATE,
        );
    }

    /// Removes Ebbtide's filter, if it exists.
    pub fn delete_filter(&mut self, object: &Filter, ifindex: u32) {
        self.push_tolerant(
            format_args!("remove {object}"),
            RouteNetlinkMessage::DelTrafficFilter(owned_filter(
                ifindex,
                object.direction,
                priority(object),
            )),
            0,
            NO_FILTER,
        );
    }

    /// Removes the qdisc `clsact` of a link, if it exists.
    pub fn delete_clsact(&mut self, link: &str, ifindex: u32) {
        self.push_tolerant(
            format_args!("remove the qdisc clsact of {link}"),
            RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex)),
            0,
            NO_FILTER,
        );
    }
}
