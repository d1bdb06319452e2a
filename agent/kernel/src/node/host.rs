//! Plans the host's side of "replies leave by the NIC their request came in on", as data.
//!
//! | priority | rule | for |
//! |---|---|---|
//! | base - 1 | `fwmark REPLY iif lo lookup pods`     | a firewall's reverse path lookup for packets from pods |
//! | base     | `fwmark NIC+REPLY lookup T`          | what must leave by the NIC: pods' replies, and what is redirected to its right NIC |
//! | base     | `from SUBNET fwmark NIC iif NIC lookup T` | strict rp_filter: what leaves by the NIC that it came in by |
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
//! | local    | `from all lookup pods - 1`           | pods whose address the node takes for its own: in front of `lookup local` (`local_rule`) |
//!
//! **Which packets have a mark.** NIC+REPLY is set in two places: at the host's end of a pod's veth, on replies to what
//! came in by a NIC, and at a NIC's egress, on what is redirected from there to another. Both leave by that NIC.
//! Nothing that comes in from outside has this mark, and no foreign packet. REDIRECTED, all bits, is set on answers for
//! a pod that the host has to translate first; they are delivered to the pod.
//!
//! NIC alone is set only where a NIC filters reverse paths strictly (the last rules exist only then), and not on what
//! comes from the NIC's own SUBNET: `reverse_path`.

use std::net::IpAddr;

use ebbtide_types::Family;

use super::{
    Known, Nic, NodeFacts, REDIRECT_DEVICE, Role, StrictRpFilter, classify,
    filters::filters,
    gateways::{main_gateways, own_v4},
    nic_plan, nic_table,
    plan::{NicNetworks, Rules, Step},
    pods_rules,
    reverse_path::{beside, lookups},
};
use crate::{
    datapath::HostNic,
    netlink::model::{Action, MAIN_TABLE, NamespacePlan, Route, Selector, Sysctl},
};

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
    pub fn gateways(
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
    nics.filter(move |nic| classify(nic, facts, known, names).role == Role::Nic)
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
    behind: impl Fn(&Nic) -> NicNetworks,
    known_marks: &[(u32, u32)],
    redirect_device: Option<u32>,
    strict: impl Fn(&str) -> StrictRpFilter,
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
    let uplinks: Vec<(&Nic, StrictRpFilter)> = nics(facts, known, rules)
        .map(|nic| (nic, strict(nic)))
        .collect();
    let indices: Vec<u32> = uplinks.iter().map(|(nic, _)| nic.ifindex).collect();
    let marks = rules.values().assign(&indices, known_marks);
    let families = || Family::BOTH.into_iter().filter(|family| facts.has(*family));
    let mut plan = NamespacePlan::default();
    let mut nics = Vec::new();
    let mut has_end = false;
    plan.rules.extend(pods_rules(facts, rules));
    for family in families() {
        let mut uplinks = uplinks.iter();
        let may = |(nic, strict): &(&Nic, StrictRpFilter)| {
            nic.has(family) && strict.firewall.is_in(family)
        };
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
                .push(rules.at(Step::StrictRpFilter, family, redirected, lead));
            let mut uplinks = uplinks.iter();
            let without =
                uplinks.any(|(nic, strict)| nic.has(family) && strict.firewall.without_marks);
            if family == Family::V6 && without {
                let from = family.everything();
                let link = REDIRECT_DEVICE.to_owned();
                let asked = Selector::OutLink { from, link };
                plan.rules
                    .push(rules.at(Step::StrictRpFilter, family, asked, lead));
            }
        }
    }
    for ((nic, strict), mark) in uplinks.into_iter().zip(marks) {
        let behind = behind(nic);
        let filtered = match mark {
            0 => StrictRpFilter::default(),
            _ => strict,
        };
        let strict_in: Vec<Family> = families()
            .filter(|family| nic.has(*family) && filtered.is_in(*family))
            .collect();
        let own = own_v4(nic, &behind);
        let beside = match filtered.kernel {
            true => beside(nic, own, &facts.nics),
            false => None,
        };
        nics.push(HostNic {
            name: nic.name.clone(),
            ifindex: nic.ifindex,
            mark,
            strict: strict_in.clone(),
            beside,
            asks_as: own.or(behind.a_pod),
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
        has_end |= !strict_in.is_empty();
        for family in strict_in {
            let lookups = lookups(nic, family, filtered, beside, (mark, mask), to_own, rules);
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

#[cfg(test)]
mod tests {
    use ebbtide_types::{Mac, settings::Settings};

    use super::*;
    use crate::node::{PoolNetwork, rp_filter::Firewall};

    fn nic(name: &str, ifindex: u32, address: &str) -> Nic {
        Nic {
            mac: Some(Mac([2; 6])),
            mtu: 9001,
            addresses: vec![address.parse().unwrap()],
            ..Nic::named(name, ifindex)
        }
    }

    fn texts<T: ToString>(objects: &[T]) -> Vec<String> {
        objects.iter().map(ToString::to_string).collect()
    }

    fn plan(strict: StrictRpFilter) -> HostPlan {
        plan_with(strict, true)
    }

    /// As [`plan`], with IPv6 on or off on the NIC.
    fn plan_with(strict: StrictRpFilter, ipv6: bool) -> HostPlan {
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
        let behind = |_: &Nic| NicNetworks {
            pools: vec![PoolNetwork {
                subnet: "210.22.16.0/24".parse().unwrap(),
                gateway: Some(gateway),
                routes: Vec::new(),
            }],
            defaults: vec![(Family::V4, Some(gateway))],
            ..NicNetworks::default()
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
        let host = plan(StrictRpFilter::default());
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
        let host = plan(StrictRpFilter {
            kernel: true,
            ..StrictRpFilter::default()
        });
        let rules = texts(&host.plan.rules);
        for rule in [
            "IPv4 rule 1005: fwmark 0x2/0x6e iif ens6 goto 1007",
            "IPv4 rule 1005: fwmark 0x2/0x6e iif lo goto 1007",
            "IPv4 rule 1006: fwmark 0x2/0x6e lookup 7704",
            "IPv4 rule 1000: from 210.22.16.0/24 fwmark 0x2/0x6e iif ens6 lookup 7704",
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
        assert_eq!(host.nics[0].beside, Some("210.22.16.0/24".parse().unwrap()));
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
        let strict = StrictRpFilter {
            kernel: false,
            firewall,
        };
        assert_eq!(strict.but_for(&[]), strict);
        assert_eq!(strict.but_for(&Family::BOTH), StrictRpFilter::default());
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
        let host = plan(StrictRpFilter {
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
        assert_eq!(
            host.nics[0].beside, None,
            "as before: its lookups have `iif lo`"
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
            StrictRpFilter {
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
