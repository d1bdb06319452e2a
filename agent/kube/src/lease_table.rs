//! The lease table of a shared pool: which node may hand out which addresses. Pure.
//!
//! It is stored in one ConfigMap per pool. Every change is conditional on no concurrent change, so
//! no address is ever leased twice, and one write moves any number of addresses. It is an object of
//! its own since every agent watches pools, and it is deleted with its pool by an ownerReference.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_ipam::catalog::{AddressSet, AddressSetError};
use ebbtide_types::Family;

/// The label of the ConfigMaps.
pub(super) const LABEL: &str = "ebbtide.io/leases";

/// The prefix of a ConfigMap's name, before the pool's.
const PREFIX: &str = "ebbtide-leases.";

/// The key prefix, before a node's name, for how many addresses it waits for. No node's name starts like this.
const WANTED: &str = "_wanted.";

/// Returns the name of a pool's ConfigMap.
pub(super) fn map_of(pool: &str) -> String {
    format!("{PREFIX}{pool}")
}

/// The leases of one pool.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::catalog::AddressSet;
/// use ebbtide_kube::LeaseTable;
/// use ebbtide_types::Family;
///
/// let pool = AddressSet::parse("10.0.0.1-10.0.0.8", Family::V4)?;
/// let mut table = LeaseTable::new(Family::V4);
/// table.allocate("node1", &pool, 4);
/// table.allocate("node2", &pool, 2);
/// assert_eq!(table.of("node2").to_string(), "10.0.0.5-10.0.0.6");
/// assert_eq!(table.free(&pool).len(), 2);
/// // As in the ConfigMap.
/// assert_eq!(table.to_data()["node1"], "10.0.0.1-10.0.0.4");
/// # Ok::<(), ebbtide_ipam::catalog::AddressSetError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseTable {
    family: Family,
    leases: BTreeMap<String, AddressSet>,
    wanted: BTreeMap<String, u64>,
}

/// An unreadable lease. Nothing may be taken from such a table: the owners of its addresses are unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the lease {text:?} of node {node} {reason}")]
pub struct BadLease {
    /// The node that has it.
    pub node: String,
    /// The lease's text.
    pub text: String,
    /// What is wrong with it.
    pub reason: AddressSetError,
}

impl LeaseTable {
    /// Returns an empty table.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Self {
            family,
            leases: BTreeMap::new(),
            wanted: BTreeMap::new(),
        }
    }

    /// Whether an agent keeps this entry of a ConfigMap's data: its own lease, and who waits.
    /// Whoever takes free addresses asks the API server for them.
    #[must_use]
    pub fn concerns(key: &str, node: &str) -> bool {
        key == node || key.starts_with(WANTED)
    }

    /// Parses a ConfigMap's data.
    ///
    /// # Errors
    /// [`BadLease`] for the first unreadable lease.
    pub fn parse(data: &BTreeMap<String, String>, family: Family) -> Result<Self, BadLease> {
        let mut lease_table = Self::new(family);
        for (key, text) in data {
            if let Some(node) = key.strip_prefix(WANTED) {
                let count = text.trim().parse().unwrap_or(1);
                lease_table.wanted.insert(node.to_owned(), count);
                continue;
            }
            let mut lease = Vec::new();
            for range in text.split(',').filter(|range| !range.trim().is_empty()) {
                let set = AddressSet::parse(range, family).map_err(|reason| BadLease {
                    node: key.clone(),
                    text: text.clone(),
                    reason,
                })?;
                lease.push(set);
            }
            let lease = AddressSet::union_of(family, &lease);
            lease_table.leases.insert(key.clone(), lease);
        }
        Ok(lease_table)
    }

    /// Returns the table as a ConfigMap's data.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<String, String> {
        let leases = self.leases.iter().filter(|(_, lease)| !lease.is_empty());
        let leases = leases.map(|(node, lease)| (node.clone(), lease.to_string()));
        let wanted = self.wanted.iter();
        leases
            .chain(wanted.map(|(node, count)| (format!("{WANTED}{node}"), count.to_string())))
            .collect()
    }

    /// Updates a ConfigMap's data from the table `before` to this one. Unchanged entries keep their
    /// exact text: an agent may only change its own node's.
    pub fn write(&self, before: &Self, data: &mut BTreeMap<String, String>) {
        let nodes: BTreeSet<&String> = before.leases.keys().chain(self.leases.keys()).collect();
        for node in nodes {
            match self.leases.get(node) {
                same if same == before.leases.get(node) => {}
                Some(lease) if !lease.is_empty() => {
                    data.insert(node.clone(), lease.to_string());
                }
                _ => drop(data.remove(node)),
            }
        }
        let nodes: BTreeSet<&String> = before.wanted.keys().chain(self.wanted.keys()).collect();
        for node in nodes {
            let key = format!("{WANTED}{node}");
            match self.wanted.get(node) {
                same if same == before.wanted.get(node) => {}
                Some(count) => drop(data.insert(key, count.to_string())),
                None => drop(data.remove(&key)),
            }
        }
    }

    /// Returns a node's lease.
    #[must_use]
    pub fn of(&self, node: &str) -> AddressSet {
        let none = || AddressSet::empty(self.family);
        self.leases.get(node).cloned().unwrap_or_else(none)
    }

    /// Returns the addresses that no node has.
    #[must_use]
    pub fn free(&self, pool: &AddressSet) -> AddressSet {
        let mut leases = self.leases.values();
        leases
            .try_fold(pool.clone(), |free, lease| Some(free.without(lease)))
            .unwrap_or_else(|| AddressSet::empty(self.family))
    }

    /// Leases up to `count` free addresses to the node; returns them.
    pub fn allocate(&mut self, node: &str, pool: &AddressSet, count: u64) -> AddressSet {
        let got = self.free(pool).first(u128::from(count));
        let lease = self.of(node).union(&got);
        self.leases.insert(node.to_owned(), lease);
        got
    }

    /// Leases these addresses to the node, except those that other nodes have, which it returns.
    pub fn acquire(&mut self, node: &str, set: &AddressSet) -> AddressSet {
        let others = self.leases.iter().filter(|(other, _)| *other != node);
        let got = others.fold(set.clone(), |left, (_, lease)| left.without(lease));
        let lease = self.of(node).union(&got);
        self.leases.insert(node.to_owned(), lease);
        set.without(&got)
    }

    /// Removes these addresses from the node's lease.
    pub fn release(&mut self, node: &str, set: &AddressSet) {
        let lease = self.of(node).without(set);
        self.leases.insert(node.to_owned(), lease);
    }

    /// Records how many addresses a node waits for; 0: none.
    pub fn set_request(&mut self, node: &str, count: u64) {
        if count == 0 {
            self.wanted.remove(node);
        } else {
            self.wanted.insert(node.to_owned(), count);
        }
    }

    /// Whether another node waits for addresses.
    #[must_use]
    pub fn has_other_requests(&self, node: &str) -> bool {
        self.wanted.keys().any(|other| other != node)
    }

    /// Drops the entries of nodes that no longer exist; returns their names.
    pub fn reclaim(&mut self, nodes: &BTreeSet<String>) -> Vec<String> {
        let holders = self.leases.keys().chain(self.wanted.keys());
        let gone: BTreeSet<String> = holders.filter(|n| !nodes.contains(*n)).cloned().collect();
        for node in &gone {
            self.leases.remove(node);
            self.wanted.remove(node);
        }
        gone.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> AddressSet {
        AddressSet::parse(text, Family::V4).unwrap()
    }

    #[test]
    fn no_address_is_leased_twice_and_what_comes_back_can_be_taken_again() {
        let pool = set("10.0.0.1-10.0.0.10");
        let mut lease_table = LeaseTable::new(Family::V4);
        assert_eq!(
            lease_table.allocate("a", &pool, 4),
            set("10.0.0.1-10.0.0.4")
        );
        assert_eq!(
            lease_table.allocate("b", &pool, 4),
            set("10.0.0.5-10.0.0.8")
        );
        assert_eq!(lease_table.allocate("c", &pool, 4).len(), 2);
        assert!(lease_table.allocate("d", &pool, 1).is_empty());
        lease_table.set_request("d", 1);
        assert!(lease_table.has_other_requests("a") && !lease_table.has_other_requests("d"));
        lease_table.release("a", &set("10.0.0.2"));
        let again = LeaseTable::parse(&lease_table.to_data(), Family::V4).unwrap();
        assert_eq!(again.to_data(), lease_table.to_data());
        assert_eq!(lease_table.allocate("d", &pool, 5), set("10.0.0.2"));
        lease_table.set_request("d", 0);
        assert_eq!(
            lease_table.acquire("d", &set("10.0.0.5")),
            set("10.0.0.5"),
            "it is b's"
        );
        assert!(
            lease_table.acquire("d", &set("10.0.0.2")).is_empty(),
            "its own"
        );
        let nodes = ["b", "d"].map(str::to_owned).into();
        assert_eq!(lease_table.reclaim(&nodes), ["a", "c"]);
        assert_eq!(lease_table.free(&pool).len(), 5);
    }

    #[test]
    fn what_others_have_stays_as_it_is_written() {
        let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(key, text)| ((*key).into(), (*text).into()))
                .collect()
        };
        // By hand, by another version: not in this version's form.
        let others = [
            ("b", "10.0.0.5, 10.0.0.6 "),
            ("c", ""),
            ("_wanted.b", " 2"),
            ("_wanted.d", "many"),
        ];
        let pool = set("10.0.0.1-10.0.0.10");
        type Change = fn(&mut LeaseTable, &AddressSet);
        type Texts = &'static [(&'static str, &'static str)];
        let changes: [(Texts, Change, Texts); 5] = [
            (
                &[],
                |lease_table, pool| drop(lease_table.allocate("a", pool, 2)),
                &[("a", "10.0.0.1-10.0.0.2")],
            ),
            (
                &[],
                |lease_table, _| lease_table.set_request("a", 3),
                &[("_wanted.a", "3")],
            ),
            (
                &[("a", "10.0.0.1"), ("_wanted.a", "1")],
                |lease_table, pool| {
                    lease_table.allocate("a", pool, 1);
                    lease_table.set_request("a", 0);
                },
                &[("a", "10.0.0.1-10.0.0.2")],
            ),
            (
                &[("a", "10.0.0.1-10.0.0.2")],
                |lease_table, _| lease_table.release("a", &set("10.0.0.1-10.0.0.2")),
                &[],
            ),
            (
                &[("a", "10.0.0.2 ,10.0.0.1")],
                |_, _| {},
                &[("a", "10.0.0.2 ,10.0.0.1")],
            ),
        ];
        for (own, change, expected) in changes {
            let mut data = text(&[&others[..], own].concat());
            let before = LeaseTable::parse(&data, Family::V4).unwrap();
            let mut lease_table = before.clone();
            change(&mut lease_table, &pool);
            lease_table.write(&before, &mut data);
            assert_eq!(data, text(&[&others[..], expected].concat()));
        }
        let mut data = text(&others);
        let before = LeaseTable::parse(&data, Family::V4).unwrap();
        let mut lease_table = before.clone();
        lease_table.reclaim(&["b"].map(str::to_owned).into());
        lease_table.write(&before, &mut data);
        assert_eq!(data, text(&[others[0], others[2]]));
    }

    #[test]
    fn a_lease_that_cannot_be_read_is_never_taken_for_none() {
        let data = [("a".to_owned(), "10.0.0.1-x".to_owned())].into();
        let error = LeaseTable::parse(&data, Family::V4).unwrap_err();
        assert_eq!(error.node, "a");
    }
}
