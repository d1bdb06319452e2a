//! Which of the clouds' metadata services an interface must not reach.

use std::net::{IpAddr, Ipv6Addr};

use ebbtide_layout::{METADATA, POD_METADATA, POD_METADATA_SHIFT, POD_NO_METADATA};
use ebbtide_types::settings::PodMetadata;

use super::model::VETH;
use crate::netlink::model::Route;

/// Returns the flags of the programs for an interface that has these routes.
pub(super) fn flags(metadata: PodMetadata, routes: &[Route]) -> u16 {
    match metadata {
        PodMetadata::Allow => 0,
        PodMetadata::Drop => POD_NO_METADATA | POD_METADATA,
        PodMetadata::ViaHost => (POD_METADATA_SHIFT..)
            .zip(METADATA)
            .filter(|(_, address)| is_via_host(Ipv6Addr::from(*address).to_canonical(), routes))
            .fold(0, |flags, (bit, _)| flags | 1 << bit),
    }
}

/// Returns what these flags do, for people.
pub(super) fn text(flags: u16) -> Option<&'static str> {
    match (flags & POD_NO_METADATA, flags & POD_METADATA) {
        (0, 0) => None,
        (0, _) => Some("through the host only"),
        _ => Some("dropped"),
    }
}

/// Whether the routes to an address lead to the node.
fn is_via_host(address: IpAddr, routes: &[Route]) -> bool {
    let leads = |route: &&Route| route.destination.contains(&address);
    let length = |route: &Route| route.destination.prefix_len();
    let longest = routes.iter().filter(leads).map(length).max();
    let mut best = routes
        .iter()
        .filter(leads)
        .filter(|route| Some(length(route)) == longest)
        .peekable();
    best.peek().is_some() && best.all(|route| route.link == VETH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(all: &[(&str, &str)]) -> Vec<Route> {
        let route = |&(destination, link): &(&str, &str)| Route {
            link: link.to_owned(),
            destination: destination.parse().unwrap(),
            via: None,
            source: None,
            table: 254,
        };
        all.iter().map(route).collect()
    }

    fn bits(services: &[u32]) -> u16 {
        let bits = services.iter().map(|service| 1 << service);
        bits.fold(0, |flags, bit: u16| flags | bit << POD_METADATA_SHIFT)
    }

    #[test]
    fn via_the_host_is_what_the_routes_lead_there() {
        let default = ("0.0.0.0/0", "eth0");
        let link_local = ("169.254.0.0/16", VETH);
        for (there, kept) in [
            (&[][..], &[][..]),
            (&[default], &[]),
            (&[default, link_local], &[0, 1]),
            (&[link_local, ("169.254.169.254/32", "eth0")], &[1]),
            (&[link_local, ("169.254.0.0/16", "eth0")], &[]),
            (&[default, ("100.100.100.200/32", VETH)], &[2]),
            (&[default, ("168.63.129.16/32", VETH)], &[3]),
            (&[("::/0", "eth0"), ("fd00:ec2::254/128", VETH)], &[4]),
            (&[("fd00::/8", VETH)], &[4, 5, 6, 7]),
            // The pair has the default route, as where the NIC has no gateway.
            (&[("0.0.0.0/0", VETH)], &[0, 1, 2, 3]),
        ] {
            let routes = routes(there);
            let found = flags(PodMetadata::ViaHost, &routes);
            assert_eq!(found, bits(kept), "{there:?}");
            assert_eq!(flags(PodMetadata::Allow, &routes), 0);
            let all = POD_NO_METADATA | POD_METADATA;
            assert_eq!(flags(PodMetadata::Drop, &routes), all);
        }
    }
}
