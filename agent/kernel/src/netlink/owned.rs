//! Finds Ebbtide's routes and rules by their protocol.

use std::collections::HashMap;

use ebbtide_types::Family;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteMessage, RouteProtocol},
    rule::{RuleAttribute, RuleMessage},
};

use super::{
    Error, Netlink,
    link::Link,
    message,
    model::{PROTOCOL, Route, Rule},
    state::{parse_route, parse_rule},
};

/// Ebbtide's rules and routes in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// The rules.
    pub rules: Vec<Rule>,
    /// The routes.
    pub routes: Vec<Route>,
}

impl Netlink {
    /// Reads Ebbtide's rules, and its routes over `links`.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn owned(&self, links: &[Link]) -> Result<Owned, Error> {
        let names: HashMap<u32, String> =
            links.iter().map(|l| (l.ifindex, l.name.clone())).collect();
        let mut ours = Owned::default();
        for family in Family::BOTH {
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let request = RouteNetlinkMessage::GetRule(message);
            let rules = self.dump("list rules", request, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule) if is_owned(&rule) => parse_rule(family, &rule),
                _ => None,
            });
            ours.rules.extend(rules.await?);
            let mut message = RouteMessage::default();
            message.header.address_family = message::address_family(family);
            // With strict checking the kernel lists these alone (`fib_dump_info_fnhe`).
            message.header.protocol = RouteProtocol::from(PROTOCOL);
            let request = RouteNetlinkMessage::GetRoute(message);
            let routes = self.dump("list our routes", request, |answer| match answer {
                RouteNetlinkMessage::NewRoute(route)
                    if route.header.protocol == RouteProtocol::from(PROTOCOL) =>
                {
                    parse_route(family, &route, &names)
                }
                _ => None,
            });
            ours.routes.extend(routes.await?);
        }
        Ok(ours)
    }
}

/// Whether the rule is Ebbtide's.
pub(super) fn is_owned(rule: &RuleMessage) -> bool {
    let ours = RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL));
    rule.attributes.contains(&ours)
}
