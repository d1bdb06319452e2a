//! Puts a rule in front of the kernel's rule for the table `local`, and never without one.
//!
//! That rule has priority 0, and nothing is lower. Others move it down (Cilium to 100, amazon-vpc-cni to 20). Then what
//! others add without a priority, one below the second rule (`fib_default_rule_pref`, net/core/fib_rules.c), comes in
//! front of it, and takes packets for the node itself. Here it stays: a new rule goes behind all of its own priority, so
//! the kernel's rule is added a second time behind Ebbtide's, and then the first one is deleted. What others add without
//! a priority comes behind both. Deleting Ebbtide's leaves what was before, byte for byte.
//!
//! Each step is decided by what the kernel has. An agent that died in between leaves two such rules, which do what one
//! does, and the next one goes on.

use ebbtide_types::Family;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{Batch, Error, Netlink, message, model::LOCAL_TABLE, owned::is_owned};

/// More steps than any order needs.
const MOST_STEPS: usize = 8;

/// A rule of priority 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// Ebbtide's.
    Ours,
    /// The kernel's, for the table `local`.
    Local,
    /// Another one.
    Other,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Add the kernel's rule once more, behind all others of priority 0.
    Repeat,
    /// Delete the first of the kernel's rules.
    DeleteFirst,
}

/// Returns the next step for these rules, in lookup order; `None` if they are as they should be, or cannot be: another
/// rule that is between would come in front of the kernel's.
fn next(rules: &[First]) -> Option<Step> {
    use First::{Local, Other, Ours};
    let local = rules.iter().position(|rule| *rule == Local)?;
    let behind = &rules[local + 1..];
    let is_in_front = |from: &[First]| from.contains(&Other);
    match behind.iter().rposition(|rule| *rule == Ours) {
        Some(_) if is_in_front(behind) => None,
        Some(_) if behind.last() == Some(&Local) => Some(Step::DeleteFirst),
        Some(_) => Some(Step::Repeat),
        None => {
            let second = behind.iter().position(|rule| *rule == Local)?;
            (!is_in_front(&behind[..second])).then_some(Step::DeleteFirst)
        }
    }
}

/// Whether a rule of Ebbtide's is behind the kernel's.
fn are_behind(rules: &[First]) -> bool {
    let mut from_local = rules.iter().skip_while(|rule| **rule != First::Local);
    from_local.any(|rule| *rule == First::Ours)
}

impl Netlink {
    /// Brings Ebbtide's rules of priority 0 in front of the kernel's for the table `local`, and removes a second one of
    /// these that an earlier agent left. Returns whether the order is as it should be: not if others have rules between.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn put_ours_before_local(&self, family: Family) -> Result<bool, Error> {
        for _ in 0..MOST_STEPS {
            let rules = self.first_rules(family).await?;
            let mut batch = Batch::default();
            match next(&rules) {
                Some(Step::Repeat) => batch.repeat_local_rule(family),
                Some(Step::DeleteFirst) => batch.delete_first_local_rule(family),
                None => return Ok(!are_behind(&rules)),
            }
            batch.run(self).await?;
        }
        Ok(false)
    }

    /// Whether a rule of Ebbtide's of priority 0 is behind the kernel's for the table `local`, where it does nothing.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn are_ours_behind_local(&self, family: Family) -> Result<bool, Error> {
        Ok(are_behind(&self.first_rules(family).await?))
    }

    /// Whether the kernel's rule for the table `local` is there twice without Ebbtide's rules: what an agent leaves that
    /// dies at a bad moment.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn has_second_local_rule(&self, family: Family) -> Result<bool, Error> {
        let mut rules = self.first_rules(family).await?;
        rules.retain(|rule| *rule != First::Ours);
        Ok(next(&rules) == Some(Step::DeleteFirst))
    }

    /// Lists the rules of priority 0 in lookup order.
    async fn first_rules(&self, family: Family) -> Result<Vec<First>, Error> {
        let mut message = RuleMessage::default();
        message.header.family = message::address_family(family);
        let request = RouteNetlinkMessage::GetRule(message);
        self.dump("list rules", request, |answer| match answer {
            RouteNetlinkMessage::NewRule(rule)
                if rule.header.family == message::address_family(family) =>
            {
                first(&rule)
            }
            _ => None,
        })
        .await
    }
}

/// Returns which rule of priority 0 this is; `None` for one of another priority.
fn first(rule: &RuleMessage) -> Option<First> {
    let (mut is_plain, mut by_kernel) = (rule.header.action == RuleAction::ToTable, false);
    let mut table = u32::from(rule.header.table);
    for attribute in &rule.attributes {
        match attribute {
            // The kernel omits a priority of 0.
            RuleAttribute::Priority(0)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::Priority(_) => return None,
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::Protocol(protocol) => by_kernel = *protocol == RouteProtocol::Kernel,
            _ => is_plain = false,
        }
    }
    let header = &rule.header;
    is_plain &= header.src_len == 0 && header.dst_len == 0 && header.tos == 0;
    is_plain &= header.flags.is_empty();
    Some(
        match (
            is_owned(rule),
            is_plain && by_kernel && table == LOCAL_TABLE,
        ) {
            (true, _) => First::Ours,
            (false, true) => First::Local,
            (false, false) => First::Other,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does what the kernel does.
    fn step(rules: &mut Vec<First>, step: Step) {
        match step {
            Step::Repeat => rules.push(First::Local),
            Step::DeleteFirst => {
                let first = rules.iter().position(|rule| *rule == First::Local);
                rules.remove(first.unwrap());
            }
        }
    }

    fn read(text: &str) -> Vec<First> {
        let one = |letter| match letter {
            'o' => First::Ours,
            'l' => First::Local,
            _ => First::Other,
        };
        text.chars().map(one).collect()
    }

    /// o: Ebbtide's; l: the kernel's; x: another one.
    #[test]
    fn from_every_state_ours_come_in_front_and_what_is_others_never_does() {
        for (from, to) in [
            ("l", "l"),
            ("lo", "ol"),
            ("ol", "ol"),
            // What an agent leaves that dies in between, and what it leaves without its own rule.
            ("lol", "ol"),
            ("oll", "ol"),
            ("llo", "ol"),
            ("ll", "l"),
            ("loo", "ool"),
            ("olo", "ool"),
            // What others add without a priority meanwhile stays where it is.
            ("olx", "olx"),
            ("lx", "lx"),
            ("lxo", "lxo"),
            ("lox", "lox"),
            ("olxl", "olxl"),
            ("xlo", "xol"),
            // Somebody else has moved the kernel's.
            ("o", "o"),
            ("", ""),
        ] {
            let mut rules = read(from);
            let mut steps = 0;
            while let Some(next) = next(&rules) {
                step(&mut rules, next);
                assert!(rules.contains(&First::Local), "{from}: {rules:?}");
                steps += 1;
                assert!(steps < MOST_STEPS, "{from}: {rules:?}");
            }
            assert_eq!(rules, read(to), "{from}");
        }
    }
}
