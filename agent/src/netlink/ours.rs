//! Routes and rules that are ours, by their protocol, and where programs of ours could be.

use std::collections::{HashMap, HashSet};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteMessage, RouteProtocol},
    rule::{RuleAttribute, RuleMessage},
    tc::{TcAttribute, TcMessage},
};

use super::{
    Error, Netlink,
    link::Link,
    message,
    model::{Family, PROTOCOL, Route, Rule},
    state::{parse_route, parse_rule},
};

/// What of ours a namespace has among rules and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ours {
    /// Our rules.
    pub rules: Vec<Rule>,
    /// Our routes.
    pub routes: Vec<Route>,
}

impl Netlink {
    /// Reads our rules and our routes over `links`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn ours(&self, links: &[Link]) -> Result<Ours, Error> {
        let names: HashMap<u32, String> =
            links.iter().map(|l| (l.ifindex, l.name.clone())).collect();
        let mut ours = Ours::default();
        for family in Family::BOTH {
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let request = RouteNetlinkMessage::GetRule(message);
            let rules = self.dump("list rules", request, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule) if is_ours(&rule) => parse_rule(family, &rule),
                _ => None,
            });
            ours.rules.extend(rules.await?);
            let mut message = RouteMessage::default();
            message.header.address_family = message::address_family(family);
            // The kernel lists these alone (`fib_dump_info_fnhe`; a socket with strict checking).
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

impl Netlink {
    /// The indices of the links that can have tc filters at clsact's hooks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn with_clsact(&self) -> Result<HashSet<u32>, Error> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let kind = TcAttribute::Kind("clsact".to_owned());
        let links = self.dump(
            "list queueing disciplines",
            request,
            |answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(qdisc)
                    if qdisc.attributes.contains(&kind) =>
                {
                    u32::try_from(qdisc.header.index).ok()
                }
                _ => None,
            },
        );
        Ok(links.await?.into_iter().collect())
    }
}

/// Whether the rule is ours.
pub(super) fn is_ours(rule: &RuleMessage) -> bool {
    let ours = RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL));
    rule.attributes.contains(&ours)
}
