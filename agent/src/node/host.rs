//! The host's part of "replies leave by the NIC their request came in on", as data.
//!
//! | priority | rule | for |
//! |---|---|---|
//! | base     | `oif NIC lookup T`                       | pods, and whatever is sent on to its right NIC |
//! | base + 1 | `from all lookup pods`                   | the way to this node's pods |
//! | base + 2 | `fwmark NIC iif NIC lookup main`, no default route | requests to what only the main table knows: another plugin's pods |
//! | base + 2 | `fwmark NIC+REPLY iif NIC lookup main`   | strict rp_filter on a far backend's answer |
//! | base + 2 | `fwmark STEERED lookup T(steer)`         | strict rp_filter on what is steered past ipvlan |
//! | base + 3 | `fwmark NIC lookup T`                    | replies; requests to anywhere else; strict rp_filter on requests |
//!
//! Strict reverse path filtering looks up the way back with the packet's mark where
//! `src_valid_mark` is on, and with `iif` set to the link by which the packet is about to *leave*,
//! or to `lo` if it is for this node (`__fib_validate_source`, net/ipv4/fib_frontend.c:
//! `flowi4_iif = oif ? : LOOPBACK_IFINDEX`, and `__mkroute_input` passes the outgoing one). So
//! `iif NIC` with the mark of the same NIC is the request itself on its way in, and with the
//! reply bit, which no packet has that came in there, the question about an answer that leaves by it.

use ebbtide_layout::reply_bit;

use super::{Nic, NodeFacts, PoolNetwork, nic_plan, nic_table};
use crate::{
    datapath::{HOST_PROGRAMS, HostNic},
    netlink::model::{
        Direction, Family, Filter, MAIN_TABLE, NamespacePlan, Route, Rule, Selector, Sysctl,
    },
    settings::Settings,
};

/// A link that leads nowhere, made for its ingress: what is redirected there is in the host's
/// stack, past the NIC's ipvlan handler. The veth of the pod would do as well but for reverse path
/// filtering (no far address is behind it) and ICMP redirects (in and out by one link).
pub const STEER: &str = "ebbtide0";

/// What the node needs on its NICs, whether there are pods or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlan {
    /// The NICs, for the programs.
    pub nics: Vec<HostNic>,
    /// Settings, routes, rules and programs.
    pub plan: NamespacePlan,
}

/// The NICs that traffic of the node can come in by: with an address that is the node's, and
/// frames with MAC addresses (the programs read Ethernet headers; tunnels have none).
pub fn carriers(facts: &NodeFacts) -> impl Iterator<Item = &Nic> {
    facts.nics.iter().filter(|nic| {
        nic.up && nic.mac.is_some() && !nic.addresses.is_empty() && nic.is_the_nodes()
    })
}

/// The networks that the main table's default routes say are behind a NIC: one without pools has
/// its gateway there. A gateway outside of the NIC's own networks (IPv6: link-local) is behind the
/// first of its family.
#[must_use]
pub fn default_networks(nic: &Nic, routes: &[Route]) -> Vec<PoolNetwork> {
    routes
        .iter()
        .filter(|route| {
            route.table == MAIN_TABLE
                && route.link == nic.name
                && route.destination.prefix_len() == 0
        })
        .filter_map(|route| {
            let gateway = route.via?;
            let mut own = nic.addresses.iter();
            let family = Family::of(gateway);
            let subnet = own
                .clone()
                .find(|net| net.contains(&gateway))
                .or_else(|| own.find(|net| Family::of_net(net) == family))?;
            Some(PoolNetwork {
                subnet: subnet.trunc(),
                gateway: Some(gateway),
            })
        })
        .collect()
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

/// What the node needs on its NICs. `networks` are the networks of pools behind a NIC, `known` the
/// marks that NICs have, by interface index, and `steer` the index of the link [`STEER`], if there
/// could be one.
#[must_use]
pub fn host_plan(
    facts: &NodeFacts,
    networks: impl Fn(&Nic) -> Vec<PoolNetwork>,
    known: &[(u32, u32)],
    steer: Option<u32>,
    settings: &Settings,
) -> HostPlan {
    let reply = reply_bit(settings.nic_marks);
    let carriers: Vec<&Nic> = carriers(facts).collect();
    let indices: Vec<u32> = carriers.iter().map(|nic| nic.ifindex).collect();
    let marks = marks(&indices, known, settings.nic_marks & !reply);
    let mut plan = NamespacePlan::default();
    let mut nics = Vec::new();
    let rule = |family, step, selector, table| Rule {
        family,
        priority: settings.rule_priority + step,
        selector,
        table,
    };
    let mask = settings.nic_marks;
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
        plan.rules.push(rule(Family::V4, 2, steered, table));
    }
    for (nic, mark) in carriers.into_iter().zip(marks) {
        let networks = networks(nic);
        let has_gateway = |family| {
            let mut gateways = networks.iter().filter_map(|network| network.gateway);
            gateways.any(|gateway| Family::of(gateway) == family)
        };
        nics.push(HostNic {
            name: nic.name.clone(),
            ifindex: nic.ifindex,
            mark,
            addresses: nic
                .addresses
                .iter()
                .map(|net| (net.addr(), has_gateway(Family::of_net(net))))
                .collect(),
        });
        plan.filters.extend(filters(&nic.name, "host_nic_"));
        plan.sysctls.push(sysctl(&nic.name, "src_valid_mark", "1"));
        // Else the kernel asks for the gateway in the name of the packet that waits for it
        // (`arp_solicit`, net/ipv4/arp.c), and a packet of another NIC's address that is about to be
        // sent on from here waits for ever: the cloud drops the question.
        plan.sysctls.push(sysctl(&nic.name, "arp_announce", "2"));
        let own = nic_plan(nic, &networks, settings);
        plan.routes.extend(own.routes);
        for one in own.rules {
            if !plan.rules.contains(&one) {
                plan.rules.push(one);
            }
        }
        if mark == 0 {
            continue;
        }
        let table = nic_table(settings, nic.ifindex);
        let in_by = |mark, no_default| Selector::InLinkMark {
            link: nic.name.clone(),
            mark,
            mask,
            no_default,
        };
        plan.rules
            .push(rule(Family::V4, 2, in_by(mark | reply, false), MAIN_TABLE));
        for family in Family::BOTH {
            plan.rules
                .push(rule(family, 2, in_by(mark, true), MAIN_TABLE));
            let own = Selector::Mark {
                mark,
                mask: mask & !reply,
            };
            plan.rules.push(rule(family, 3, own, table));
        }
    }
    HostPlan { nics, plan }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::model::Mac;

    fn nic(name: &str, ifindex: u32, address: &str) -> Nic {
        Nic {
            name: name.into(),
            ifindex,
            mac: Some(Mac([2; 6])),
            mtu: 9001,
            up: true,
            kind: None,
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
    fn a_nic_without_pools_has_the_gateway_of_the_main_tables_default_route() {
        let route = |link: &str, via: &str, table| Route {
            link: link.into(),
            destination: Family::of(via.parse().unwrap()).everything(),
            via: Some(via.parse().unwrap()),
            source: None,
            table,
        };
        let mut ens5 = nic("ens5", 3, "172.31.22.228/20");
        ens5.addresses.push("fd00:16::228/64".parse().unwrap());
        let routes = [
            route("ens5", "172.31.16.1", MAIN_TABLE),
            route("ens5", "fe80::1", MAIN_TABLE),
            route("ens6", "210.22.16.1", MAIN_TABLE),
            route("ens5", "172.31.16.9", 7703),
        ];
        let found: Vec<String> = default_networks(&ens5, &routes)
            .iter()
            .map(|n| format!("{} {:?}", n.subnet, n.gateway))
            .collect();
        assert_eq!(
            found,
            [
                "172.31.16.0/20 Some(172.31.16.1)",
                "fd00:16::/64 Some(fe80::1)"
            ]
        );
    }

    #[test]
    fn each_nic_has_its_table_its_rules_and_its_programs() {
        let facts = NodeFacts {
            nics: vec![
                nic("ens6", 4, "210.22.16.10/24"),
                nic("docker0", 9, "172.17.0.1/16"),
            ],
            ..NodeFacts::default()
        };
        let network = PoolNetwork {
            subnet: "210.22.16.0/24".parse().unwrap(),
            gateway: Some("210.22.16.1".parse().unwrap()),
        };
        let host = host_plan(
            &facts,
            |_| vec![network],
            &[],
            Some(9),
            &Settings::default(),
        );
        assert_eq!(
            texts(&host.plan.rules),
            [
                "IPv4 rule 1002: fwmark 0x6e/0x6e lookup 7709",
                "IPv4 rule 1000: oif ens6 lookup 7704",
                "IPv4 rule 1001: from all lookup 7700",
                "IPv6 rule 1000: oif ens6 lookup 7704",
                "IPv6 rule 1001: from all lookup 7700",
                "IPv4 rule 1002: fwmark 0x42/0x6e iif ens6 lookup 254",
                "IPv4 rule 1002: fwmark 0x2/0x6e iif ens6 lookup 254 suppress_prefixlength 0",
                "IPv4 rule 1003: fwmark 0x2/0x2e lookup 7704",
                "IPv6 rule 1002: fwmark 0x2/0x6e iif ens6 lookup 254 suppress_prefixlength 0",
                "IPv6 rule 1003: fwmark 0x2/0x2e lookup 7704",
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
    }
}
