use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use proptest::{prelude::*, sample::Index};

use super::*;

#[test]
fn texts_that_are_no_ranges_say_why() {
    use AddressSetError::{Backwards, Family as Wrong, Malformed};
    let cases = [
        ("", Family::V4, Malformed),
        ("-", Family::V4, Malformed),
        ("10.0.0.1-", Family::V4, Malformed),
        ("10.0.0.1-2", Family::V4, Malformed),
        ("10.0.0.1-10.0.0.2-10.0.0.3", Family::V4, Malformed),
        ("10.0.0.0/24", Family::V4, Malformed),
        ("10.0.0.256", Family::V4, Malformed),
        ("10.0.0.2-10.0.0.1", Family::V4, Backwards),
        ("fd00::1", Family::V4, Wrong(Family::V4)),
        ("10.0.0.1-fd00::1", Family::V4, Wrong(Family::V4)),
        ("10.0.0.1", Family::V6, Wrong(Family::V6)),
    ];
    for (text, family, error) in cases {
        assert_eq!(AddressSet::parse(text, family), Err(error), "{text:?}");
    }
}

#[test]
fn the_whole_of_ipv6_is_a_set_like_any_other() {
    let all = AddressSet::of_net(&"::/0".parse().unwrap());
    assert_eq!(all.len(), u128::MAX);
    assert!(all.contains("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()));
    assert!(all.without(&all).is_empty());
    assert_eq!(all.union(&all), all);
}

/// One union for each address, or each range compared with each hole, took minutes.
#[test]
fn a_list_of_a_hundred_thousand_addresses_is_read_at_once() {
    let addresses = (0..200_000u32)
        .step_by(2)
        .map(|n| AddressSet::single(Ipv4Addr::from(0x0a00_0001 + n).into()));
    let odd = AddressSet::union_of(Family::V4, &addresses.collect::<Vec<_>>());
    let all = AddressSet::parse("10.0.0.0-10.3.13.63", Family::V4).unwrap();
    let even = all.without(&odd);
    assert_eq!((odd.len(), even.len()), (100_000, 100_000));
    assert_eq!(even.without(&odd), even);
    assert_eq!(even.union(&odd), all);
}

/// The same small set in two forms: as ranges, and as plain members 0..=255 of the last byte.
fn set() -> impl Strategy<Value = (AddressSet, BTreeSet<u8>)> {
    prop::collection::vec((any::<u8>(), 0u8..20), 0..8).prop_map(|parts| {
        let mut set = AddressSet::empty(Family::V4);
        let mut members = BTreeSet::new();
        for (first, length) in parts {
            let last = first.saturating_add(length);
            set = set.union(
                &AddressSet::parse(&format!("10.0.0.{first} - 10.0.0.{last}"), Family::V4).unwrap(),
            );
            members.extend(first..=last);
        }
        (set, members)
    })
}

fn address(member: u8) -> IpAddr {
    [10, 0, 0, member].into()
}

fn members(set: &AddressSet) -> BTreeSet<u8> {
    (0..=255)
        .filter(|member| set.contains(address(*member)))
        .collect()
}

proptest! {
    #[test]
    fn sets_of_ranges_behave_as_sets_of_members((a, a_members) in set(), (b, b_members) in set(), index in any::<Index>()) {
        prop_assert_eq!(&members(&a), &a_members);
        prop_assert_eq!(a.len(), a_members.len() as u128);
        prop_assert_eq!(a.is_empty(), a_members.is_empty());
        prop_assert_eq!(members(&a.union(&b)), &a_members | &b_members);
        prop_assert_eq!(AddressSet::union_of(Family::V4, [&a, &b]), a.union(&b));
        prop_assert_eq!(members(&a.without(&b)), &a_members - &b_members);
        prop_assert_eq!(a.without(&b).union(&b), a.union(&b), "ranges are kept in one canonical form");
        match a.intersection(&b) {
            None => prop_assert!(a_members.is_disjoint(&b_members)),
            Some((first, last)) => {
                prop_assert!(a.contains(first) && b.contains(first) && a.contains(last) && b.contains(last) && first <= last);
            }
        }
        for (index, member) in a_members.iter().enumerate() {
            prop_assert_eq!(a.get(index as u128), Some(address(*member)));
            prop_assert_eq!(a.index_of(address(*member)), Some(index as u128));
        }
        prop_assert_eq!(a.get(a.len()), None);
        let outside = address(index.index(256) as u8);
        prop_assert_eq!(a.index_of(outside).is_some(), a_members.contains(&(index.index(256) as u8)));
    }

    #[test]
    fn reading_a_range_never_panics(text in "[0-9a-f.:/ -]{0,40}|\\PC{0,30}") {
        for family in Family::BOTH {
            if let Ok(set) = AddressSet::parse(&text, family) {
                prop_assert_eq!(AddressSet::parse(&set.to_string(), family), Ok(set));
            }
        }
    }

    #[test]
    fn reading_a_manifest_never_panics(text in "\\PC{0,80}", subnet in "[0-9a-f.:/]{0,20}", ip in "[0-9a-f.:-]{0,20}", gateway in "[0-9a-f.:]{0,20}") {
        catalog(&text);
        let spec = format!("{{subnet: '{subnet}', ips: ['{ip}'], gateway: '{gateway}', routes: [{{dst: '{subnet}', gw: '{gateway}'}}]}}");
        let catalog = catalog(&pool("p", &spec));
        prop_assert_eq!(catalog.pools().len() + catalog.problems().len(), 1);
    }
}
