//! What the node itself has on a NIC: its next hops and its own address.

use std::net::{IpAddr, Ipv4Addr};

use ebbtide_types::Family;
use ipnet::IpNet;

use super::{Nic, plan::NicNetworks};
use crate::netlink::model::{MAIN_TABLE, Route};

/// Returns the next hop of the node's own default route over a NIC, for each family that has one: the main table's
/// before those of other tables.
#[must_use]
pub fn own_defaults(nic: &Nic, routes: &[Route]) -> Vec<(Family, Option<IpAddr>)> {
    let of = |family| {
        let over =
            |route: &&Route| route.link == nic.name && Family::of_net(&route.destination) == family;
        let mut main = routes.iter().filter(|route| route.table == MAIN_TABLE);
        let mut others = routes.iter();
        let found = main.find(over).or_else(|| others.find(over))?;
        Some((family, found.via))
    };
    Family::BOTH.into_iter().filter_map(of).collect()
}

/// Gateways of the main table's default routes over a NIC.
pub(super) fn main_gateways(nic: &Nic, routes: &[Route]) -> Vec<IpAddr> {
    let over = |route: &&Route| route.link == nic.name && route.table == MAIN_TABLE;
    let mains = routes.iter().filter(over);
    // The program supports none of another family.
    let of_family = |route: &&Route| {
        let family = Family::of_net(&route.destination);
        route.via.is_some_and(|via| Family::of(via) == family)
    };
    mains
        .filter(of_family)
        .filter_map(|route| route.via)
        .collect()
}

/// The node's IPv4 address on a NIC; of several, one in the gateway's network.
pub(super) fn own_v4(nic: &Nic, behind: &NicNetworks) -> Option<Ipv4Addr> {
    let gateway = behind.default_of(Family::V4).flatten();
    let v4 = |net: &IpNet| match net.addr() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    };
    let is_beside = |net: &&IpNet| gateway.is_some_and(|gateway| net.contains(&gateway));
    let beside = nic.addresses.iter().filter(is_beside).find_map(v4);
    beside.or_else(|| nic.addresses.iter().find_map(v4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_tables_default_route_comes_before_those_of_other_tables() {
        let route = |link: &str, via: Option<&str>, family: Family, table| Route {
            link: link.into(),
            destination: family.everything(),
            via: via.map(|via| via.parse().unwrap()),
            source: None,
            table,
        };
        let routes = [
            route("ens6", Some("10.71.8.1"), Family::V4, 102),
            route("ens5", Some("172.31.16.9"), Family::V4, 102),
            route("ens5", Some("172.31.16.1"), Family::V4, MAIN_TABLE),
            route("ens5", Some("fe80::1"), Family::V6, MAIN_TABLE),
            route("ens7", None, Family::V4, MAIN_TABLE),
        ];
        for (link, expected) in [
            ("ens5", vec![Some("172.31.16.1"), Some("fe80::1")]),
            ("ens6", vec![Some("10.71.8.1")]),
            ("ens7", vec![None]),
            ("ens8", vec![]),
        ] {
            let found = own_defaults(&Nic::named(link, 3), &routes);
            let found: Vec<_> = found.iter().map(|(_, via)| *via).collect();
            let expected: Vec<Option<IpAddr>> = expected
                .iter()
                .map(|via| via.map(|via| via.parse().unwrap()))
                .collect();
            assert_eq!(found, expected, "{link}");
        }
    }
}
