//! A foreign routing policy rule, as far as it can conflict with Ebbtide's.

use std::fmt;

use ebbtide_types::Family;
use ipnet::IpNet;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::owned::is_owned;

/// A routing policy rule that is not Ebbtide's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// Family.
    pub family: Family,
    /// Its priority.
    pub priority: u32,
    /// The mark that it matches, and the mask.
    pub mark: Option<(u32, u32)>,
    /// Whether it matches what the rest does not describe (`not`).
    pub inverted: bool,
    /// Source.
    pub from: Option<IpNet>,
    /// Destination.
    pub to: Option<IpNet>,
    /// The link by which packets came in.
    pub iif: Option<String>,
    /// The link by which packets have to leave.
    pub oif: Option<String>,
    /// The table that it looks up; `None` if it does something else, or looks up that of a VRF (`l3mdev`).
    pub table: Option<u32>,
}

impl ForeignRule {
    /// Makes a rule that matches everything and does nothing.
    #[must_use]
    pub const fn new(family: Family, priority: u32) -> Self {
        Self {
            family,
            priority,
            mark: None,
            inverted: false,
            from: None,
            to: None,
            iif: None,
            oif: None,
            table: None,
        }
    }

    /// Parses a rule; `None` if it is Ebbtide's.
    pub(super) fn parse(family: Family, message: &RuleMessage) -> Option<Self> {
        if is_owned(message) {
            return None;
        }
        let mut rule = Self::new(family, 0);
        let (mut table, mut is_of_vrf) = (u32::from(message.header.table), false);
        let (mut mark, mut mask) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(value) => rule.priority = *value,
                RuleAttribute::Table(value) => table = *value,
                RuleAttribute::L3MDev(value) => is_of_vrf = *value,
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::Oifname(name) => rule.oif = Some(name.clone()),
                RuleAttribute::Source(address) => {
                    rule.from = IpNet::new(*address, message.header.src_len).ok();
                }
                RuleAttribute::Destination(address) => {
                    rule.to = IpNet::new(*address, message.header.dst_len).ok();
                }
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = Some(*value),
                _ => {}
            }
        }
        // The kernel omits a mark of zero (`fib_nl_fill_rule`, net/core/fib_rules.c).
        rule.mark = match (mark, mask) {
            (None, None) => None,
            (mark, mask) => Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX))),
        };
        rule.inverted = message.header.flags.contains(RuleFlags::Invert);
        let looks_up = message.header.action == RuleAction::ToTable && !is_of_vrf;
        rule.table = looks_up.then_some(table);
        Some(rule)
    }
}

/// Formats the rule as `ip rule` does.
impl fmt::Display for ForeignRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.inverted {
            write!(f, " not")?;
        }
        match self.from {
            Some(from) => write!(f, " from {from}")?,
            None => write!(f, " from all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        match self.mark {
            Some((mark, u32::MAX)) => write!(f, " fwmark {mark:#x}")?,
            Some((mark, mask)) => write!(f, " fwmark {mark:#x}/{mask:#x}")?,
            None => {}
        }
        if let Some(link) = &self.iif {
            write!(f, " iif {link}")?;
        }
        if let Some(link) = &self.oif {
            write!(f, " oif {link}")?;
        }
        match self.table {
            Some(table) => write!(f, " lookup {table}"),
            None => Ok(()),
        }
    }
}
