//! Plans a NIC's own routing for pods, as data.
//!
//! In l3 mode the kernel looks up a pod's packet *in the host*, with `oif` set to the master and mark 0
//! (`ipvlan_process_v4_outbound`, drivers/net/ipvlan/ipvlan_core.c). If no route on the master matches, it assumes the
//! far destination on the link and sends an ARP request, which nobody answers. So each NIC gets a table with its
//! networks and its gateway, selected by rules with the pods' source and `oif`. A rule by source alone would also match
//! what comes back from pods through their veth; one by `oif` alone also what the node itself, or a foreign tunnel,
//! sends by that NIC.

use std::net::{IpAddr, Ipv4Addr};

use ebbtide_layout::reply_bit;
use ebbtide_types::{
    Family,
    digest::fnv,
    settings::{POD_TABLES, POD_TABLES_OFFSET, Settings},
};
use ipnet::IpNet;

use super::{Nic, NodeFacts, values::Values};
use crate::netlink::{
    foreign::ForeignRule,
    model::{Action, NamespacePlan, Route, Rule, Selector, Sysctl, host_net},
};

/// The order of Ebbtide's rules in the host, counted from their base priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A firewall's reverse path lookup for a pod's reply: it finds the pod's link.
    Asked = -1,
    /// Packets that must leave by a given NIC.
    Replies,
    /// Excludes the node's own addresses from the next rules, though they are in a pool's subnet.
    Node,
    /// Pods with routes of their own.
    Pod,
    /// A pool's pods. In this order before the next: IPv6 takes `oif` for a hint, and would find another pod of this
    /// node in the pods' table, behind its veth (net/ipv6/route.c, `ip6_route_output_flags`: `RT6_LOOKUP_F_IFACE` is
    /// for link-local destinations).
    Pool,
    /// Routes to this node's pods.
    ToPods,
    /// Exceptions from the marks of strict filtering.
    NotStrict,
    /// Strict reverse path filtering.
    StrictRpFilter,
    /// The end of the block, where foreign traffic continues.
    End,
}

/// Number of priorities that Ebbtide's rules occupy.
pub const PRIORITIES: u32 = (Step::End as i32 - Step::Asked as i32) as u32 + 1;

/// What Ebbtide's rules in the host are built from: the settings, their first priority, the foreign rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The administrator's settings.
    pub settings: &'a Settings,
    /// The priority of the rule for replies, the first of the block.
    pub base: u32,
    /// Foreign rules.
    pub foreign: &'a [ForeignRule],
}

impl<'a> Rules<'a> {
    /// Returns the possible values of NICs' marks.
    #[must_use]
    pub const fn values(&self) -> Values<'a> {
        Values {
            field: self.settings.nic_marks,
            reply: reply_bit(self.settings.nic_marks),
            foreign: self.foreign,
        }
    }

    pub(super) const fn at(
        &self,
        step: Step,
        family: Family,
        selector: Selector,
        action: Action,
    ) -> Rule {
        Rule {
            family,
            priority: self.base.saturating_add_signed(step as i32),
            selector,
            action,
        }
    }

    pub(super) const fn go_on(&self) -> Action {
        Action::Goto(self.base + Step::End as u32)
    }
}

/// The network of a pool's addresses, and its routes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolNetwork {
    /// The subnet of the VPC (or of the LAN).
    pub subnet: IpNet,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Further routes, each with a next hop of its own.
    pub routes: Vec<(IpNet, IpAddr)>,
}

/// The networks behind a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicNetworks {
    /// Networks of pools that pods have addresses from, one per subnet.
    pub pools: Vec<PoolNetwork>,
    /// Address of a pod there.
    pub a_pod: Option<Ipv4Addr>,
    /// Pods whose routes differ from their subnet's.
    pub pods: Vec<(IpAddr, PoolNetwork)>,
    /// Next hops of the node's own default routes over this NIC, else those of a pool.
    pub defaults: Vec<(Family, Option<IpAddr>)>,
}

impl NicNetworks {
    /// Returns the next hop of the node's default route over the NIC.
    #[must_use]
    pub fn default_of(&self, family: Family) -> Option<Option<IpAddr>> {
        let mut defaults = self.defaults.iter();
        defaults
            .find(|(own, _)| *own == family)
            .map(|(_, via)| *via)
    }

    /// Whether these pods use the same routes as the node itself.
    fn is_the_nodes(&self, network: &PoolNetwork) -> bool {
        let own = self.default_of(Family::of_net(&network.subnet)).flatten();
        network.routes.is_empty() && (network.gateway.is_none() || network.gateway == own)
    }
}

/// Returns the routing table of a NIC. The settings ensure that it is none of the kernel's, whatever the index.
#[must_use]
pub fn nic_table(settings: &Settings, ifindex: u32) -> u32 {
    settings.host_table + ifindex
}

/// The table of pods whose routes over the NIC differ from the node's: far from the tables of NICs, and independent of
/// other such tables.
fn pod_table(settings: &Settings, ifindex: u32, network: &PoolNetwork) -> u32 {
    let digest = fnv(format!("{:?} {:?}", network.gateway, network.routes).bytes());
    let number = (digest >> 40) as u32 % POD_TABLES + 1;
    nic_table(settings, ifindex) + number * POD_TABLES_OFFSET
}

/// Plans the host's routing for one NIC: for its pods, and so that replies leave by it.
#[must_use]
pub fn nic_plan(nic: &Nic, behind: &NicNetworks, rules: Rules<'_>) -> NamespacePlan {
    let settings = rules.settings;
    let own_table = nic_table(settings, nic.ifindex);
    let mut plan = NamespacePlan::default();
    let subnets = connected(nic, behind);
    for family in Family::BOTH.into_iter().filter(|family| nic.has(*family)) {
        let via = behind.default_of(family);
        let routes = table(nic, own_table, &subnets, family, via, &[]);
        plan.routes.extend(routes);
    }
    let mut lead = |step, from: IpNet, network: &PoolNetwork| {
        let family = Family::of_net(&network.subnet);
        if !nic.has(family) {
            return;
        }
        let mut to = own_table;
        if !behind.is_the_nodes(network) {
            to = pod_table(settings, nic.ifindex, network);
            let via = network.gateway.map(Some);
            for route in table(nic, to, &subnets, family, via, &network.routes) {
                if !plan.routes.contains(&route) {
                    plan.routes.push(route);
                }
            }
        }
        let link = nic.name.clone();
        let selector = Selector::OutLink { from, link };
        let rule = rules.at(step, family, selector, Action::Table(to));
        plan.rules.push(rule);
    };
    for network in &behind.pools {
        lead(Step::Pool, network.subnet.trunc(), network);
    }
    for (pod, network) in &behind.pods {
        lead(Step::Pod, host_net(*pod), network);
    }
    for own in nic.addresses.iter().map(IpNet::addr) {
        if behind.pools.iter().any(|pool| pool.subnet.contains(&own)) {
            let selector = Selector::OutLink {
                from: host_net(own),
                link: nic.name.clone(),
            };
            let rule = rules.at(Step::Node, Family::of(own), selector, rules.go_on());
            plan.rules.push(rule);
        }
    }
    plan
}

/// The networks on the link. Clouds configure a /32 or /128 on a NIC whose network is all behind the gateway.
fn connected(nic: &Nic, behind: &NicNetworks) -> Vec<IpNet> {
    let pools = behind
        .pools
        .iter()
        .chain(behind.pods.iter().map(|(_, network)| network));
    let mut all: Vec<IpNet> = Vec::new();
    let own = nic.addresses.iter().copied();
    for subnet in own.chain(pools.map(|pool| pool.subnet)) {
        let subnet = subnet.trunc();
        if subnet.prefix_len() < subnet.max_prefix_len() && !all.contains(&subnet) {
            all.push(subnet);
        }
    }
    all
}

fn table(
    nic: &Nic,
    table: u32,
    subnets: &[IpNet],
    family: Family,
    default: Option<Option<IpAddr>>,
    further: &[(IpNet, IpAddr)],
) -> Vec<Route> {
    let route = |destination, via| Route {
        link: nic.name.clone(),
        destination,
        via,
        source: None,
        table,
    };
    let subnets = subnets
        .iter()
        .filter(|subnet| Family::of_net(subnet) == family);
    let mut routes: Vec<Route> = subnets.map(|subnet| route(*subnet, None)).collect();
    routes.extend(default.map(|via| route(family.everything(), via)));
    routes.extend(
        further
            .iter()
            .map(|(to, via)| route(to.trunc(), Some(*via))),
    );
    routes
}

/// Returns the rules that look up this node's pods, for the families that the kernel has.
#[must_use]
pub fn pods_rules(facts: &NodeFacts, rules: Rules<'_>) -> Vec<Rule> {
    let action = Action::Table(rules.settings.host_table);
    let families = Family::BOTH.into_iter().filter(|family| facts.has(*family));
    families
        .map(|family| rules.at(Step::ToPods, family, Selector::All, action))
        .collect()
}

/// The settings for forwarding between a node's NICs and its pods' veths. Turning IPv6 forwarding on makes the kernel
/// ignore router advertisements unless `accept_ra` is 2, and a cloud's IPv6 default route often comes from them: the
/// NICs that listened keep listening.
#[must_use]
pub fn forwarding(listening_for_ra: &[String], has_ipv6: bool) -> Vec<Sysctl> {
    let setting = |path: String, value: &str| Sysctl {
        path,
        value: value.to_owned(),
    };
    let mut settings = vec![setting("net/ipv4/ip_forward".into(), "1")];
    if has_ipv6 {
        for nic in listening_for_ra {
            settings.push(setting(format!("net/ipv6/conf/{nic}/accept_ra"), "2"));
        }
        settings.push(setting("net/ipv6/conf/all/forwarding".into(), "1"));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ens5() -> Nic {
        Nic {
            mtu: 9001,
            addresses: vec!["172.31.22.228/20".parse().unwrap()],
            ..Nic::named("ens5", 3)
        }
    }

    fn network(subnet: &str, gateway: Option<&str>, routes: &[(&str, &str)]) -> PoolNetwork {
        let routes = routes.iter();
        PoolNetwork {
            subnet: subnet.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            routes: routes
                .map(|(to, via)| (to.parse().unwrap(), via.parse().unwrap()))
                .collect(),
        }
    }

    fn node_s(via: &str) -> Vec<(Family, Option<IpAddr>)> {
        let via: IpAddr = via.parse().unwrap();
        vec![(Family::of(via), Some(via))]
    }

    /// As `ip` would show it, with small numbers in place of far tables.
    fn texts(behind: &NicNetworks) -> Vec<String> {
        let settings = Settings::default();
        let plan = nic_plan(
            &ens5(),
            behind,
            Rules {
                settings: &settings,
                base: 1000,
                foreign: &[],
            },
        );
        let mut far: Vec<u32> = Vec::new();
        for rule in &plan.rules {
            if let Action::Table(table) = rule.action
                && table > 100_000
                && !far.contains(&table)
            {
                far.push(table);
            }
        }
        let routes = plan.routes.iter().map(ToString::to_string);
        let all = routes.chain(plan.rules.iter().map(ToString::to_string));
        all.map(|text| {
            far.iter().enumerate().fold(text, |text, (number, table)| {
                text.replace(&table.to_string(), &format!("far{number}"))
            })
        })
        .collect()
    }

    #[test]
    fn pods_go_by_the_nics_table_and_the_node_itself_does_not() {
        let behind = NicNetworks {
            pools: vec![network("172.31.16.0/20", Some("172.31.16.1"), &[])],
            defaults: node_s("172.31.16.1"),
            ..NicNetworks::default()
        };
        assert_eq!(
            texts(&behind),
            [
                "route 172.31.16.0/20 dev ens5 table 7703",
                "route default via 172.31.16.1 dev ens5 table 7703",
                "IPv4 rule 1003: from 172.31.16.0/20 oif ens5 lookup 7703",
                "IPv4 rule 1001: from 172.31.22.228/32 oif ens5 goto 1007",
            ]
        );
    }

    #[test]
    fn a_pool_with_a_gateway_of_its_own_does_not_change_the_nodes_way() {
        let behind = NicNetworks {
            pools: vec![
                network("172.31.16.0/20", Some("172.31.16.253"), &[]),
                network(
                    "10.9.0.0/24",
                    Some("10.9.0.1"),
                    &[("172.20.0.0/14", "10.9.0.254")],
                ),
            ],
            defaults: node_s("172.31.16.1"),
            ..NicNetworks::default()
        };
        assert_eq!(
            texts(&behind),
            [
                "route 172.31.16.0/20 dev ens5 table 7703",
                "route 10.9.0.0/24 dev ens5 table 7703",
                "route default via 172.31.16.1 dev ens5 table 7703",
                "route 172.31.16.0/20 dev ens5 table far0",
                "route 10.9.0.0/24 dev ens5 table far0",
                "route default via 172.31.16.253 dev ens5 table far0",
                "route 172.31.16.0/20 dev ens5 table far1",
                "route 10.9.0.0/24 dev ens5 table far1",
                "route default via 10.9.0.1 dev ens5 table far1",
                "route 172.20.0.0/14 via 10.9.0.254 dev ens5 table far1",
                "IPv4 rule 1003: from 172.31.16.0/20 oif ens5 lookup far0",
                "IPv4 rule 1003: from 10.9.0.0/24 oif ens5 lookup far1",
                "IPv4 rule 1001: from 172.31.22.228/32 oif ens5 goto 1007",
            ]
        );
    }

    #[test]
    fn a_pod_that_names_its_own_routes_has_a_rule_of_its_own() {
        let pool = network("172.31.16.0/20", Some("172.31.16.1"), &[]);
        let own = network(
            "172.31.16.0/20",
            Some("172.31.16.1"),
            &[("10.0.0.0/8", "172.31.16.9")],
        );
        let behind = NicNetworks {
            pools: vec![pool],
            pods: vec![("172.31.17.4".parse().unwrap(), own)],
            defaults: node_s("172.31.16.1"),
            ..NicNetworks::default()
        };
        let texts = texts(&behind);
        for line in [
            "route 10.0.0.0/8 via 172.31.16.9 dev ens5 table far0",
            "IPv4 rule 1002: from 172.31.17.4/32 oif ens5 lookup far0",
        ] {
            assert!(
                texts.iter().any(|text| text == line),
                "{line} in {texts:#?}"
            );
        }
    }

    #[test]
    fn a_nic_without_a_gateway_gets_no_default_route_and_one_without_ipv6_nothing_of_it() {
        let v6 = network("fd00:16::/64", Some("fd00:16::1"), &[]);
        let behind = NicNetworks {
            pools: vec![network("172.31.16.0/20", None, &[]), v6],
            ..NicNetworks::default()
        };
        let settings = Settings::default();
        let off = Nic {
            ipv6: false,
            ..ens5()
        };
        let plan = nic_plan(
            &off,
            &behind,
            Rules {
                settings: &settings,
                base: 1000,
                foreign: &[],
            },
        );
        let routes: Vec<String> = plan.routes.iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["route 172.31.16.0/20 dev ens5 table 7703"]);
        assert!(plan.rules.iter().all(|rule| rule.family == Family::V4));
    }

    #[test]
    fn nics_that_listen_for_router_advertisements_go_on_listening() {
        let texts = |has_ipv6| {
            let settings = forwarding(&["ens5".into()], has_ipv6);
            settings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            texts(true),
            [
                "sysctl net/ipv4/ip_forward = 1",
                "sysctl net/ipv6/conf/ens5/accept_ra = 2",
                "sysctl net/ipv6/conf/all/forwarding = 1"
            ]
        );
        assert_eq!(texts(false), ["sysctl net/ipv4/ip_forward = 1"]);
    }
}
