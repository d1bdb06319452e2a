//! The node's own routes that a NIC's table lacks.

use std::net::IpAddr;

use ebbtide_kernel::{datapath::HostNic, netlink::by_gateway::ByGateway};

use super::{Finding, Severity};

/// Reports NICs over which the node reaches networks by a gateway other than those that `routers` returns, the NIC's
/// default ones. Replies that leave by the NIC, and what pods on it send, use the default gateway.
pub(super) fn not_followed(
    nics: &[HostNic],
    routes: &[ByGateway],
    routers: impl Fn(&HostNic) -> Vec<IpAddr>,
) -> Vec<Finding> {
    let findings = nics.iter().filter_map(|nic| {
        let gateways = routers(nic);
        let mut others = routes
            .iter()
            .filter(|route| route.ifindex == nic.ifindex && !gateways.contains(&route.via));
        let first = others.next()?;
        let more = match others.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(Finding {
            severity: Severity::Note,
            what: format!(
                "the node reaches {} via {} over {}{more}: what pods there send, and what their NodePorts answer, goes \
                 to the NIC's own gateway instead",
                first.destination, first.via, nic.name
            ),
            hint: "let that gateway know the route; for what pods send, the pool's `routes` may have it as well"
                .to_owned(),
        })
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_behind_another_router_than_the_nics_is_told_once_for_each_nic() {
        let route = |via: &str, ifindex| ByGateway {
            destination: "203.0.113.0/24".parse().unwrap(),
            via: via.parse().unwrap(),
            ifindex,
        };
        let nic = HostNic {
            name: "ens5".into(),
            ifindex: 2,
            ..HostNic::default()
        };
        for (routes, told) in [
            (vec![], None),
            (vec![route("10.70.16.1", 2)], None),
            (vec![route("10.70.16.254", 9)], None),
            (vec![route("10.70.16.254", 2)], Some("over ens5:")),
            (
                vec![route("10.70.16.254", 2), route("10.70.16.253", 2)],
                Some("over ens5 (and 1 more)"),
            ),
        ] {
            let gateway = |_: &HostNic| vec!["10.70.16.1".parse().unwrap()];
            let found = not_followed(std::slice::from_ref(&nic), &routes, gateway);
            assert_eq!(found.len(), usize::from(told.is_some()), "{found:?}");
            for part in told
                .into_iter()
                .chain(told.map(|_| "203.0.113.0/24 via 10.70.16.254"))
            {
                assert!(found[0].what.contains(part), "{}", found[0]);
            }
        }
    }
}
