//! The host's part of "replies leave by the NIC their request came in on", as data.
//!
//! | priority | rule | for |
//! |---|---|---|
//! | base     | `fwmark NIC+REPLY lookup T`          | what has to leave by the NIC: pods' replies, and what is sent on to its right NIC |
//! | base + 1 | `from NODE oif NIC goto base + 7`    | the node's own, and tunnels of others over the NIC: as without us |
//! | base + 2 | `from POD oif NIC lookup W`          | pods with routes of their own |
//! | base + 3 | `from POOL oif NIC lookup T or W`    | pods, in l3 |
//! | base + 4 | `from all lookup pods`               | the way to this node's pods |
//! | base + 5 | `fwmark NIC iif NIC goto base + 7`, `fwmark NIC iif lo goto base + 7` | strict rp_filter: packets themselves, and the node's own |
//! | base + 6 | `fwmark NIC lookup T`                | strict rp_filter on requests for Services |
//! | base + 6 | `fwmark STEERED lookup T(steer)`     | rp_filter on what is steered past ipvlan to a pod |
//! | base + 7 | `nop`                                | where all that is not ours goes on |
//!
//! **What has a mark.** NIC+REPLY is set in two places: at the host's end of a pod's veth, on replies to what came
//! in by a NIC, and at a NIC's egress, on what is sent on from there to another. Either leaves by that NIC: nothing
//! that comes in from outside has it, and nothing of others. STEERED, all bits, is set on answers for a pod that the
//! host has to translate first; they go into the pod.
//!
//! NIC alone is set where a NIC filters reverse paths strictly, and nowhere else (the last rules are there only then).
//! Strict filtering looks up the way back with the packet's mark where `src_valid_mark` is on, and with `iif` set
//! to the link by which the packet is about to *leave*, or to `lo` if it is for this node (`__fib_validate_source`,
//! net/ipv4/fib_frontend.c: `flowi4_iif = oif ? : LOOPBACK_IFINDEX`, and `__mkroute_input` passes the outgoing one).
//! So `iif NIC` with the mark of the same NIC is the packet itself on its way, and goes as it would without us.

use std::net::{IpAddr, Ipv4Addr};

use ebbtide_layout::reply_bit;
use ipnet::IpNet;

use super::{
    Known, Nic, NodeFacts, Role, nic_plan, nic_table,
    plan::{Behind, Rules, Step},
    pods_rules, take,
};
use crate::{
    datapath::{HOST_PROGRAMS, HostNic},
    netlink::model::{
        Action, Direction, Family, Filter, MAIN_TABLE, NamespacePlan, Route, Selector, Sysctl,
    },
};

/// A link that leads nowhere, made for its ingress: what is redirected there is in the host's
/// stack, past the NIC's ipvlan handler. The veth of the pod would do as well but for reverse path
/// filtering (no far address is behind it) and ICMP redirects (in and out by one link).
pub const STEER: &str = "ebbtide0";

/// What the node needs on its NICs. Without a pod, nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// The NICs, for the programs.
    pub nics: Vec<HostNic>,
    /// Settings, routes, rules and programs.
    pub plan: NamespacePlan,
}

/// The links that are ways out to the network.
pub fn nics<'a>(
    facts: &'a NodeFacts,
    known: &'a Known,
    rules: Rules<'a>,
) -> impl Iterator<Item = &'a Nic> {
    let names = &rules.settings.nics;
    let nics = facts.nics.iter();
    nics.filter(move |nic| take(nic, facts, known, names).role == Role::Nic)
}

/// The next hop of the node's own default route over a NIC, for each family that has one: the main table's before
/// those of other tables.
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

/// The node's IPv4 address on a NIC: of several, one beside the gateway.
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

/// The programs on the host's end of a pod's veth; `only_from` guards what comes from the pod.
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

/// Spreads the bits of `number` over the bits that are set in `field`; `None` if they do not fit.
fn spread(number: u32, field: u32) -> Option<u32> {
    let (mut rest, mut bits) = (number, 0);
    for bit in (0..32).map(|position| 1 << position) {
        if field & bit != 0 {
            bits |= if rest & 1 == 1 { bit } else { 0 };
            rest >>= 1;
        }
    }
    (rest == 0).then_some(bits)
}

/// A mark for each of `nics`: the one it has already, else the first that is free; zero when there
/// is none left. All bits together are for what is steered.
fn marks(nics: &[u32], known: &[(u32, u32)], field: u32) -> Vec<u32> {
    let known: Vec<(u32, u32)> = known
        .iter()
        .filter(|(nic, mark)| nics.contains(nic) && *mark != 0 && mark & !field == 0)
        .copied()
        .collect();
    let mut taken: Vec<u32> = known.iter().map(|(_, mark)| *mark).collect();
    nics.iter()
        .map(|nic| {
            if let Some((_, mark)) = known.iter().find(|(known, _)| known == nic) {
                return *mark;
            }
            let free = (1..)
                .map_while(|number| spread(number, field))
                .find(|mark| *mark != field && !taken.contains(mark))
                .unwrap_or(0);
            taken.push(free);
            free
        })
        .collect()
}

fn sysctl(link: &str, name: &str, value: &str) -> Sysctl {
    Sysctl {
        path: format!("net/ipv4/conf/{link}/{name}"),
        value: value.to_owned(),
    }
}

/// What the node needs on its NICs: `known` says which links are some, `behind` what is behind one, `known_marks` the
/// marks that they have, by interface index, `steer` the index of the link [`STEER`], if there could be one, and
/// `is_strict` which NICs filter reverse paths strictly.
#[must_use]
pub fn host_plan(
    facts: &NodeFacts,
    known: &Known,
    behind: impl Fn(&Nic) -> Behind,
    known_marks: &[(u32, u32)],
    steer: Option<u32>,
    is_strict: impl Fn(&str) -> bool,
    rules: Rules<'_>,
) -> HostPlan {
    let settings = rules.settings;
    let mask = settings.nic_marks;
    let reply = reply_bit(mask);
    let carriers: Vec<&Nic> = nics(facts, known, rules).collect();
    let indices: Vec<u32> = carriers.iter().map(|nic| nic.ifindex).collect();
    let marks = marks(&indices, known_marks, mask & !reply);
    let families = || Family::BOTH.into_iter().filter(|family| facts.has(*family));
    let mut plan = NamespacePlan::default();
    let mut nics = Vec::new();
    let mut has_end = false;
    plan.rules.extend(pods_rules(facts, rules));
    if let Some(steer) = steer {
        let table = nic_table(settings, steer);
        plan.sysctls.push(sysctl(STEER, "src_valid_mark", "1"));
        plan.routes.push(Route {
            link: STEER.to_owned(),
            destination: Family::V4.everything(),
            via: None,
            source: None,
            table,
        });
        let steered = Selector::Mark { mark: mask, mask };
        let lead = Action::Table(table);
        let steered = rules.at(Step::Strict, Family::V4, steered, lead);
        plan.rules.push(steered);
    }
    for (nic, mark) in carriers.into_iter().zip(marks) {
        let behind = behind(nic);
        let is_strict = mark != 0 && is_strict(&nic.name);
        nics.push(HostNic {
            name: nic.name.clone(),
            ifindex: nic.ifindex,
            mark,
            is_strict,
            asks_as: own_v4(nic, &behind).or(behind.a_pod),
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
        if is_strict {
            has_end = true;
            plan.sysctls.push(sysctl(&nic.name, "src_valid_mark", "1"));
            let link = nic.name.clone();
            let strict = [
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
            let strict =
                strict.map(|(step, selector, action)| rules.at(step, Family::V4, selector, action));
            plan.rules.extend(strict);
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
    use super::*;
    use crate::{netlink::model::Mac, node::PoolNetwork, settings::Settings};

    fn nic(name: &str, ifindex: u32, address: &str) -> Nic {
        Nic {
            name: name.into(),
            ifindex,
            mac: Some(Mac([2; 6])),
            mtu: 9001,
            up: true,
            kind: None,
            port_of: None,
            ipv6: true,
            addresses: vec![address.parse().unwrap()],
        }
    }

    fn texts<T: ToString>(objects: &[T]) -> Vec<String> {
        objects.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_number_is_spread_over_the_bits_that_are_ours_and_no_others() {
        for (number, field, expected) in [
            (1, 0x2e, Some(0x02)),
            (5, 0x2e, Some(0x0a)),
            (15, 0x2e, Some(0x2e)),
            (16, 0x2e, None),
            (1, 0, None),
        ] {
            assert_eq!(spread(number, field), expected, "{number} in {field:#x}");
        }
    }

    #[test]
    fn a_nic_keeps_its_mark_and_two_never_have_the_same() {
        assert_eq!(marks(&[3, 4], &[], 0x2e), [0x02, 0x04]);
        assert_eq!(marks(&[4, 7], &[(3, 0x02), (4, 0x04)], 0x2e), [0x04, 0x02]);
        assert_eq!(marks(&[3], &[(3, 0x100)], 0x2e), [0x02], "another field");
        let many: Vec<u32> = (1..=15).collect();
        let given = marks(&many, &[], 0x2e);
        assert_eq!(given[14], 0, "fourteen is all that four bits have");
        assert!(
            given[..14]
                .iter()
                .all(|mark| *mark != 0 && mark & !0x2e == 0)
        );
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

    fn plan(is_strict: bool) -> HostPlan {
        let facts = NodeFacts {
            nics: vec![
                nic("ens6", 4, "210.22.16.10/24"),
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
            |_| is_strict,
            Rules {
                settings: &settings,
                base: 1000,
            },
        )
    }

    #[test]
    fn a_nic_has_its_table_its_rules_and_its_programs_and_other_links_nothing() {
        let host = plan(false);
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
            [("210.22.16.10".parse().unwrap(), true)]
        );
        assert_eq!(
            texts(&host.plan.sysctls),
            ["sysctl net/ipv4/conf/ebbtide0/src_valid_mark = 1"],
            "one NIC alone needs no settings"
        );
    }

    #[test]
    fn requests_have_a_mark_and_rules_for_it_where_filtering_is_strict_only() {
        let host = plan(true);
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
        assert!(host.nics[0].is_strict);
    }
}
