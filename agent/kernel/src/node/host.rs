//! Plans the host's side of "replies leave by the NIC their request came in on", as data.
//!
//! | priority | rule | for |
//! |---|---|---|
//! | base - 1 | `fwmark REPLY iif lo lookup pods`     | a firewall's reverse path lookup for packets from pods |
//! | base     | `fwmark NIC+REPLY lookup T`          | what must leave by the NIC: pods' replies, and what is redirected to its right NIC |
//! | base     | `from NODE fwmark NIC iif lo lookup T` | a firewall's reverse path lookup |
//! | base     | `from NODE oif NIC lookup T`, IPv6    | the same, by a firewall that ignores marks |
//! | base + 1 | `from NODE oif NIC goto base + 7`    | the node's own, and foreign tunnels over the NIC: as without Ebbtide |
//! | base + 2 | `from POD oif NIC lookup W`          | pods with routes of their own |
//! | base + 3 | `from POOL oif NIC lookup T or W`    | pods, in l3 |
//! | base + 4 | `from all lookup pods`               | routes to this node's pods |
//! | base + 5 | `fwmark NIC iif NIC goto base + 7`, `fwmark NIC iif lo goto base + 7` | strict rp_filter: packets themselves, and the node's own |
//! | base + 6 | `fwmark NIC lookup T`                | strict rp_filter on requests for Services |
//! | base + 6 | `fwmark REDIRECTED lookup T(redirect_device)`     | rp_filter on what is redirected past ipvlan to a pod |
//! | base + 7 | `nop`                                | where foreign traffic continues |
//!
//! **Which packets have a mark.** NIC+REPLY is set in two places: at the host's end of a pod's veth, on replies to what
//! came in by a NIC, and at a NIC's egress, on what is redirected from there to another. Both leave by that NIC.
//! Nothing that comes in from outside has this mark, and no foreign packet. REDIRECTED, all bits, is set on answers for
//! a pod that the host has to translate first; they are delivered to the pod.
//!
//! NIC alone is set only where a NIC filters reverse paths strictly (the last rules exist only then). Strict filtering
//! looks up the reverse path with the packet's mark where `src_valid_mark` is on, and with `iif` set to the link by
//! which the packet is about to *leave*, or to `lo` if it is for this node (`__fib_validate_source`,
//! net/ipv4/fib_frontend.c: `flowi4_iif = oif ? : LOOPBACK_IFINDEX`, and `__mkroute_input` passes the outgoing one). So
//! `iif NIC` with the mark of the same NIC is the packet itself, and is routed as without Ebbtide.
//!
//! A firewall may filter as well, before translation: nft's `fib saddr . mark . iif` (nft_fib4_eval, nft_fib6_eval) and
//! iptables' `-m rpfilter --validmark` look up the reverse path from the requested address, with the packet's mark and
//! `iif lo`. iptables without `--validmark` looks up, for IPv6, with only that address and `oif` set to the NIC, like a
//! socket of the node that is bound to both. So where that match is loaded, such a socket is routed by the NIC's own
//! table, except on the NIC with the node's default route. Otherwise it would leave by the NIC with the default route,
//! since IPv6 takes `oif` for a hint, and the egress program there would redirect it to this one.

use std::net::{IpAddr, Ipv4Addr};

use ebbtide_types::Family;
use ipnet::IpNet;

use super::{
    Known, Nic, NodeFacts, Role, Strict, nic_plan, nic_table,
    plan::{Behind, Rules, Step},
    pods_rules, take,
};
use crate::{
    datapath::{HOST_PROGRAMS, HostNic},
    netlink::model::{
        Action, Direction, Filter, MAIN_TABLE, NamespacePlan, Route, Rule, Selector, Sysctl,
        host_net,
    },
};

/// The redirect device: a link without a network, created for its ingress. A packet that is redirected there is in the
/// host's stack, past the NIC's ipvlan handler. The pod's veth would do as well but for reverse path filtering (no far
/// address is behind it) and ICMP redirects (in and out by one link).
pub const REDIRECT_DEVICE: &str = "ebbtide0";

/// The desired state of the node's NICs. Empty without a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// The NICs, for the programs.
    pub nics: Vec<HostNic>,
    /// Settings, routes, rules and programs.
    pub plan: NamespacePlan,
}

impl HostPlan {
    /// Returns the gateways of the routing table of the NIC with this index.
    #[must_use]
    pub fn ways_out(
        &self,
        ifindex: u32,
        settings: &ebbtide_types::settings::Settings,
    ) -> Vec<IpAddr> {
        let table = nic_table(settings, ifindex);
        let of_nic = self.plan.routes.iter().filter(|route| route.table == table);
        of_nic.filter_map(|route| route.via).collect()
    }
}

/// Returns the links that are uplinks.
pub fn nics<'a>(
    facts: &'a NodeFacts,
    known: &'a Known,
    rules: Rules<'a>,
) -> impl Iterator<Item = &'a Nic> {
    let names = &rules.settings.nics;
    let nics = facts.nics.iter();
    nics.filter(move |nic| take(nic, facts, known, names).role == Role::Nic)
}

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
fn main_gateways(nic: &Nic, routes: &[Route]) -> Vec<IpAddr> {
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
fn own_v4(nic: &Nic, behind: &Behind) -> Option<Ipv4Addr> {
    let gateway = behind.default_of(Family::V4).flatten();
    let v4 = |net: &IpNet| match net.addr() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    };
    let is_beside = |net: &&IpNet| gateway.is_some_and(|gateway| net.contains(&gateway));
    let beside = nic.addresses.iter().filter(is_beside).find_map(v4);
    beside.or_else(|| nic.addresses.iter().find_map(v4))
}

/// Returns the programs on the host's end of a pod's veth; `only_from` guards what comes from the pod.
#[must_use]
pub fn veth_filters(link: &str, only_from: Option<u16>) -> Vec<Filter> {
    let filters = filters(link, "host_veth_")
        .into_iter()
        .map(|filter| Filter {
            only_from: only_from.filter(|_| filter.direction == Direction::Ingress),
            ..filter
        });
    filters.collect()
}

fn filters(link: &str, prefix: &str) -> Vec<Filter> {
    HOST_PROGRAMS
        .iter()
        .filter(|program| program.name.starts_with(prefix))
        .map(|program| Filter {
            link: link.to_owned(),
            direction: program.direction,
            program: program.name.to_owned(),
            only_from: None,
        })
        .collect()
}

fn sysctl(link: &str, name: &str, value: &str) -> Sysctl {
    Sysctl {
        path: format!("net/ipv4/conf/{link}/{name}"),
        value: value.to_owned(),
    }
}

/// Plans the node's NICs. `known` decides which links are NICs, `behind` returns the networks behind one, `known_marks`
/// holds their current marks by interface index, `redirect_device` is the index of the link [`REDIRECT_DEVICE`], if it
/// could be created, and `strict` returns who filters reverse paths on a NIC.
#[must_use]
pub fn host_plan(
    facts: &NodeFacts,
    known: &Known,
    behind: impl Fn(&Nic) -> Behind,
    known_marks: &[(u32, u32)],
    redirect_device: Option<u32>,
    strict: impl Fn(&str) -> Strict,
    rules: Rules<'_>,
) -> HostPlan {
    let settings = rules.settings;
    let mask = settings.nic_marks;
    let reply = rules.values().reply;
    let strict = |nic: &Nic| {
        let defaults = facts.defaults.iter();
        let own = defaults.filter(|route| route.link == nic.name && route.table == MAIN_TABLE);
        let families: Vec<Family> = own
            .map(|route| Family::of_net(&route.destination))
            .collect();
        strict(&nic.name).but_for(&families)
    };
    let uplinks: Vec<(&Nic, Strict)> = nics(facts, known, rules)
        .map(|nic| (nic, strict(nic)))
        .collect();
    let indices: Vec<u32> = uplinks.iter().map(|(nic, _)| nic.ifindex).collect();
    let marks = rules.values().of(&indices, known_marks);
    let families = || Family::BOTH.into_iter().filter(|family| facts.has(*family));
    let mut plan = NamespacePlan::default();
    let mut nics = Vec::new();
    let mut has_end = false;
    plan.rules.extend(pods_rules(facts, rules));
    for family in families() {
        let mut uplinks = uplinks.iter();
        let may = |(nic, strict): &(&Nic, Strict)| nic.has(family) && strict.firewall.is_in(family);
        if reply != 0 && uplinks.any(may) {
            let (mark, mask) = (reply, reply);
            let selector = Selector::LocalMark { mark, mask };
            let pods = Action::Table(settings.host_table);
            plan.rules
                .push(rules.at(Step::Asked, family, selector, pods));
        }
    }
    if let Some(redirect_device) = redirect_device {
        let table = nic_table(settings, redirect_device);
        plan.sysctls
            .push(sysctl(REDIRECT_DEVICE, "src_valid_mark", "1"));
        let is_filtered = |family: &Family| {
            let mut uplinks = uplinks.iter();
            *family == Family::V4
                || uplinks.any(|(nic, strict)| nic.has(*family) && strict.is_in(*family))
        };
        for family in families().filter(is_filtered) {
            if family == Family::V6 {
                // With IPv6 off for all links but a NIC, it would take no route (`fib6_nh_init`, net/ipv6/route.c).
                plan.sysctls.push(Sysctl {
                    path: format!("net/ipv6/conf/{REDIRECT_DEVICE}/disable_ipv6"),
                    value: "0".to_owned(),
                });
            }
            plan.routes.push(Route {
                link: REDIRECT_DEVICE.to_owned(),
                destination: family.everything(),
                via: None,
                source: None,
                table,
            });
            let redirected = Selector::Mark { mark: mask, mask };
            let lead = Action::Table(table);
            plan.rules
                .push(rules.at(Step::Strict, family, redirected, lead));
            let mut uplinks = uplinks.iter();
            let without =
                uplinks.any(|(nic, strict)| nic.has(family) && strict.firewall.without_marks);
            if family == Family::V6 && without {
                let from = family.everything();
                let link = REDIRECT_DEVICE.to_owned();
                let asked = Selector::OutLink { from, link };
                plan.rules.push(rules.at(Step::Strict, family, asked, lead));
            }
        }
    }
    for ((nic, strict), mark) in uplinks.into_iter().zip(marks) {
        let behind = behind(nic);
        let filtered = match mark {
            0 => Strict::default(),
            _ => strict,
        };
        let strict_in: Vec<Family> = families()
            .filter(|family| nic.has(*family) && filtered.is_in(*family))
            .collect();
        nics.push(HostNic {
            name: nic.name.clone(),
            ifindex: nic.ifindex,
            mark,
            strict: strict_in.clone(),
            asks_as: own_v4(nic, &behind).or(behind.a_pod),
            gateways: main_gateways(nic, &facts.defaults),
            addresses: nic
                .addresses
                .iter()
                .map(|net| {
                    let leads = behind.default_of(Family::of_net(net)).is_some();
                    (net.addr(), leads && mark != 0)
                })
                .collect(),
        });
        plan.filters.extend(filters(&nic.name, "host_nic_"));
        let own = nic_plan(nic, &behind, rules);
        has_end |= !own.rules.is_empty();
        plan.routes.extend(own.routes);
        plan.rules.extend(own.rules);
        if mark == 0 {
            continue;
        }
        let to_own = Action::Table(nic_table(settings, nic.ifindex));
        for family in families().filter(|family| nic.has(*family)) {
            let mark = mark | reply;
            let selector = Selector::Mark { mark, mask };
            let replies = rules.at(Step::Replies, family, selector, to_own);
            plan.rules.push(replies);
        }
        if filtered.kernel {
            plan.sysctls.push(sysctl(&nic.name, "src_valid_mark", "1"));
        }
        for family in strict_in {
            has_end = true;
            let link = nic.name.clone();
            let lookups = [
                (
                    Step::NotStrict,
                    Selector::InLinkMark { link, mark, mask },
                    rules.go_on(),
                ),
                (
                    Step::NotStrict,
                    Selector::LocalMark { mark, mask },
                    rules.go_on(),
                ),
                (Step::Strict, Selector::Mark { mark, mask }, to_own),
            ];
            let mut lookups: Vec<Rule> = lookups
                .map(|(step, selector, action)| rules.at(step, family, selector, action))
                .into();
            // The kernel's own filter drops what is for the node, so the firewall's lookups change nothing.
            let is_last = family == Family::V6 || !filtered.kernel;
            if is_last && filtered.firewall.is_in(family) {
                let without = filtered.firewall.without_marks && family == Family::V6;
                let asked = before_translation(nic, family, (mark, mask), to_own, without, rules);
                lookups.extend(asked);
            }
            for rule in lookups {
                if !plan.rules.contains(&rule) {
                    plan.rules.push(rule);
                }
            }
        }
    }
    if has_end {
        let end = families().map(|family| rules.at(Step::End, family, Selector::All, Action::Nop));
        plan.rules.extend(end);
    }
    HostPlan { nics, plan }
}

/// The rules for a firewall's lookups before translation, which start from the node's own addresses.
fn before_translation(
    nic: &Nic,
    family: Family,
    (mark, mask): (u32, u32),
    to_own: Action,
    without_marks: bool,
    rules: Rules<'_>,
) -> Vec<Rule> {
    let own = nic.addresses.iter().map(IpNet::addr);
    let own = own.filter(|address| Family::of(*address) == family);
    let each = own.map(host_net).flat_map(|from| {
        let link = nic.name.clone();
        let marked = Selector::LocalFromMark { from, mark, mask };
        let marked = rules.at(Step::Replies, family, marked, to_own);
        let asked = Selector::OutLink { from, link };
        let unmarked = rules.at(Step::Replies, family, asked, to_own);
        [Some(marked), without_marks.then_some(unmarked)]
            .into_iter()
            .flatten()
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use ebbtide_types::{Mac, settings::Settings};

    use super::*;
    use crate::node::{PoolNetwork, strict::Firewall};

    fn nic(name: &str, ifindex: u32, address: &str) -> Nic {
        Nic {
            name: name.into(),
            ifindex,
            mac: Some(Mac([2; 6])),
            mtu: 9001,
            up: true,
            kind: None,
            port_of: None,
            below: None,
            ipv6: true,
            addresses: vec![address.parse().unwrap()],
        }
    }

    fn texts<T: ToString>(objects: &[T]) -> Vec<String> {
        objects.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_nodes_own_way_out_is_the_main_tables_before_any_others() {
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
            let found = own_defaults(&nic(link, 3, "10.0.0.1/24"), &routes);
            let found: Vec<_> = found.iter().map(|(_, via)| *via).collect();
            let expected: Vec<Option<IpAddr>> = expected
                .iter()
                .map(|via| via.map(|via| via.parse().unwrap()))
                .collect();
            assert_eq!(found, expected, "{link}");
        }
    }

    fn plan(strict: Strict) -> HostPlan {
        plan_with(strict, true)
    }

    /// As [`plan`], with IPv6 on or off on the NIC.
    fn plan_with(strict: Strict, ipv6: bool) -> HostPlan {
        let facts = NodeFacts {
            nics: vec![
                Nic {
                    addresses: vec![
                        "210.22.16.10/24".parse().unwrap(),
                        "fd22::10/64".parse().unwrap(),
                    ],
                    ipv6,
                    ..nic("ens6", 4, "210.22.16.10/24")
                },
                nic("br-12ab", 9, "172.17.0.1/16"),
            ],
            ..NodeFacts::default()
        };
        let known = Known {
            masters: ["ens6".to_owned()].into(),
            ..Known::default()
        };
        let gateway = "210.22.16.1".parse().unwrap();
        let behind = |_: &Nic| Behind {
            pools: vec![PoolNetwork {
                subnet: "210.22.16.0/24".parse().unwrap(),
                gateway: Some(gateway),
                routes: Vec::new(),
            }],
            defaults: vec![(Family::V4, Some(gateway))],
            ..Behind::default()
        };
        let settings = Settings::default();
        host_plan(
            &facts,
            &known,
            behind,
            &[],
            Some(9),
            |_| strict,
            Rules {
                settings: &settings,
                base: 1000,
                foreign: &[],
            },
        )
    }

    #[test]
    fn a_nic_has_its_table_its_rules_and_its_programs_and_other_links_nothing() {
        let host = plan(Strict::default());
        assert_eq!(
            texts(&host.plan.rules),
            [
                "IPv4 rule 1004: from all lookup 7700",
                "IPv6 rule 1004: from all lookup 7700",
                "IPv4 rule 1006: fwmark 0x6e/0x6e lookup 7709",
                "IPv4 rule 1003: from 210.22.16.0/24 oif ens6 lookup 7704",
                "IPv4 rule 1001: from 210.22.16.10/32 oif ens6 goto 1007",
                "IPv4 rule 1000: fwmark 0x42/0x6e lookup 7704",
                "IPv6 rule 1000: fwmark 0x42/0x6e lookup 7704",
                "IPv4 rule 1007: from all nop",
                "IPv6 rule 1007: from all nop",
            ]
        );
        assert_eq!(
            texts(&host.plan.filters),
            [
                "program host_nic_ingress at ens6 ingress",
                "program host_nic_egress at ens6 egress"
            ]
        );
        assert_eq!(
            host.nics[0].addresses,
            [
                ("210.22.16.10".parse().unwrap(), true),
                ("fd22::10".parse().unwrap(), false)
            ]
        );
        assert_eq!(
            texts(&host.plan.sysctls),
            ["sysctl net/ipv4/conf/ebbtide0/src_valid_mark = 1"],
            "one NIC alone needs no settings"
        );
    }

    #[test]
    fn requests_have_a_mark_and_rules_for_it_where_filtering_is_strict_only() {
        let host = plan(Strict {
            kernel: true,
            ..Strict::default()
        });
        let rules = texts(&host.plan.rules);
        for rule in [
            "IPv4 rule 1005: fwmark 0x2/0x6e iif ens6 goto 1007",
            "IPv4 rule 1005: fwmark 0x2/0x6e iif lo goto 1007",
            "IPv4 rule 1006: fwmark 0x2/0x6e lookup 7704",
        ] {
            assert!(
                rules.iter().any(|found| found == rule),
                "{rule} in {rules:#?}"
            );
        }
        assert_eq!(
            texts(&host.plan.sysctls),
            [
                "sysctl net/ipv4/conf/ebbtide0/src_valid_mark = 1",
                "sysctl net/ipv4/conf/ens6/src_valid_mark = 1"
            ]
        );
        assert_eq!(host.nics[0].strict, [Family::V4]);
        let own = |rule: &&String| rule.contains("210.22.16.10/32 fwmark");
        assert_eq!(
            rules.iter().find(own),
            None,
            "what is the node's own has no such way: it is filtered as without us"
        );
    }

    #[test]
    fn where_the_nodes_default_route_is_a_firewall_is_satisfied_as_without_us() {
        let firewall = Firewall {
            v4: true,
            v6: true,
            without_marks: true,
        };
        let strict = Strict {
            kernel: false,
            firewall,
        };
        assert_eq!(strict.but_for(&[]), strict);
        assert_eq!(strict.but_for(&Family::BOTH), Strict::default());
        let other = strict.but_for(&[Family::V6]);
        assert!(other.is_in(Family::V4) && !other.is_in(Family::V6));
    }

    #[test]
    fn where_a_firewall_may_filter_its_look_ups_find_the_nic() {
        let firewall = Firewall {
            v4: true,
            v6: true,
            without_marks: true,
        };
        let host = plan(Strict {
            kernel: false,
            firewall,
        });
        let rules = texts(&host.plan.rules);
        for rule in [
            "IPv4 rule 999: fwmark 0x40/0x40 iif lo lookup 7700",
            "IPv6 rule 999: fwmark 0x40/0x40 iif lo lookup 7700",
            "IPv4 rule 1000: from 210.22.16.10/32 fwmark 0x2/0x6e iif lo lookup 7704",
            "IPv6 rule 1000: from fd22::10/128 fwmark 0x2/0x6e iif lo lookup 7704",
            "IPv6 rule 1000: from fd22::10/128 oif ens6 lookup 7704",
            "IPv6 rule 1006: from ::/0 oif ebbtide0 lookup 7709",
            "IPv6 rule 1005: fwmark 0x2/0x6e iif ens6 goto 1007",
            "IPv6 rule 1005: fwmark 0x2/0x6e iif lo goto 1007",
            "IPv6 rule 1006: fwmark 0x2/0x6e lookup 7704",
            "IPv6 rule 1006: fwmark 0x6e/0x6e lookup 7709",
        ] {
            let found = rules.iter().filter(|found| *found == rule).count();
            assert_eq!(found, 1, "{rule} in {rules:#?}");
        }
        assert_eq!(
            texts(&host.plan.sysctls),
            [
                "sysctl net/ipv4/conf/ebbtide0/src_valid_mark = 1",
                "sysctl net/ipv6/conf/ebbtide0/disable_ipv6 = 0"
            ],
            "the kernel's own filter is not on"
        );
        assert_eq!(host.nics[0].strict, Family::BOTH);
    }

    #[test]
    fn where_no_nic_has_ipv6_a_firewall_s_look_ups_need_nothing_of_it() {
        let firewall = Firewall {
            v4: true,
            v6: true,
            without_marks: true,
        };
        let host = plan_with(
            Strict {
                kernel: false,
                firewall,
            },
            false,
        );
        let texts = [texts(&host.plan.routes), texts(&host.plan.sysctls)].concat();
        for text in &texts {
            assert!(!text.contains("::") && !text.contains("ipv6"), "{texts:#?}");
        }
        let rules = host.plan.rules.iter();
        let of_v6 = rules.filter(|rule| rule.family == Family::V6);
        // Where foreign traffic continues, and the routes to pods, which may have addresses without a route.
        let of_v6: Vec<u32> = of_v6.map(|rule| rule.priority).collect();
        assert_eq!(of_v6, [1004, 1007]);
    }
}
