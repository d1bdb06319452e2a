//! Resolves conflicts with existing routes: Ebbtide's are replaced, foreign ones stay.
//!
//! `NLM_F_REPLACE` replaces a route whoever owns it, and the kernel keeps no copy. So a route is added with
//! `NLM_F_EXCL`, and only on a conflict are the existing routes read.
//!
//! The module also handles gateways that the kernel finds on another link. Even for an `onlink` gateway it looks up the
//! main table, and refuses the route if another link's is better there: two NICs in one IPv6 network
//! (`ip6_route_check_nh_onlink`, net/ipv6/route.c), a gateway that is the node's own address (`fib_check_nh_v4_gw`,
//! net/ipv4/fib_semantics.c). Without `onlink` it looks up the route's own table first, which has the network.
//!
//! And it handles sources that the namespace does not have, or not yet (duplicate address detection): the kernel refuses a
//! route with such a one. A route to one address on a link is made without it then, because it is needed all the same.

use std::{collections::BTreeSet, io, mem};

use ebbtide_types::Family;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol},
    },
};

use super::{
    Batch, Error, Request,
    message::address_family,
    model::PROTOCOL,
    state::{ip, next_hop},
};

/// `IP6_RT_PRIO_USER` (include/uapi/linux/ipv6_route.h): the metric of an IPv6 route that names none.
const IPV6_METRIC: u32 = 1024;

/// Refused requests for routes that are worth another try.
#[derive(Debug, Default)]
pub(super) struct RouteConflicts {
    /// Those that conflict with an existing route.
    conflicting: Vec<Request>,
    /// Those whose gateway was refused as `onlink`, here without that flag; or whose source was refused, here without it.
    otherwise: Vec<Request>,
}

impl RouteConflicts {
    /// Keeps `request` if it was refused for one of these reasons; returns whether it was.
    pub(super) fn collect(&mut self, request: &Request, refusal: &io::Error) -> bool {
        let RouteNetlinkMessage::NewRoute(route) = &request.message else {
            return false;
        };
        let is = |errno| refusal.raw_os_error() == Some(errno as i32);
        if request.flags & NLM_F_EXCL != 0 && is(Errno::EEXIST) {
            self.conflicting.push(request.clone());
            return true;
        }
        let otherwise = is(Errno::EINVAL)
            .then(|| without_onlink(route).or_else(|| without_source(route)))
            .flatten();
        if let Some(route) = otherwise {
            self.otherwise.push(Request {
                message: RouteNetlinkMessage::NewRoute(route),
                ..request.clone()
            });
            return true;
        }
        false
    }

    /// Returns the requests to repeat without what was refused, before existing routes are read.
    pub(super) fn otherwise(&mut self) -> Batch {
        Batch {
            requests: mem::take(&mut self.otherwise),
        }
    }

    /// Returns the dumps of the existing routes: one for each family and table.
    pub(super) fn dumps(&self) -> Vec<RouteNetlinkMessage> {
        let asked = self
            .wanted()
            .map(family_and_table)
            .map(|(f, t)| (u8::from(f), t));
        let asked: BTreeSet<_> = asked.collect();
        let question = |(family, table): (u8, u32)| {
            RouteNetlinkMessage::GetRoute(routes_of(family.into(), table))
        };
        asked.into_iter().map(question).collect()
    }

    /// Returns the requests to repeat as replacements, given the existing routes, and errors for foreign conflicts.
    pub(super) fn replacements(
        mut self,
        existing: &[RouteMessage],
        namespace: &str,
    ) -> (Batch, Vec<Error>) {
        self.conflicting
            .retain(|request| !request.exists_in(existing));
        let (mut batch, mut refused) = (Batch::default(), Vec::new());
        for mut request in self.conflicting {
            let RouteNetlinkMessage::NewRoute(wanted) = &request.message else {
                continue;
            };
            let mut conflicting = existing
                .iter()
                .filter(|existing| conflicts(existing, wanted));
            match conflicting.find(|existing| !is_owned(existing, wanted)) {
                None => {
                    request.flags = NLM_F_CREATE | NLM_F_REPLACE;
                    batch.requests.push(request);
                }
                Some(other) => refused.push(Error::new(
                    format_args!(
                        "{} {namespace}: a foreign route has the same destination, table and \
                         metric ({}), and stays; remove it, or give it another metric",
                        request.what,
                        describe(other)
                    ),
                    Errno::EEXIST.into(),
                )),
            }
        }
        (batch, refused)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.conflicting.is_empty()
    }

    fn wanted(&self) -> impl Iterator<Item = &RouteMessage> {
        self.conflicting.iter().filter_map(Request::route)
    }
}

impl Request {
    /// Returns the route that is to be added, if the request is for one.
    pub(super) fn route(&self) -> Option<&RouteMessage> {
        match &self.message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        }
    }

    /// Whether the request is for a route that exists identically.
    fn exists_in(&self, existing: &[RouteMessage]) -> bool {
        let Some(wanted) = self.route() else {
            return false;
        };
        let mut same = existing.iter().filter(|existing| is_same(existing, wanted));
        same.any(|existing| conflicts(existing, wanted))
    }
}

impl Batch {
    /// Returns the dump that finds which of the batch's IPv6 routes exist as Ebbtide's, if it has any: limited to one table
    /// and one link if all these routes share them.
    pub(super) fn ipv6_route_dump(&self) -> Option<RouteNetlinkMessage> {
        let routes = self.requests.iter().filter_map(Request::route);
        let routes: Vec<_> = routes
            .filter(|route| route.header.address_family == AddressFamily::Inet6)
            .collect();
        let tables: BTreeSet<u32> = routes
            .iter()
            .map(|route| family_and_table(route).1)
            .collect();
        let links: BTreeSet<Option<u32>> = routes.iter().map(|route| link(route)).collect();
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        if let [table] = Vec::from_iter(tables)[..] {
            message.attributes.push(RouteAttribute::Table(table));
        }
        if let [Some(link)] = Vec::from_iter(links)[..] {
            message.attributes.push(RouteAttribute::Oif(link));
        }
        (!routes.is_empty()).then_some(RouteNetlinkMessage::GetRoute(message))
    }

    /// Removes the requests for routes that exist identically.
    pub(super) fn remove_existing(&mut self, existing: &[RouteMessage]) {
        self.requests.retain(|request| !request.exists_in(existing));
    }
}

fn without_onlink(route: &RouteMessage) -> Option<RouteMessage> {
    let mut other = route.clone();
    other.header.flags.remove(RouteFlags::Onlink);
    (other.header.flags != route.header.flags).then_some(other)
}

/// Returns a route to one address on a link without its source, if it has one.
fn without_source(route: &RouteMessage) -> Option<RouteMessage> {
    let to_one = Family::BOTH.into_iter().any(|family| {
        let everything = family.everything();
        route.header.address_family == address_family(family)
            && route.header.destination_prefix_length == everything.max_prefix_len()
    });
    let is_direct = !route.attributes.iter().any(|a| next_hop(a).is_some());
    let mut other = route.clone();
    let is_source = |a: &RouteAttribute| matches!(a, RouteAttribute::PrefSource(_));
    other.attributes.retain(|a| !is_source(a));
    let had_source = other.attributes.len() < route.attributes.len();
    (to_one && is_direct && had_source).then_some(other)
}

fn routes_of(family: AddressFamily, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// Returns the route of an answer.
pub(super) fn route(answer: RouteNetlinkMessage) -> Option<RouteMessage> {
    match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    }
}

fn family_and_table(route: &RouteMessage) -> (AddressFamily, u32) {
    let mut tables = route.attributes.iter().filter_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = tables.next();
    let family = route.header.address_family;
    (family, table.unwrap_or(u32::from(route.header.table)))
}

/// Whether an existing route conflicts with the wanted one: to the kernel both are the same (`fib_table_insert`,
/// net/ipv4/fib_trie.c; `fib6_add_rt2node`, net/ipv6/ip6_fib.c).
fn conflicts(existing: &RouteMessage, wanted: &RouteMessage) -> bool {
    let destination = |route: &RouteMessage| {
        let found = route.attributes.iter().find_map(|a| match a {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
        // The default route may be written as an address of zeros.
        let found = found.filter(|_| route.header.destination_prefix_length > 0);
        (found, route.header.destination_prefix_length)
    };
    family_and_table(existing) == family_and_table(wanted)
        && destination(existing) == destination(wanted)
        && existing.header.tos == wanted.header.tos
        && metric(existing) == metric(wanted)
}

fn metric(route: &RouteMessage) -> u32 {
    let written = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    match (written, route.header.address_family) {
        (None | Some(0), AddressFamily::Inet6) => IPV6_METRIC,
        (written, _) => written.unwrap_or(0),
    }
}

/// Whether a route is Ebbtide's, or the kernel's own for an address on the same link.
fn is_owned(existing: &RouteMessage, wanted: &RouteMessage) -> bool {
    existing.header.protocol == RouteProtocol::from(PROTOCOL)
        || existing.header.protocol == RouteProtocol::Kernel && link(existing) == link(wanted)
}

fn link(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn is_same(existing: &RouteMessage, wanted: &RouteMessage) -> bool {
    let leads = |route: &RouteMessage| {
        let mut to = (None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::PrefSource(address) => to.1 = ip(address),
                other => to.0 = next_hop(other).or(to.0),
            }
        }
        (to, link(route), route.header.kind, route.header.protocol)
    };
    leads(existing) == leads(wanted)
}

/// Formats a route for people, with what `ip route` needs to remove it.
fn describe(route: &RouteMessage) -> String {
    let mut text = String::from("default");
    let (mut via, mut device) = (String::new(), String::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                if let Some(ip) = ip(address) {
                    text = format!("{ip}/{}", route.header.destination_prefix_length);
                }
            }
            RouteAttribute::Oif(index) => device = format!(" by the link with index {index}"),
            other => {
                if let Some(ip) = next_hop(other) {
                    via = format!(" via {ip}");
                }
            }
        }
    }
    let (_, table) = family_and_table(route);
    let protocol = u8::from(route.header.protocol);
    format!("{text}{via}{device}, table {table}, protocol {protocol}")
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteAddress;

    use super::*;
    use crate::netlink::model::Route;

    fn wanted() -> RouteMessage {
        let route = Route {
            link: "net1".into(),
            destination: "0.0.0.0/0".parse().unwrap(),
            via: Some([10, 71, 8, 1].into()),
            source: None,
            table: 254,
        };
        crate::netlink::message::route(&route, 7)
    }

    fn changed(change: impl Fn(&mut RouteMessage)) -> RouteMessage {
        let mut route = wanted();
        change(&mut route);
        route
    }

    /// Returns the number of repeated requests, and the errors of the others.
    fn outcome(existing: RouteMessage) -> (usize, Vec<String>) {
        let mut taken = RouteConflicts::default();
        let request = Request {
            what: "add route".into(),
            message: RouteNetlinkMessage::NewRoute(wanted()),
            flags: NLM_F_EXCL,
            tolerated: &[],
        };
        assert!(taken.collect(&request, &Errno::EEXIST.into()));
        let (batch, refused) = taken.replacements(&[existing], "in the pod");
        let refused = refused.iter().map(ToString::to_string).collect();
        (batch.requests.len(), refused)
    }

    #[test]
    fn a_gateway_that_is_refused_as_one_on_the_link_is_asked_for_without_once() {
        let request = Request {
            what: "add route".into(),
            message: RouteNetlinkMessage::NewRoute(wanted()),
            flags: NLM_F_EXCL,
            tolerated: &[],
        };
        let mut taken = RouteConflicts::default();
        assert!(taken.collect(&request, &Errno::EINVAL.into()) && taken.is_empty());
        let again = taken.otherwise().requests;
        assert_eq!(again.len(), 1);
        assert!(!taken.collect(&again[0], &Errno::EINVAL.into()), "for good");
        assert!(taken.collect(&again[0], &Errno::EEXIST.into()) && !taken.is_empty());
        assert!(taken.otherwise().requests.is_empty());
    }

    #[test]
    fn a_source_that_is_refused_does_not_keep_a_pods_route_from_its_place() {
        let route = |destination: &str, via: Option<&str>, source: &str| Route {
            link: "veth0".into(),
            destination: destination.parse().unwrap(),
            via: via.map(|via| via.parse().unwrap()),
            source: Some(source.parse().unwrap()),
            table: 7700,
        };
        let v4 = ["10.71.8.4/32", "10.71.8.10"];
        let v6 = ["fd71:8::4/128", "fd71:8::10"];
        for (route, is_asked_again) in [
            (route(v4[0], None, v4[1]), true),
            (route(v6[0], None, v6[1]), true),
            (route("10.71.8.0/24", None, v4[1]), false),
        ] {
            let message = crate::netlink::message::route(&route, 7);
            let request = Request {
                what: "add route".into(),
                message: RouteNetlinkMessage::NewRoute(message),
                flags: NLM_F_EXCL,
                tolerated: &[],
            };
            let mut taken = RouteConflicts::default();
            let is_kept = taken.collect(&request, &Errno::EINVAL.into());
            assert_eq!(is_kept, is_asked_again, "{route}");
            let plain = Route {
                source: None,
                ..route
            };
            let plain = RouteNetlinkMessage::NewRoute(crate::netlink::message::route(&plain, 7));
            for again in taken.otherwise().requests {
                assert_eq!(again.message, plain);
                assert!(!taken.collect(&again, &Errno::EINVAL.into()), "for good");
            }
        }
        let by_gateway = route(v4[0], Some("10.71.8.1"), v4[1]);
        let message = crate::netlink::message::route(&by_gateway, 7);
        assert_eq!(without_source(&message), None);
    }

    #[test]
    fn what_is_ours_is_replaced_and_what_is_others_stays() {
        let by_another_gateway = changed(|route| {
            route
                .attributes
                .retain(|a| !matches!(a, RouteAttribute::Gateway(_)));
            let gateway = RouteAddress::Inet([10, 71, 8, 2].into());
            route.attributes.push(RouteAttribute::Gateway(gateway));
        });
        assert_eq!(outcome(by_another_gateway.clone()), (1, vec![]));
        assert_eq!(outcome(wanted()), (0, vec![]), "the very same is there");
        for protocol in [
            RouteProtocol::Boot,
            RouteProtocol::Static,
            RouteProtocol::Ra,
        ] {
            let mut theirs = by_another_gateway.clone();
            theirs.header.protocol = protocol;
            let (again, refused) = outcome(theirs);
            assert_eq!((again, refused.len()), (0, 1), "{protocol:?}");
            let said = &refused[0];
            for part in [
                "default via 10.71.8.2",
                "add route in the pod",
                "os error 17",
            ] {
                assert!(said.contains(part), "{said}");
            }
        }
        let of_the_kernel = changed(|route| route.header.protocol = RouteProtocol::Kernel);
        assert_eq!(
            outcome(of_the_kernel),
            (1, vec![]),
            "for an address on this link"
        );
    }

    #[test]
    fn another_metric_table_or_destination_is_another_place() {
        let metric = changed(|route| route.attributes.push(RouteAttribute::Priority(100)));
        let table = changed(|route| route.attributes[0] = RouteAttribute::Table(7701));
        let tos = changed(|route| route.header.tos = 4);
        for other in [metric, table, tos] {
            assert!(!conflicts(&other, &wanted()), "{other:?}");
        }
        // The kernel always writes an IPv6 route's metric, and takes none for 1024.
        let mut ipv6 = wanted();
        ipv6.header.address_family = AddressFamily::Inet6;
        let mut dumped = ipv6.clone();
        dumped.attributes.push(RouteAttribute::Priority(1024));
        assert!(conflicts(&dumped, &ipv6));
    }

    #[test]
    fn each_table_is_asked_about_once_and_nothing_but_a_taken_place_is_kept() {
        let mut taken = RouteConflicts::default();
        let request = Request {
            what: String::new(),
            message: RouteNetlinkMessage::NewRoute(wanted()),
            flags: NLM_F_EXCL,
            tolerated: &[],
        };
        assert!(!taken.collect(&request, &Errno::ENETUNREACH.into()));
        assert!(taken.is_empty());
        assert!(taken.collect(&request, &Errno::EEXIST.into()));
        assert!(taken.collect(&request, &Errno::EEXIST.into()));
        assert_eq!(taken.dumps().len(), 1);
    }
}
