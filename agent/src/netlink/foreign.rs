//! Routes and rules that are somebody else's.

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol},
    rule::{RuleAttribute, RuleMessage},
};

use super::{
    Error, Netlink, message,
    model::{Family, PROTOCOL},
    state::ip,
};

/// A route that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Its table.
    pub table: u32,
    /// Its destination, for people.
    pub destination: String,
}

/// A rule that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// Family.
    pub family: Family,
    /// Its priority.
    pub priority: u32,
}

/// The rules and routes of a namespace, ours told from others'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Others' routes.
    pub routes: Vec<ForeignRoute>,
    /// Others' rules.
    pub rules: Vec<ForeignRule>,
    /// Whether any rule is ours: we have been here before.
    pub beside_ours: bool,
}

impl Netlink {
    /// Reads what others have among routes and rules.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn foreign(&self) -> Result<Foreign, Error> {
        let mut foreign = Foreign::default();
        for family in Family::BOTH {
            let mut message = RouteMessage::default();
            message.header.address_family = message::address_family(family);
            let request = RouteNetlinkMessage::GetRoute(message);
            let routes = self.dump("list routes", request, |answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => foreign_route(&route),
                _ => None,
            });
            foreign.routes.extend(routes.await?);
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let request = RouteNetlinkMessage::GetRule(message);
            let priorities = self.dump("list rules", request, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule) => Some(foreign_priority(&rule)),
                _ => None,
            });
            for priority in priorities.await? {
                match priority {
                    Some(priority) => foreign.rules.push(ForeignRule { family, priority }),
                    None => foreign.beside_ours = true,
                }
            }
        }
        Ok(foreign)
    }
}

fn foreign_route(message: &RouteMessage) -> Option<ForeignRoute> {
    if message.header.protocol == RouteProtocol::from(PROTOCOL) {
        return None;
    }
    let mut table = u32::from(message.header.table);
    let mut destination = "default".to_owned();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => {
                let prefix = message.header.destination_prefix_length;
                destination = ip(address).map_or(destination, |ip| format!("{ip}/{prefix}"));
            }
            _ => {}
        }
    }
    Some(ForeignRoute { table, destination })
}

/// `None` if the rule is ours.
fn foreign_priority(message: &RuleMessage) -> Option<u32> {
    let ours = RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL));
    if message.attributes.contains(&ours) {
        return None;
    }
    let mut priorities = message.attributes.iter().filter_map(|a| match a {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    Some(priorities.next().unwrap_or(0))
}
