//! What is different between two snapshots, for the log.

use std::collections::HashSet;

use super::{Catalog, Problem};

/// Names of what came, went and changed, and the problems that were not there before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Pools that are new.
    pub pools: Difference,
    /// Networks that are new.
    pub networks: Difference,
    /// Reservations that are new.
    pub reserved: Difference,
    /// Problems that the older snapshot did not have.
    pub problems: Vec<Problem>,
}

/// What is different between two lists of named things.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Only in the newer.
    pub added: Vec<String>,
    /// Only in the older.
    pub removed: Vec<String>,
    /// In both, not equal.
    pub changed: Vec<String>,
}

impl Changes {
    pub(super) fn between(older: &Catalog, newer: &Catalog) -> Self {
        let known: HashSet<&Problem> = older.problems.iter().collect();
        Self {
            pools: difference(&older.pools, &newer.pools, |pool| pool.name.clone()),
            networks: difference(&older.networks, &newer.networks, |network| {
                network.name.to_string()
            }),
            reserved: difference(&older.reserved, &newer.reserved, |reserved| {
                reserved.name.clone()
            }),
            problems: newer
                .problems
                .iter()
                .filter(|problem| !known.contains(problem))
                .cloned()
                .collect(),
        }
    }
}

fn difference<T: PartialEq>(older: &[T], newer: &[T], name: impl Fn(&T) -> String) -> Difference {
    let find = |list: &[T], wanted: &str| list.iter().position(|item| name(item) == wanted);
    let mut result = Difference::default();
    for item in newer {
        match find(older, &name(item)) {
            None => result.added.push(name(item)),
            Some(position) if older[position] != *item => result.changed.push(name(item)),
            Some(_) => {}
        }
    }
    result.removed = older
        .iter()
        .map(&name)
        .filter(|wanted| find(newer, wanted).is_none())
        .collect();
    result
}
