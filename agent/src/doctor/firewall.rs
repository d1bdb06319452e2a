//! Others' firewall rules that pods' packets run into.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use super::{Finding, Severity};
use crate::{
    agent::Agent,
    netfilter::{Packet, Ruleset},
    netlink::{link::IpvlanMode, model::Family},
};

/// What prints the rules of a family: those of the running kind, and of the older one. The older
/// one's program would load its kernel modules, so it is asked only where they are.
const PROGRAMS: [(Family, &str, Option<&str>); 4] = [
    (Family::V4, "iptables-save", None),
    (
        Family::V4,
        "iptables-legacy-save",
        Some("/proc/net/ip_tables_names"),
    ),
    (Family::V6, "ip6tables-save", None),
    (
        Family::V6,
        "ip6tables-legacy-save",
        Some("/proc/net/ip6_tables_names"),
    ),
];

/// What is known of others' rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Of each family, from each program that is installed.
    sets: Vec<(Family, Ruleset)>,
}

/// What a program printed, if it is there and was content.
fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.into_owned())
}

impl Rules {
    fn read() -> Self {
        let mut sets = Vec::new();
        // iptables' newer kind is made of nft's tables, which it reads better than nft does.
        let mut iptables_nft = false;
        for (family, program, needs) in PROGRAMS {
            if needs.is_some_and(|path| !Path::new(path).exists()) {
                continue;
            }
            if let Some(text) = printed(program, &[]) {
                iptables_nft |= text.contains("(nf_tables)");
                sets.push((family, Ruleset::parse(&text)));
            }
        }
        if let Some(json) = printed("nft", &["--json", "--stateless", "list", "ruleset"]) {
            for family in Family::BOTH {
                match Ruleset::parse_nft(&json, family, iptables_nft) {
                    Ok(set) => sets.push((family, set)),
                    Err(e) => tracing::warn!("what nft printed is no JSON: {e}"),
                }
            }
        }
        Self { sets }
    }
}

/// What the rules do to pods with these addresses on these NICs.
fn judge(rules: &Rules, pods: &BTreeSet<(IpAddr, String)>) -> Vec<Finding> {
    // One finding a rule, however many pods it catches: whether all, how many, and the remedy.
    let mut masquerades: BTreeMap<String, (bool, usize, String)> = BTreeMap::new();
    let mut drops = masquerades.clone();
    for (family, rules) in &rules.sets {
        for (source, nic) in pods
            .iter()
            .filter(|(source, _)| Family::of(*source) == *family)
        {
            let packet = |state| Packet {
                source: *source,
                nic,
                state,
            };
            let found = [
                (rules.masquerades(&packet("NEW")), &mut masquerades),
                (rules.drops(&packet("INVALID")), &mut drops),
            ];
            for (caught, all) in found {
                for one in caught {
                    let rule = format!("{family}, {}", one.rule);
                    let entry = all.entry(rule).or_insert((true, 0, one.remedy));
                    entry.0 &= one.all;
                    entry.1 += 1;
                }
            }
        }
    }
    let finding = |(rule, (all, addresses, remedy)): (String, (bool, usize, String)), harm| {
        let would = if all { "would" } else { "may" };
        Finding {
            severity: if all {
                Severity::Serious
            } else {
                Severity::Warning
            },
            what: format!(
                "a firewall rule of others {would} {harm} {addresses} pod address(es) on ipvlan \
                 l3: {rule}"
            ),
            way_out: format!(
                "{remedy}, with PODS the pools' subnets; or set `exemptFromMasquerade: true` in the \
                 agent's configuration; or use mode l2, whose packets netfilter does not see \
                 (docs/modes.md)"
            ),
        }
    };
    let translate = "give another source address to";
    let masquerades = masquerades.into_iter().map(|one| finding(one, translate));
    let drops = drops.into_iter().map(|one| {
        let drop = "drop replies of TCP servers, half seen by conntrack, from";
        finding(one, drop)
    });
    masquerades.chain(drops).collect()
}

/// Rules that catch what this node's pods send by their NICs.
pub(super) async fn firewall(agent: &Agent) -> Vec<Finding> {
    let interfaces = agent.interfaces();
    let routed = interfaces.iter().filter_map(|(_, net)| {
        let own = net.ipvlan.as_ref();
        let own = own.filter(|ipvlan| ipvlan.mode != IpvlanMode::L2 && !net.past_host)?;
        Some((net, &own.master))
    });
    let pods: BTreeSet<_> = routed
        .flat_map(|(net, master)| net.ips().into_iter().map(|ip| (ip, master.clone())))
        .collect();
    if pods.is_empty() {
        return Vec::new();
    }
    let rules = tokio::task::spawn_blocking(Rules::read).await;
    let rules = rules.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    if rules.sets.is_empty() {
        return vec![Finding {
            severity: Severity::Note,
            what:
                "others' firewall rules could not be looked at: there is neither iptables-save nor \
                   nft where the agent runs"
                    .to_owned(),
            way_out: "look for MASQUERADE on the node yourself: what pods send by their NIC must \
                      not meet it (docs/modes.md)"
                .to_owned(),
        }];
    }
    judge(&rules, &pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_one_finding_however_many_pods_it_catches() {
        let pods = BTreeSet::from([
            ([172, 31, 16, 4].into(), "ens5".to_owned()),
            ([172, 31, 16, 5].into(), "ens5".to_owned()),
            ([210, 22, 16, 11].into(), "ens6".to_owned()),
            ("fd00:16::4".parse().unwrap(), "ens5".to_owned()),
        ]);
        let nat = |rule: &str| format!("*nat\n-A POSTROUTING {rule}\nCOMMIT\n");
        let invalid = "*filter\n-A OUTPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
        use Severity::{Serious, Warning};
        let cases: [(String, &[(Severity, &str)]); 5] = [
            (String::new(), &[]),
            (nat("-o ens7 -j MASQUERADE"), &[]),
            (
                nat("-o ens5 -j MASQUERADE"),
                &[(Serious, "would give another source address to 2 pod")],
            ),
            (
                nat("! -d 10.0.0.0/8 -j MASQUERADE"),
                &[(Warning, "may give another source address to 3 pod")],
            ),
            (
                invalid.to_owned(),
                &[(Serious, "would drop replies of TCP servers")],
            ),
        ];
        for (text, expected) in cases {
            let rules = Rules {
                sets: vec![(Family::V4, Ruleset::parse(&text))],
            };
            let found = judge(&rules, &pods);
            assert_eq!(found.len(), expected.len(), "{text}: {found:?}");
            for (finding, (severity, what)) in found.iter().zip(expected) {
                assert_eq!(finding.severity, *severity, "{finding}");
                assert!(finding.what.contains(what), "{finding}");
            }
        }
    }
}
