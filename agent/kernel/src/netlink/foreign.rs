//! Reads foreign routes and rules: those that are not Ebbtide's.

use ebbtide_types::Family;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    rule::{RuleAttribute, RuleMessage},
};

use super::{
    Error, Netlink, defaults,
    direct::Direct,
    message,
    model::{MAIN_TABLE, PROTOCOL},
    owned::is_owned,
    state::ip,
};

pub use super::foreign_rule::ForeignRule;

/// A route that is not Ebbtide's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Its table.
    pub table: u32,
    /// Its destination, as text.
    pub destination: String,
}

/// The foreign rules and routes of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// The routes.
    pub routes: Vec<ForeignRoute>,
    /// The rules.
    pub rules: Vec<ForeignRule>,
    /// Whether any rule is Ebbtide's: the agent has run here before.
    pub beside_ours: bool,
}

/// The kinds of foreign rules that a namespace has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForeignRules {
    /// Whether there is any.
    pub any: bool,
    /// Whether one matches marks.
    pub by_mark: bool,
}

impl Netlink {
    /// Reads the foreign routes in `tables`, and all foreign rules.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn foreign(&self, tables: &[u32]) -> Result<Foreign, Error> {
        let mut foreign = Foreign::default();
        for family in Family::BOTH {
            for table in tables {
                let routes = self.routes_in(family, *table, |_| true, foreign_route);
                let of_table = |route: &ForeignRoute| route.table == *table;
                foreign
                    .routes
                    .extend(routes.await?.into_iter().filter(of_table));
            }
        }
        let (rules, beside_ours) = self.rules_of_others().await?;
        foreign.rules = rules;
        foreign.beside_ours = beside_ours;
        Ok(foreign)
    }

    /// Reads the foreign rules.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn foreign_rules(&self) -> Result<Vec<ForeignRule>, Error> {
        Ok(self.rules_of_others().await?.0)
    }

    /// Reads the foreign rules, and whether any rule is Ebbtide's.
    async fn rules_of_others(&self) -> Result<(Vec<ForeignRule>, bool), Error> {
        let (mut rules, mut beside_ours) = (Vec::new(), false);
        for family in Family::BOTH {
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let request = RouteNetlinkMessage::GetRule(message);
            let all = self.dump("list rules", request, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule)
                    if rule.header.family == message::address_family(family) =>
                {
                    Some(ForeignRule::parse(family, &rule))
                }
                _ => None,
            });
            for rule in all.await? {
                match rule {
                    Some(rule) => rules.push(rule),
                    None => beside_ours = true,
                }
            }
        }
        Ok((rules, beside_ours))
    }
}

impl Direct {
    /// Whether the main table has a default route that is not Ebbtide's.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn has_foreign_default(&mut self, family: Family) -> Result<bool, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = message::address_family(family);
        message.header.table = MAIN_TABLE as u8;
        let question = RouteNetlinkMessage::GetRoute(message);
        let is_default = |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => is_foreign_default(&route).then_some(()),
            _ => None,
        };
        let found = self.dump_only("list routes", question, defaults::is_default, is_default)?;
        Ok(!found.is_empty())
    }
}

impl Direct {
    /// Whether a rule of Ebbtide's that matches no mark looks up another table than the main one.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn has_owned_tables(&mut self) -> Result<bool, Error> {
        self.has_rules(leads_to_owned_table)
    }

    /// Looks for foreign rules, without the kernel's own.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn foreign_rules(&mut self) -> Result<ForeignRules, Error> {
        let mut found = ForeignRules::default();
        for family in Family::BOTH {
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let question = RouteNetlinkMessage::GetRule(message);
            let foreign = self.dump("list rules", question, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule) if is_foreign(&rule) => {
                    Some(matches_mark(&rule))
                }
                _ => None,
            })?;
            found.any |= !foreign.is_empty();
            found.by_mark |= foreign.contains(&true);
        }
        Ok(found)
    }

    fn has_rules(&mut self, are_meant: fn(&RuleMessage) -> bool) -> Result<bool, Error> {
        for family in Family::BOTH {
            let mut message = RuleMessage::default();
            message.header.family = message::address_family(family);
            let question = RouteNetlinkMessage::GetRule(message);
            let found = self.dump("list rules", question, |answer| match answer {
                RouteNetlinkMessage::NewRule(rule) => are_meant(&rule).then_some(()),
                _ => None,
            })?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn leads_to_owned_table(message: &RuleMessage) -> bool {
    let mut table = u32::from(message.header.table);
    let mut is_by_mark = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::FwMark(_) => is_by_mark = true,
            _ => {}
        }
    }
    is_owned(message) && table != MAIN_TABLE && !is_by_mark
}

/// Whether the rule is neither Ebbtide's nor one of the kernel's own, which each namespace has
/// (`fib_default_rule_add`, net/core/fib_rules.c).
pub(super) fn is_foreign(message: &RuleMessage) -> bool {
    let kernels = RuleAttribute::Protocol(RouteProtocol::Kernel);
    !is_owned(message) && !message.attributes.contains(&kernels)
}

fn matches_mark(message: &RuleMessage) -> bool {
    let by_mark = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::FwMark(_));
    message.attributes.iter().any(by_mark)
}

fn is_foreign_default(RouteMessage { header, .. }: &RouteMessage) -> bool {
    // The kernel's placeholder where there is no route at all (`ip6_null_entry`, net/ipv6/route.c).
    let is_none = header.kind == RouteType::Unreachable && header.protocol == RouteProtocol::Kernel;
    header.destination_prefix_length == 0
        && u32::from(header.table) == MAIN_TABLE
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
