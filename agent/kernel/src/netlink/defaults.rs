//! Reads the default routes of a namespace: their links and gateways.

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
    owned::is_owned,
    state::next_hop,
};

impl Netlink {
    /// Reads the foreign default routes over `links`: of the main table, then of each table that a foreign rule looks
    /// up. A multipath route is returned as one route for each next hop.
    ///
    /// # Errors
    /// If the kernel refuses a request.
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

    /// Returns the tables that foreign rules look up, except main and local.
    async fn tables_of_others(&self, family: Family) -> Result<BTreeSet<u32>, Error> {
        let mut message = RuleMessage::default();
        message.header.family = message::address_family(family);
        let request = RouteNetlinkMessage::GetRule(message);
        let tables = self.dump("list rules", request, |answer| match answer {
            RouteNetlinkMessage::NewRule(rule)
                if !is_owned(&rule) && rule.header.family == message::address_family(family) =>
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

    /// Returns what `parse` makes of the routes of one table that `is_wanted` accepts by their bytes (`struct rtmsg`);
    /// none if there is no such table.
    ///
    /// # Errors
    /// If the kernel refuses a request.
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

/// Whether the bytes of a route (`struct rtmsg`) are a default route's. With BGP these are two among hundreds of
/// thousands, and the kernel cannot filter them: it lists all, but only these are decoded.
pub(super) fn is_default(bytes: &[u8]) -> bool {
    bytes.get(DESTINATION_LENGTH) == Some(&0)
}

/// The offset of the destination's prefix length in `struct rtmsg`.
const DESTINATION_LENGTH: usize = 1;

/// The next hops of a default route.
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

/// Returns the next hops of a foreign default route; `None` for any other route, or one without next hops.
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
