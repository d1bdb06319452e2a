//! Routes and rules that are somebody else's.

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    rule::{RuleAttribute, RuleMessage},
};

use super::{
    Error, Netlink,
    direct::Direct,
    message,
    model::{Family, MAIN_TABLE, PROTOCOL},
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
                RouteNetlinkMessage::NewRoute(route)
                    if route.header.address_family == message::address_family(family) =>
                {
                    foreign_route(&route)
                }
                _ => None,
            });
            foreign.routes.extend(routes.await?);
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let request = RouteNetlinkMessage::GetRule(message);
            let priorities = self.dump("list rules", request, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule)
                    if rule.header.family == message::address_family(family) =>
                {
                    Some(foreign_priority(&rule))
                }
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

impl Direct {
    /// Whether the main table has a default route that is not ours.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn has_foreign_default(&mut self, family: Family) -> Result<bool, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = message::address_family(family);
        message.header.table = MAIN_TABLE as u8;
        let question = RouteNetlinkMessage::GetRoute(message);
        let is_default = |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => is_foreign_default(&route).then_some(()),
            _ => None,
        };
        match self.dump("list routes", question, is_default) {
            Ok(found) => Ok(!found.is_empty()),
            // The kernel makes a table when it gets its first route, and none of a family that it was
            // started without (`ipv6.disable=1`).
            Err(e) if e.is_gone() || e.errno() == Some(Errno::EOPNOTSUPP as i32) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Direct {
    /// Whether a rule of ours leads to another table than the main one, whatever the packet's mark.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn has_tables_of_ours(&mut self) -> Result<bool, Error> {
        self.has_rules(leads_to_ours)
    }

    /// Whether somebody else routes by marks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn has_foreign_rules_by_mark(&mut self) -> Result<bool, Error> {
        self.has_rules(is_foreign_by_mark)
    }

    fn has_rules(&mut self, are_meant: fn(&RuleMessage) -> bool) -> Result<bool, Error> {
        for family in Family::BOTH {
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let question = RouteNetlinkMessage::GetRule(message);
            let found = self.dump("list rules", question, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule) => are_meant(&rule).then_some(()),
                _ => None,
            });
            match found {
                Ok(found) if found.is_empty() => {}
                Ok(_) => return Ok(true),
                Err(e) if e.errno() == Some(Errno::EOPNOTSUPP as i32) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}

fn leads_to_ours(message: &RuleMessage) -> bool {
    let mut table = u32::from(message.header.table);
    let mut is_by_mark = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::FwMark(_) => is_by_mark = true,
            _ => {}
        }
    }
    foreign_priority(message).is_none() && table != MAIN_TABLE && !is_by_mark
}

/// Whether the rule is another's and looks at marks.
pub(super) fn is_foreign_by_mark(message: &RuleMessage) -> bool {
    let by_mark = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::FwMark(_));
    foreign_priority(message).is_some() && message.attributes.iter().any(by_mark)
}

fn is_foreign_default(RouteMessage { header, .. }: &RouteMessage) -> bool {
    // What the kernel says where there is no route at all (`ip6_null_entry`, net/ipv6/route.c).
    let is_none = header.kind == RouteType::Unreachable && header.protocol == RouteProtocol::Kernel;
    header.destination_prefix_length == 0
        && header.protocol != RouteProtocol::from(PROTOCOL)
        && !is_none
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
