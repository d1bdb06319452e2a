//! The default routes of a namespace: which links lead on, and to which gateway.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ebbtide_types::Family;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    Error, Netlink,
    link::Link,
    message,
    model::{LOCAL_TABLE, MAIN_TABLE, PROTOCOL, Route},
    ours::is_ours,
    state::next_hop,
};

impl Netlink {
    /// The default routes over `links` that are not ours: of the main table, then of each table that somebody's
    /// rule leads to. One with several next hops is as many routes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn default_routes(&self, links: &[Link]) -> Result<Vec<Route>, Error> {
        let names: HashMap<u32, String> =
            links.iter().map(|l| (l.ifindex, l.name.clone())).collect();
        let mut defaults = Vec::new();
        for family in Family::BOTH {
            let others = self.tables_of_others(family).await?;
            for table in std::iter::once(MAIN_TABLE).chain(others) {
                defaults.extend(self.defaults_of(family, table, &names).await?);
            }
        }
        Ok(defaults)
    }

    /// The tables that others' rules lead to, but main and local.
    async fn tables_of_others(&self, family: Family) -> Result<BTreeSet<u32>, Error> {
        let mut message = RuleMessage::default();
        message.header.family = message::address_family(family);
        let request = RouteNetlinkMessage::GetRule(message);
        let tables = self.dump("list rules", request, |answer| match answer {
            RouteNetlinkMessage::NewRule(rule)
                if !is_ours(&rule) && rule.header.family == message::address_family(family) =>
            {
                table_of(&rule)
            }
            _ => None,
        });
        let tables = tables.await?.into_iter();
        Ok(tables
            .filter(|table| ![0, MAIN_TABLE, LOCAL_TABLE].contains(table))
            .collect())
    }

    /// What `parse` makes of the routes of one table that `is_wanted` says yes to, given their bytes (`struct rtmsg`);
    /// none, if there is no such table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn routes_in<T>(
        &self,
        family: Family,
        table: u32,
        is_wanted: impl Fn(&[u8]) -> bool,
        parse: impl Fn(&RouteMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = message::address_family(family);
        message.attributes.push(RouteAttribute::Table(table));
        let request = RouteNetlinkMessage::GetRoute(message);
        let what = "list routes";
        let routes = self.dump_only(what, request, is_wanted, |answer| match answer {
            RouteNetlinkMessage::NewRoute(route)
                if route.header.address_family == message::address_family(family) =>
            {
                parse(&route)
            }
            _ => None,
        });
        routes.await
    }

    async fn defaults_of(
        &self,
        family: Family,
        table: u32,
        names: &HashMap<u32, String>,
    ) -> Result<Vec<Route>, Error> {
        let routes = self.routes_in(family, table, is_default, hops).await?;
        let hops = routes.into_iter().filter(|hops| hops.table == table);
        Ok(hops.flat_map(|hops| hops.routes(family, names)).collect())
    }
}

/// Whether the bytes of a route (`struct rtmsg`) are a default route's. Beside BGP they are two among hundreds of
/// thousands, and the kernel has no filter for them: it tells them all, but only these are decoded.
pub(super) fn is_default(bytes: &[u8]) -> bool {
    bytes.get(DESTINATION_LENGTH) == Some(&0)
}

/// Where `struct rtmsg` has the length of the destination's prefix.
const DESTINATION_LENGTH: usize = 1;

/// Where a default route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hops {
    /// Its table.
    pub(super) table: u32,
    /// The links' indices, and the gateways.
    pub(super) hops: Vec<(u32, Option<IpAddr>)>,
}

impl Hops {
    fn routes(self, family: Family, names: &HashMap<u32, String>) -> Vec<Route> {
        let routes = self.hops.into_iter().filter_map(|(link, via)| {
            Some(Route {
                link: names.get(&link)?.clone(),
                destination: family.everything(),
                via,
                source: None,
                table: self.table,
            })
        });
        routes.collect()
    }
}

/// The next hops of a route; `None` if it is no default route, is ours, or leads nowhere.
pub(super) fn hops(message: &RouteMessage) -> Option<Hops> {
    let header = &message.header;
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.protocol == RouteProtocol::from(PROTOCOL)
    {
        return None;
    }
    let (mut link, mut via, mut table) = (None, None, u32::from(header.table));
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::MultiPath(all) => {
                hops.extend(
                    all.iter()
                        .map(|hop| (hop.interface_index, gateway(&hop.attributes))),
                );
            }
            other => via = next_hop(other).or(via),
        }
    }
    hops.extend(link.map(|link| (link, via)));
    (!hops.is_empty()).then_some(Hops { table, hops })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(next_hop)
}

fn table_of(rule: &RuleMessage) -> Option<u32> {
    if rule.header.action != RuleAction::ToTable {
        return None;
    }
    let mut table = u32::from(rule.header.table);
    for attribute in &rule.attributes {
        if let RuleAttribute::Table(id) = attribute {
            table = *id;
        }
    }
    Some(table)
}
