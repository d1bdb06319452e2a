//! The differences between two catalog snapshots, for the log.

use std::collections::{HashMap, HashSet};

use super::{Catalog, Problem};

/// The names that were added, removed and changed, and the new problems.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The pools that differ.
    pub pools: Difference,
    /// The networks that differ.
    pub networks: Difference,
    /// The SpiderReservedIPs that differ.
    pub reserved: Difference,
    /// Problems that the older snapshot did not have.
    pub problems: Vec<Problem>,
}

/// The differences between two lists of named objects.
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
    let named = |list| -> HashMap<String, &T> {
        let list: &[T] = list;
        list.iter().map(|item| (name(item), item)).collect()
    };
    let (before, after) = (named(older), named(newer));
    let mut result = Difference::default();
    for item in newer {
        let name = name(item);
        match before.get(&name) {
            None => result.added.push(name),
            Some(older) if *older != item => result.changed.push(name),
            Some(_) => {}
        }
    }
    let names = older.iter().map(&name);
    result.removed = names.filter(|name| !after.contains_key(name)).collect();
    result
}
