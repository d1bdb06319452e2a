//! Addresses that are withheld for now, whatever the pools say.

use std::{collections::BTreeMap, net::IpAddr};

use crate::catalog::AddressSet;

/// The maximum number of addresses that are named; more are only counted.
const NAMED: usize = 5;

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
pub struct Withheld(BTreeMap<IpAddr, String>);

impl Withheld {
    /// Collects withheld addresses. The first reason of an address counts.
    pub fn new(reasons: impl IntoIterator<Item = (IpAddr, String)>) -> Self {
        let mut all = BTreeMap::new();
        for (address, why) in reasons {
            all.entry(address).or_insert(why);
        }
        Self(all)
    }

    /// Returns why the address is withheld; none if it is not.
    #[must_use]
    pub fn why(&self, address: IpAddr) -> Option<&str> {
        self.0.get(&address).map(String::as_str)
    }

    /// Returns those that are among these addresses.
    pub fn among(&self, set: &AddressSet) -> impl Iterator<Item = (IpAddr, &str)> {
        set.ranges().flat_map(|(first, last)| {
            let found = self.0.range(first..=last);
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
