//! Chooses the priorities of Ebbtide's rules in the host: in front of foreign rules that take their traffic.
//!
//! Ebbtide's rules match pods' traffic only (docs/how-it-works.md), so in front they do no harm. Behind a rule by
//! source or for all packets, as netplan, cloud-init, strongSwan and `ip rule add` without a priority create them, they
//! are not evaluated: pods and the node's own address would lose each other.

use std::{collections::BTreeSet, net::IpAddr, ops::Range};

use ipnet::IpNet;

use super::plan::PRIORITIES;
use crate::netlink::{foreign::ForeignRule, model::LOCAL_TABLE};

/// Priority of the kernel's rule for the main table.
const MAIN: u32 = 32_766;

/// The traffic that Ebbtide routes, by its addresses and NICs.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// Networks of the pods' addresses.
    pub pods: Vec<IpNet>,
    /// The node's own addresses.
    pub node: Vec<IpAddr>,
    /// Names of the NICs.
    pub nics: Vec<String>,
}

impl Routed {
    /// Whether a foreign rule looks up a foreign table for traffic that Ebbtide routes. A rule with a mark matches only
    /// packets that its owner marks, and a VRF's only what is in the VRF. The local table's takes nothing from Ebbtide.
    #[must_use]
    pub fn is_caught_by(&self, rule: &ForeignRule) -> bool {
        let looks_up = rule.table.is_some_and(|table| table != LOCAL_TABLE);
        if rule.inverted || !looks_up {
            return looks_up;
        }
        let is_marked = rule.mark.is_some_and(|(mark, mask)| mark & mask != 0);
        let is_nic = |link: &String| self.nics.contains(link);
        let from = |from: &IpNet| {
            let mut node = self.node.iter();
            self.has_pods_in(from) || node.any(|address| from.contains(address))
        };
        !is_marked
            && rule.from.as_ref().is_none_or(from)
            && rule.to.as_ref().is_none_or(|to| self.has_pods_in(to))
            && rule
                .iif
                .as_ref()
                .is_none_or(|link| link == "lo" || is_nic(link))
            && rule.oif.as_ref().is_none_or(is_nic)
    }

    fn has_pods_in(&self, net: &IpNet) -> bool {
        let mut pods = self.pods.iter();
        pods.any(|pods| pods.contains(net) || net.contains(pods))
    }
}

/// Priority of the lookup of the node's own addresses. Rules in front of it would match packets for the node.
fn local(foreign: &[ForeignRule]) -> u32 {
    let all = |rule: &&ForeignRule| rule.table == Some(LOCAL_TABLE) && rule.from.is_none();
    let priorities = foreign.iter().filter(all).map(|rule| rule.priority);
    priorities.max().unwrap_or(0)
}

/// Foreign rules that precede Ebbtide's, which begin at `base`, and match traffic that Ebbtide routes.
pub fn preceding_rules<'a>(
    base: u32,
    foreign: &'a [ForeignRule],
    routed: &'a Routed,
) -> impl Iterator<Item = &'a ForeignRule> {
    let end = base.saturating_sub(1).saturating_add(PRIORITIES);
    foreign
        .iter()
        .filter(move |rule| rule.priority < end && routed.is_caught_by(rule))
}

/// The first priority of Ebbtide's rules at which no foreign rule takes their traffic: the current one if it qualifies,
/// else `preferred` or the nearest free block. `None` if there is no such block.
#[must_use]
pub fn preceding_base(
    preferred: u32,
    current: Option<u32>,
    foreign: &[ForeignRule],
    routed: &Routed,
) -> Option<u32> {
    let local = local(foreign);
    let taking = foreign.iter().filter(|rule| routed.is_caught_by(rule));
    let behind_local = taking.filter(|rule| rule.priority > local);
    let first = behind_local.map(|rule| rule.priority).min();
    let between = local + 1..first.unwrap_or(MAIN).min(MAIN);
    let taken: BTreeSet<u32> = foreign.iter().map(|rule| rule.priority).collect();
    let is_free = |base: &u32| is_free(*base, &between, &taken);
    if let Some(current) = current.filter(is_free) {
        return Some(current);
    }
    // The new rules are added before the old ones are removed.
    let is_beside = |base: u32| current.is_none_or(|current| current.abs_diff(base) >= PRIORITIES);
    nearest(preferred, |base| is_free(base) && is_beside(*base))
}

/// The first priority of Ebbtide's rules: `preferred` or the next lower block of priorities that is free, else the next
/// higher one. Spiderpool leaves a rule at 1000, and the kernel has its own there for VRFs.
#[must_use]
pub fn free_priorities(preferred: u32, foreign: &[ForeignRule]) -> Option<u32> {
    let taken: BTreeSet<u32> = foreign.iter().map(|rule| rule.priority).collect();
    nearest(preferred, |base| is_free(*base, &(1..MAIN), &taken))
}

fn is_free(base: u32, between: &Range<u32>, taken: &BTreeSet<u32>) -> bool {
    let first = base.saturating_sub(1);
    let block = first..first.saturating_add(PRIORITIES);
    between.start <= block.start && block.end <= between.end && taken.range(block).next().is_none()
}

fn nearest(preferred: u32, is_free: impl Fn(&u32) -> bool) -> Option<u32> {
    let lower = (2..=preferred).rev();
    lower.chain(preferred.max(1) + 1..MAIN).find(is_free)
}

#[cfg(test)]
mod tests {
    use ebbtide_types::Family;

    use super::*;
    use crate::netlink::model::MAIN_TABLE;

    fn rule(priority: u32, table: u32) -> ForeignRule {
        ForeignRule {
            table: Some(table),
            ..ForeignRule::new(Family::V4, priority)
        }
    }

    fn from(priority: u32, from: &str) -> ForeignRule {
        ForeignRule {
            from: Some(from.parse().unwrap()),
            ..rule(priority, 101)
        }
    }

    fn routed() -> Routed {
        Routed {
            pods: vec![
                "10.70.16.0/20".parse().unwrap(),
                "10.71.8.40/32".parse().unwrap(),
            ],
            node: vec![
                "10.70.16.10".parse().unwrap(),
                "10.71.8.10".parse().unwrap(),
            ],
            nics: vec!["ens5".into(), "ens6".into()],
        }
    }

    #[test]
    fn rules_that_take_what_is_ours_are_told_from_those_that_do_not() {
        let to = |to: &str| ForeignRule {
            to: Some(to.parse().unwrap()),
            ..rule(100, 101)
        };
        let marked = |mark, mask| ForeignRule {
            mark: Some((mark, mask)),
            ..rule(100, 101)
        };
        let iif = |link: &str| ForeignRule {
            iif: Some(link.into()),
            ..rule(100, 101)
        };
        let oif = |link: &str| ForeignRule {
            oif: Some(link.into()),
            ..rule(100, 101)
        };
        for (rule, expected) in [
            (rule(220, 220), true),
            (rule(500, MAIN_TABLE), true),
            (rule(0, LOCAL_TABLE), false),
            (ForeignRule::new(Family::V4, 1000), false),
            (from(100, "10.70.16.0/20"), true),
            (from(100, "10.71.8.10/32"), true),
            (from(100, "10.71.0.0/16"), true),
            (from(100, "172.18.0.0/16"), false),
            (from(100, "fd00::/8"), false),
            (to("10.70.0.0/16"), true),
            (to("10.70.17.9/32"), true),
            (to("192.0.2.0/24"), false),
            (to("10.70.16.10/32"), true),
            (to("10.71.8.10/32"), false),
            (marked(4, u32::MAX), false),
            (marked(0x8_0000, 0xff_0000), false),
            (marked(0, 0xff), true),
            (
                ForeignRule {
                    inverted: true,
                    ..marked(0xca6c, u32::MAX)
                },
                true,
            ),
            (iif("docker0"), false),
            (iif("ens6"), true),
            (iif("lo"), true),
            (oif("ens5"), true),
            (oif("wg0"), false),
        ] {
            assert_eq!(routed().is_caught_by(&rule), expected, "{rule}");
        }
    }

    #[test]
    fn our_rules_are_in_front_of_those_that_take_what_is_ours_and_move_for_nothing_else() {
        let kernels = [
            rule(0, LOCAL_TABLE),
            rule(MAIN, MAIN_TABLE),
            rule(MAIN + 1, 253),
        ];
        let none = |priority| ForeignRule::new(Family::V4, priority);
        for (name, current, others, expected) in [
            ("nobody", None, vec![], Some(1000)),
            (
                "none of our business",
                None,
                vec![from(100, "172.18.0.0/16")],
                Some(1000),
            ),
            ("behind us", Some(1000), vec![rule(5270, 52)], Some(1000)),
            (
                "netplan's",
                None,
                vec![from(100, "10.70.16.0/20")],
                Some(92),
            ),
            ("strongSwan's", None, vec![rule(220, 220)], Some(212)),
            (
                "`ip rule add` while ours begin at 1000",
                Some(1000),
                vec![from(998, "10.70.16.10/32"), from(997, "10.71.8.10/32")],
                Some(989),
            ),
            (
                "where they are is as good",
                Some(500),
                vec![rule(900, 9)],
                Some(500),
            ),
            ("still there, though it is gone", Some(92), vec![], Some(92)),
            ("in our place", Some(1000), vec![none(1003)], Some(991)),
            ("at our end", Some(1000), vec![rule(1007, 9)], Some(991)),
            ("no room", Some(1000), vec![rule(9, 9)], None),
            ("just room", Some(1000), vec![rule(10, 9)], Some(2)),
            (
                "behind the local table, wherever it is",
                None,
                vec![rule(100, LOCAL_TABLE), rule(120, 9)],
                Some(112),
            ),
            (
                "what is in front of the local table is out of reach",
                None,
                vec![rule(100, LOCAL_TABLE), rule(50, 9)],
                Some(1000),
            ),
        ] {
            let all = [&kernels[..], &others].concat();
            let base = preceding_base(1000, current, &all, &routed());
            assert_eq!(base, expected, "{name}");
            if let Some(base) = base {
                let left: Vec<_> = preceding_rules(base, &all, &routed())
                    .map(|rule| rule.priority)
                    .collect();
                assert!(
                    left.iter().all(|priority| *priority == 50),
                    "{name}: {left:?}"
                );
            }
        }
    }

    #[test]
    fn our_rules_begin_where_a_whole_block_is_nobodys() {
        let all: Vec<u32> = (0..32_766).collect();
        for (preferred, taken, expected) in [
            (1000, vec![0, 32_766], Some(1000)),
            (1000, vec![1000], Some(992)),
            (1000, vec![1007], Some(999)),
            (1000, vec![1008], Some(1000)),
            (1000, vec![1000, 995], Some(987)),
            (1000, vec![999], Some(991)),
            (3, vec![3], Some(5)),
            (0, vec![], Some(2)),
            (1000, all, None),
        ] {
            let rules = taken.into_iter().map(|priority| rule(priority, 9));
            let rules: Vec<ForeignRule> = rules.collect();
            assert_eq!(free_priorities(preferred, &rules), expected, "{preferred}");
        }
    }
}
