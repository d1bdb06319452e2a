//! The host's own routing for pods, as data.
//!
//! In l3 mode the kernel looks up a pod's packet *in the host*, with `oif` set to the master and
//! mark 0 (`ipvlan_process_v4_outbound`, drivers/net/ipvlan/ipvlan_core.c). If no route on the
//! master matches, it takes the far destination to be on the link and asks for it by ARP, which
//! nobody answers. So each NIC with pods gets a table with its networks and its gateway, and one
//! rule that sends lookups for that NIC there. A rule by source address would do for this, but it
//! would also catch what comes back from pods through their veth.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Nic;
use crate::{
    netlink::model::{Family, NamespacePlan, Route, Rule, Selector, Sysctl},
    settings::Settings,
};

/// The network a pool's addresses are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolNetwork {
    /// The subnet of the VPC (or of the LAN).
    pub subnet: IpNet,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
}

/// The routing table of a NIC.
#[must_use]
pub fn nic_table(settings: &Settings, ifindex: u32) -> u32 {
    settings.host_table + ifindex
}

/// What the host needs so that pods with addresses from `pools` can use `nic`.
#[must_use]
pub fn nic_plan(nic: &Nic, pools: &[PoolNetwork], settings: &Settings) -> NamespacePlan {
    let table = nic_table(settings, nic.ifindex);
    let mut routes: Vec<Route> = Vec::new();
    let route = |destination, via| Route {
        link: nic.name.clone(),
        destination,
        via,
        source: None,
        table,
    };
    let connected = nic.addresses.iter().map(IpNet::trunc);
    for subnet in connected.chain(pools.iter().map(|pool| pool.subnet.trunc())) {
        let own = route(subnet, None);
        // A /32 or /128 is how clouds configure NICs whose network is all behind the gateway.
        if subnet.prefix_len() < subnet.max_prefix_len() && !routes.contains(&own) {
            routes.push(own);
        }
    }
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let gateway = pools
            .iter()
            .filter(|pool| Family::of_net(&pool.subnet) == family)
            .find_map(|pool| pool.gateway);
        if let Some(gateway) = gateway {
            routes.push(route(family.everything(), Some(gateway)));
        }
        // In this order: IPv6 takes `oif` for a wish and would find another pod of this node in
        // the pods' table, and so by its veth (net/ipv6/route.c,
        // `ip6_route_output_flags`: RT6_LOOKUP_F_IFACE is for link-local destinations).
        rules.push(Rule {
            family,
            priority: settings.rule_priority,
            selector: Selector::OutLink(nic.name.clone()),
            table,
        });
        rules.push(pods_rule(family, settings));
    }
    NamespacePlan {
        routes,
        rules,
        ..NamespacePlan::default()
    }
}

/// The rules that lead to this node's pods, of both families.
#[must_use]
pub fn pods_rules(settings: &Settings) -> [Rule; 2] {
    Family::BOTH.map(|family| pods_rule(family, settings))
}

fn pods_rule(family: Family, settings: &Settings) -> Rule {
    Rule {
        family,
        priority: settings.rule_priority + 1,
        selector: Selector::All,
        table: settings.host_table,
    }
}

/// The settings with which a node forwards between its NICs and its pods' veths. Turning IPv6
/// forwarding on makes the kernel ignore router advertisements unless `accept_ra` is 2, and a
/// cloud's IPv6 default route often comes from them: the NICs that listened go on listening.
#[must_use]
pub fn forwarding(listening_for_ra: &[String]) -> Vec<Sysctl> {
    let setting = |path: String, value: &str| Sysctl {
        path,
        value: value.to_owned(),
    };
    let mut settings = vec![setting("net/ipv4/ip_forward".into(), "1")];
    for nic in listening_for_ra {
        settings.push(setting(format!("net/ipv6/conf/{nic}/accept_ra"), "2"));
    }
    settings.push(setting("net/ipv6/conf/all/forwarding".into(), "1"));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ens5() -> Nic {
        Nic {
            name: "ens5".into(),
            ifindex: 3,
            mac: None,
            mtu: 9001,
            up: true,
            kind: None,
            addresses: vec!["172.31.22.228/20".parse().unwrap()],
        }
    }

    fn texts<T: ToString>(objects: &[T]) -> Vec<String> {
        objects.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_nic_with_pods_has_its_networks_its_gateway_and_one_rule_a_family() {
        let pool = PoolNetwork {
            subnet: "172.31.16.0/20".parse().unwrap(),
            gateway: Some("172.31.16.1".parse().unwrap()),
        };
        let plan = nic_plan(&ens5(), &[pool], &Settings::default());
        assert_eq!(
            texts(&plan.routes),
            [
                "route 172.31.16.0/20 dev ens5 table 7703",
                "route default via 172.31.16.1 dev ens5 table 7703"
            ]
        );
        assert_eq!(
            texts(&plan.rules),
            [
                "IPv4 rule 1000: oif ens5 lookup 7703",
                "IPv4 rule 1001: from all lookup 7700",
                "IPv6 rule 1000: oif ens5 lookup 7703",
                "IPv6 rule 1001: from all lookup 7700",
            ]
        );
    }

    #[test]
    fn a_pool_without_a_gateway_gets_no_default_route() {
        let pool = PoolNetwork {
            subnet: "172.31.16.0/20".parse().unwrap(),
            gateway: None,
        };
        let plan = nic_plan(&ens5(), &[pool], &Settings::default());
        assert_eq!(
            texts(&plan.routes),
            ["route 172.31.16.0/20 dev ens5 table 7703"]
        );
    }

    #[test]
    fn nics_that_listen_for_router_advertisements_go_on_listening() {
        assert_eq!(
            texts(&forwarding(&["ens5".into()])),
            [
                "sysctl net/ipv4/ip_forward = 1",
                "sysctl net/ipv6/conf/ens5/accept_ra = 2",
                "sysctl net/ipv6/conf/all/forwarding = 1"
            ]
        );
    }
}
