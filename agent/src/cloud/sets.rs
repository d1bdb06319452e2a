//! Addresses of both families.

use std::{collections::BTreeMap, fmt};

use ebbtide_ipam::catalog::{AddressSet, AddressSetError};
use ebbtide_types::Family;

/// A set of addresses of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sets([AddressSet; 2]);

impl Default for Sets {
    fn default() -> Self {
        Self(Family::BOTH.map(AddressSet::empty))
    }
}

impl Sets {
    pub(crate) fn of(&self, family: Family) -> &AddressSet {
        let [v4, v6] = &self.0;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// Adds a set of one family.
    pub(crate) fn add(&mut self, set: &AddressSet) {
        let own = &mut self.0[set.family() as usize];
        *own = own.union(set);
    }

    fn each(&self, other: &Self, merge: impl Fn(&AddressSet, &AddressSet) -> AddressSet) -> Self {
        Self(Family::BOTH.map(|family| merge(self.of(family), other.of(family))))
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        self.each(other, AddressSet::union)
    }

    pub(crate) fn without(&self, other: &Self) -> Self {
        self.each(other, AddressSet::without)
    }

    pub(crate) fn common(&self, other: &Self) -> Self {
        self.each(other, AddressSet::common)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(AddressSet::is_empty)
    }

    /// Returns the set of each family.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddressSet> {
        self.0.iter()
    }

    /// Returns them as they are on disk: without empty ones.
    pub(crate) fn to_texts(&self) -> BTreeMap<Family, String> {
        let sets = self.0.iter().filter(|set| !set.is_empty());
        sets.map(|set| (set.family(), set.to_string())).collect()
    }

    /// Parses what [`Sets::to_texts`] returns.
    pub(crate) fn parse(texts: &BTreeMap<Family, String>) -> Result<Self, AddressSetError> {
        let mut sets = Self::default();
        for (family, text) in texts {
            sets.add(&AddressSet::parse_list(text, *family)?);
        }
        Ok(sets)
    }
}

impl fmt::Display for Sets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets = self.0.iter().filter(|set| !set.is_empty());
        let texts: Vec<String> = sets.map(ToString::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}
