//! Conflicts over routing tables and rule priorities, and masters that are no NICs.

use ebbtide_kernel::{
    netlink::{
        foreign::{Foreign, ForeignRule},
        model::LOCAL_TABLE,
    },
    node::{Classification, Nic, NodeFacts, PRIORITIES, Role, free_priorities, nic_table},
};
use ebbtide_types::{Family, settings::Settings};

use super::{Finding, Severity};

/// Returns Ebbtide's routing tables.
pub(super) fn tables(links: &[(Nic, Classification)], settings: &Settings) -> Vec<u32> {
    let nics = links.iter().filter(|(_, taken)| taken.role == Role::Nic);
    let mut tables: Vec<u32> = nics
        .map(|(nic, _)| nic_table(settings, nic.ifindex))
        .collect();
    tables.extend([settings.held_table(), settings.host_table]);
    tables.sort_unstable();
    tables
}

/// Reports foreign routes in Ebbtide's tables, and foreign rules that leave no free priorities. Before Ebbtide's first
/// start this is a wrong configuration; later, something else came afterwards.
#[must_use]
pub(super) fn conflicts(
    links: &[(Nic, Classification)],
    foreign: &Foreign,
    settings: &Settings,
) -> Vec<Finding> {
    let severity = match foreign.beside_ours {
        true => Severity::Warning,
        false => Severity::Serious,
    };
    let mut findings = Vec::new();
    for table in tables(links, settings) {
        let routes = foreign.routes.iter().filter(|route| route.table == table);
        let texts: Vec<&str> = routes.map(|route| route.destination.as_str()).collect();
        if !texts.is_empty() {
            findings.push(Finding {
                severity,
                what: format!(
                    "routing table {table} has routes that are not Ebbtide's: {}",
                    texts.join(", ")
                ),
                hint: format!(
                    "set hostTable to a number that is free, as are those after it (one for each \
                     NIC, by its index), or remove the routes: `ip route show table {table}`"
                ),
            });
        }
    }
    if free_priorities(settings.rule_priority, &foreign.rules).is_none() {
        findings.push(Finding {
            severity,
            what: format!(
                "no {PRIORITIES} priorities in a row are free for Ebbtide's routing rules"
            ),
            hint: "remove rules that nobody needs (`ip rule`, `ip -6 rule`)".to_owned(),
        });
    }
    findings
}

/// Reports foreign rules in front of Ebbtide's, which begin at `base`, that catch packets from or to pods.
#[must_use]
pub(super) fn in_front(base: u32, rules: &[ForeignRule]) -> Vec<Finding> {
    let end = base.saturating_sub(1).saturating_add(PRIORITIES);
    rules
        .iter()
        .map(|rule| {
            let ip = match rule.family {
                Family::V4 => "ip",
                Family::V6 => "ip -6",
            };
            Finding {
                severity: Severity::Serious,
                what: format!(
                    "the routing rule `{rule}` ({}) comes before Ebbtide's, which end at {}, and takes packets of pods and \
                     to them: pods and the node, or who asks a NodePort, may not reach each other",
                    rule.family,
                    end.saturating_sub(1)
                ),
                hint: format!(
                    "give it a priority of {end} or more (`{ip} rule add pref {end} ...`, then `{ip} rule del pref {}`): there were no \
                     {PRIORITIES} priorities in a row that Ebbtide's could go to in front of it; or it came again and again",
                    rule.priority
                ),
            }
        })
        .collect()
}

/// Reports that a rule of others keeps Ebbtide's behind the kernel's for the table `local`.
#[must_use]
pub(super) fn behind_local(family: Family, rules: &[ForeignRule]) -> Finding {
    let of_zero = |rule: &&ForeignRule| {
        rule.family == family && rule.priority == 0 && rule.table != Some(LOCAL_TABLE)
    };
    let others = rules.iter().filter(of_zero).map(|rule| format!("`{rule}`"));
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip -6",
    };
    Finding {
        severity: Severity::Serious,
        what: format!(
            "rules of others have priority 0 ({family}: {}): the look-up of pods whose address the node takes for its own \
             cannot come in front of the table `local` without them",
            others.collect::<Vec<_>>().join(", ")
        ),
        hint: format!(
            "give them a priority (`{ip} rule add pref 100 ...`, then `{ip} rule del pref 0 ...` with all that they match)"
        ),
    }
}

/// Reports networks whose master can have no children.
#[must_use]
pub(super) fn masters<'a>(
    facts: &NodeFacts,
    networks: impl Iterator<Item = (String, &'a str)>,
) -> Vec<Finding> {
    networks
        .filter_map(|(network, master)| {
            let kind = facts.nic(master)?.kind.as_deref()?;
            matches!(kind, "ipvlan" | "macvlan").then(|| Finding {
                severity: Severity::Serious,
                what: format!("the master {master} of network {network} is itself an {kind} child"),
                hint: "name the NIC below it in the network's manifest".to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ebbtide_kernel::netlink::foreign::ForeignRoute;

    use super::*;

    fn facts(kind: Option<&str>) -> NodeFacts {
        NodeFacts {
            nics: vec![Nic {
                kind: kind.map(Into::into),
                addresses: vec!["172.31.22.228/20".parse().unwrap()],
                ..Nic::named("ens5", 3)
            }],
            ..NodeFacts::default()
        }
    }

    #[test]
    fn what_is_others_is_found_in_our_tables_only() {
        let route = |table| ForeignRoute {
            table,
            destination: "192.0.2.0/24".into(),
        };
        let rule = |priority| ForeignRule::new(Family::V4, priority);
        let facts = facts(None);
        let taken = Classification {
            role: Role::Nic,
            why: String::new(),
        };
        let links = [(facts.nics[0].clone(), taken)];
        for (routes, rules, expected) in [
            (vec![254, 7702, 7704], vec![0, 999, 1000, 32766], vec![]),
            (vec![7700], vec![], vec!["table 7700"]),
            (vec![7703], vec![], vec!["table 7703"]),
            (vec![], (0..32766).collect(), vec!["priorities in a row"]),
        ] {
            for beside_ours in [false, true] {
                let foreign = Foreign {
                    routes: routes.iter().copied().map(route).collect(),
                    rules: rules.iter().copied().map(rule).collect(),
                    beside_ours,
                };
                let found = conflicts(&links, &foreign, &Settings::default());
                assert_eq!(found.len(), expected.len(), "{found:?}");
                for (finding, text) in found.iter().zip(&expected) {
                    assert!(finding.what.contains(text), "{}", finding.what);
                    assert_eq!(finding.severity == Severity::Serious, !beside_ours);
                }
            }
        }
    }

    #[test]
    fn a_rule_in_front_is_named_with_where_it_may_be() {
        let rule = ForeignRule {
            from: Some("10.70.16.10/32".parse().unwrap()),
            table: Some(101),
            ..ForeignRule::new(Family::V4, 5)
        };
        let found = in_front(1000, &[rule]);
        assert!(
            found[0]
                .what
                .contains("`5: from 10.70.16.10/32 lookup 101` (IPv4)")
        );
        assert!(found[0].what.contains("end at 1007"), "{}", found[0].what);
        assert!(found[0].hint.contains("ip rule add pref 1008"));
        assert_eq!(in_front(1000, &[]), []);
    }

    #[test]
    fn a_master_that_is_a_child_is_named_with_its_network() {
        for (kind, bad) in [
            (None, false),
            (Some("bond"), false),
            (Some("ipvlan"), true),
            (Some("macvlan"), true),
        ] {
            let networks = [("default/a".to_owned(), "ens5"), ("b".to_owned(), "none")];
            let found = masters(&facts(kind), networks.into_iter());
            assert_eq!(found.len(), usize::from(bad), "{kind:?}");
            assert!(
                found
                    .iter()
                    .all(|f| f.what.contains("ens5 of network default/a"))
            );
        }
    }
}
