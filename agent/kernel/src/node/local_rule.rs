//! The rule for pods whose address the node takes for its own, in front of the rule for the table `local`.
//!
//! cloud-init, amazon-ec2-net-utils and nm-cloud-setup put addresses on the NIC that the cloud has assigned for pods,
//! and google-guest-agent local routes. Then the node answers what is for the pod, and drops what the pod sends to it by
//! its veth: a source of its own (`fib_validate_source`, net/ipv4/fib_frontend.c). A look-up in front of `local` finds
//! the pod's veth instead. It is in a table with the routes to these pods alone, so that nothing changes for any other
//! address: neither for the node's, which are still found in `local` first, nor for other pods, whose packets by mark or
//! source meet the rules of [`super::host_plan`] first.

use std::collections::BTreeSet;

use ebbtide_types::{
    Family,
    settings::{LocalRule, Settings},
};

use tracing::debug;

use super::plan::{Rules, Step};
use crate::netlink::{
    Error, Netlink,
    foreign::ForeignRule,
    model::{Action, LOCAL_TABLE, Rule, Selector},
};

/// Returns the rules for these families, in which the node takes addresses of pods for its own.
///
/// Where others have moved the rule for the table `local`, the rule is directly in front of it, behind theirs. Where
/// they have moved it behind Ebbtide's look-up of all pods (for VRFs), none is needed.
#[must_use]
pub fn local_rules(held: &BTreeSet<Family>, rules: Rules<'_>) -> Vec<Rule> {
    if rules.settings.local_rule == LocalRule::Never {
        return Vec::new();
    }
    let to_pods = rules.base.saturating_add_signed(Step::ToPods as i32);
    let rule = |family: &Family| {
        let local = first_local(rules.foreign, *family).filter(|local| *local < to_pods)?;
        Some(Rule {
            family: *family,
            priority: local.saturating_sub(1),
            selector: Selector::All,
            action: Action::Table(rules.settings.held_table()),
        })
    };
    held.iter().filter_map(rule).collect()
}

/// Returns the priority of the first rule that looks up the table `local` for all packets.
fn first_local(foreign: &[ForeignRule], family: Family) -> Option<u32> {
    let plain = |rule: &&ForeignRule| {
        let all = ForeignRule {
            table: Some(LOCAL_TABLE),
            ..ForeignRule::new(family, rule.priority)
        };
        **rule == all
    };
    foreign.iter().filter(plain).map(|rule| rule.priority).min()
}

/// Whether this is one of [`local_rules`].
#[must_use]
pub fn is_local_rule(rule: &Rule, settings: &Settings) -> bool {
    rule.action == Action::Table(settings.held_table())
}

/// Brings the rules of [`local_rules`] that the host has to their place, and clears up what an agent left that ended
/// before it had. Where others' rules of priority 0 are in the way, that is only logged: `doctor` says what can be done.
///
/// # Errors
/// If the kernel refuses a request.
pub async fn put_before_local(
    host: &Netlink,
    families: impl Iterator<Item = Family>,
) -> Result<(), Error> {
    for family in families {
        if !host.put_ours_before_local(family).await? {
            debug!(%family, "others' rules of priority 0 are in the way of the look-up in front of `local`");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(priority: u32, table: u32) -> ForeignRule {
        ForeignRule {
            table: Some(table),
            ..ForeignRule::new(Family::V4, priority)
        }
    }

    #[test]
    fn the_rule_is_in_front_of_the_first_lookup_of_local_and_nowhere_else() {
        let vrf = ForeignRule::new(Family::V4, 1000);
        let marked = ForeignRule {
            mark: Some((0x200, 0xf00)),
            ..lookup(9, 2004)
        };
        let selective = ForeignRule {
            iif: Some("lo".into()),
            ..lookup(5, LOCAL_TABLE)
        };
        for (foreign, expected) in [
            (vec![lookup(0, LOCAL_TABLE)], Some(0)),
            (vec![marked.clone(), lookup(100, LOCAL_TABLE)], Some(99)),
            (vec![marked.clone(), lookup(10, LOCAL_TABLE)], Some(9)),
            (
                vec![lookup(0, LOCAL_TABLE), lookup(20, LOCAL_TABLE)],
                Some(0),
            ),
            (vec![selective, lookup(20, LOCAL_TABLE)], Some(19)),
            (vec![vrf, lookup(32_765, LOCAL_TABLE)], None),
            (vec![], None),
        ] {
            let settings = Settings::default();
            let rules = Rules {
                settings: &settings,
                base: 1000,
                foreign: &foreign,
            };
            let found = local_rules(&BTreeSet::from([Family::V4]), rules);
            let priorities: Vec<u32> = found.iter().map(|rule| rule.priority).collect();
            assert_eq!(priorities, Vec::from_iter(expected), "{foreign:?}");
            assert!(found.iter().all(|rule| is_local_rule(rule, &settings)));
            assert_eq!(local_rules(&BTreeSet::new(), rules), []);
            let never = Settings {
                local_rule: LocalRule::Never,
                ..Settings::default()
            };
            let settings = &never;
            let rules = Rules { settings, ..rules };
            assert_eq!(local_rules(&BTreeSet::from(Family::BOTH), rules), []);
        }
    }
}
