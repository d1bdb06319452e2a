//! Addresses that are withheld for now, whatever the pools say.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_types::Family;

use crate::catalog::AddressSet;

/// The maximum number of addresses that are named; more are only counted.
const NAMED: usize = 5;

/// Why nobody gets an address that was asked back.
const ASKED_BACK: &str = "the cloud controller asks for it back";

/// Addresses that no new pod gets for now, each with the reason as a sentence. A current owner keeps its address.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::pool::Withheld;
///
/// let address = "10.0.0.7".parse()?;
/// let withheld = Withheld::new([(address, "link ens5 of the node has it".to_owned())]);
/// assert_eq!(withheld.why(address), Some("link ens5 of the node has it"));
/// assert_eq!(withheld.why("10.0.0.8".parse()?), None);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Withheld {
    reasons: BTreeMap<IpAddr, String>,
    /// Whole ranges, as there may be a prefix of 2^48 addresses among them: one set of a family.
    asked_back: Vec<AddressSet>,
}

impl Withheld {
    /// Collects withheld addresses. The first reason of an address counts.
    pub fn new(reasons: impl IntoIterator<Item = (IpAddr, String)>) -> Self {
        let mut all = BTreeMap::new();
        for (address, why) in reasons {
            all.entry(address).or_insert(why);
        }
        Self {
            reasons: all,
            asked_back: Vec::new(),
        }
    }

    /// Adds the addresses that are asked back, a set for each family: no pod gets one, but the one that it is reserved for.
    #[must_use]
    pub fn with_asked_back(mut self, sets: impl IntoIterator<Item = AddressSet>) -> Self {
        let sets = sets.into_iter().filter(|set| !set.is_empty());
        self.asked_back = sets.collect();
        self
    }

    /// Returns the addresses of a family that are asked back, if there are any.
    #[must_use]
    pub fn asked_back(&self, family: Family) -> Option<&AddressSet> {
        let mut sets = self.asked_back.iter();
        sets.find(|set| set.family() == family)
    }

    /// Returns why the address is withheld; none if it is not.
    #[must_use]
    pub fn why(&self, address: IpAddr) -> Option<&str> {
        let is_asked_back = || self.asked_back.iter().any(|set| set.contains(address));
        self.why_for_its_own(address)
            .or_else(|| is_asked_back().then_some(ASKED_BACK))
    }

    /// Returns why even the pod that the address is reserved for does not get it.
    #[must_use]
    pub fn why_for_its_own(&self, address: IpAddr) -> Option<&str> {
        self.reasons.get(&address).map(String::as_str)
    }

    /// Returns those that are among these addresses, without those that are only asked back.
    pub fn among(&self, set: &AddressSet) -> impl Iterator<Item = (IpAddr, &str)> {
        set.ranges().flat_map(|(first, last)| {
            let found = self.reasons.range(first..=last);
            found.map(|(address, why)| (*address, why.as_str()))
        })
    }
}

/// Lists them with their reasons, or some of them if they are many.
#[must_use]
pub(super) fn named(withheld: &[(IpAddr, String)]) -> String {
    let mut all: Vec<String> = withheld
        .iter()
        .take(NAMED)
        .map(|(address, why)| format!("{address}: {why}"))
        .collect();
    if withheld.len() > NAMED {
        all.push(format!("and {} more", withheld.len() - NAMED));
    }
    all.join(", ")
}
