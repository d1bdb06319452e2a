//! Sets of addresses in text, as agents write them: `10.0.0.5-10.0.0.9, 10.0.0.12`.

use ebbtide_ipam::catalog::AddressSet;
use ebbtide_types::Family;
use ipnet::IpNet;

/// Parses a set; the empty text is the empty set.
pub(super) fn read(text: &str, family: Family) -> Option<AddressSet> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let sets: Option<Vec<AddressSet>> = parts
        .map(|part| AddressSet::parse(part, family).ok())
        .collect();
    Some(AddressSet::union_of(family, &sets?))
}

/// Whether all of a block is in the set.
pub(super) fn has_all(set: &AddressSet, block: &IpNet) -> bool {
    Family::of_net(block) == set.family() && AddressSet::of_net(block).without(set).is_empty()
}

/// Whether any of a block is in the set.
pub(super) fn has_any(set: &AddressSet, block: &IpNet) -> bool {
    AddressSet::of_net(block).intersection(set).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_set_prints_is_read_and_nothing_else() {
        for text in ["", "10.0.0.5", "10.0.0.5-10.0.0.9, 10.0.0.12"] {
            assert_eq!(read(text, Family::V4).unwrap().to_string(), text);
        }
        for bad in [
            "x",
            "10.0.0.5-",
            "fd00::1",
            "10.0.0.9-10.0.0.5",
            "10.0.0.0/24",
        ] {
            assert!(read(bad, Family::V4).is_none(), "{bad}");
        }
    }
}
