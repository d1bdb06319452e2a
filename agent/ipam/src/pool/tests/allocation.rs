use super::*;

#[test]
fn fresh_addresses_go_first_ascending_then_the_longest_rested() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.4], default: true}"),
    );
    let pools = lab.open();
    for (container, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
        assert_eq!(add(&pools, &catalog, container), [address]);
    }
    for container in ["b", "a"] {
        lab.pass(1);
        assert!(release(&pools, container).is_some());
    }
    lab.pass(100);
    assert_eq!(
        add(&pools, &catalog, "d"),
        ["10.0.0.4"],
        "never used before cooled down"
    );
    assert_eq!(add(&pools, &catalog, "e"), ["10.0.0.2"], "released first");
    assert_eq!(add(&pools, &catalog, "f"), ["10.0.0.1"]);
}

#[test]
fn a_resting_address_is_not_handed_out_early_and_the_error_says_when() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}"),
    );
    let pools = lab.open();
    add(&pools, &catalog, "a");
    add(&pools, &catalog, "b");
    release(&pools, "a");
    lab.pass(59);
    let error = reserve(&pools, &catalog, "c").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no free IPv4 address: pool p has 1 of 2 in use, 1 cooling down (the next one free in 1 s). \
         Delete pods, wait, or add addresses (spec.ips) or a pool for this node"
    );
    assert!(matches!(error, PoolError::Full(_)));
    lab.pass(1);
    assert_eq!(add(&pools, &catalog, "c"), ["10.0.0.1"]);
}

#[test]
fn a_full_pool_falls_to_the_next() {
    let lab = Lab::new();
    let catalog = catalog(
        "
        a: {subnet: 10.0.0.0/24, ips: [10.0.0.9], default: true, gateway: 10.0.0.1}
        b: {subnet: 10.1.0.0/16, ips: [10.1.0.5], default: true, routes: [{dst: 10.9.0.0/16, gw: 10.1.0.2}]}",
    );
    let pools = lab.open();
    let first = grant(&pools, &catalog, "x");
    let second = grant(&pools, &catalog, "y");
    let [a] = first.assigned() else {
        panic!("{first:?}")
    };
    assert_eq!(
        (a.pool.as_str(), a.prefix_len, a.gateway),
        ("a", 24, Some([10, 0, 0, 1].into()))
    );
    let [b] = second.assigned() else {
        panic!("{second:?}")
    };
    assert_eq!(
        (b.pool.as_str(), b.prefix_len, b.gateway, b.routes.len()),
        ("b", 16, None, 1)
    );
    let error = reserve(&pools, &catalog, "z").unwrap_err().to_string();
    assert!(
        error.contains("pool a has 1 of 1 in use") && error.contains("pool b has 1 of 1 in use"),
        "{error}"
    );
}

#[test]
fn dual_stack_is_all_or_nothing() {
    let lab = Lab::new();
    let catalog = catalog(
        "
        four: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9], default: true}
        six: {subnet: 'fd00::/64', ips: ['fd00::1'], default: true}",
    );
    let pools = lab.open();
    assert_eq!(add(&pools, &catalog, "a"), ["10.0.0.1", "fd00::1"]);
    let error = reserve(&pools, &catalog, "b").unwrap_err().to_string();
    assert!(
        error.starts_with("no free IPv6 address: pool six has 1 of 1 in use"),
        "{error}"
    );
    let used: Vec<u64> = pools
        .usage(&catalog)
        .iter()
        .map(|usage| usage.used)
        .collect();
    assert_eq!(used, [1, 1], "the IPv4 address was not kept");
    release(&pools, "a");
    lab.pass(60);
    assert_eq!(add(&pools, &catalog, "b"), ["10.0.0.2", "fd00::1"]);
}

#[test]
fn a_dropped_grant_leaves_nothing_behind_and_its_address_does_not_rest() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}"),
    );
    let pools = lab.open();
    drop(grant(&pools, &catalog, "a"));
    assert_eq!(pools.list(), []);
    assert_eq!(pools.usage(&catalog)[0].free, 1);
    assert_eq!(add(&pools, &catalog, "b"), ["10.0.0.1"]);
    release(&pools, "b");
    lab.pass(60);
    drop(grant(&pools, &catalog, "a"));
    assert_eq!(
        add(&pools, &catalog, "c"),
        ["10.0.0.1"],
        "one that had cooled down rests no second time"
    );
}

#[test]
fn a_repeated_add_gets_the_same_whatever_the_catalog_says_now() {
    let (lab, pools_now) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}"),
    );
    let pools = lab.open();
    add(&pools, &pools_now, "a");
    for later in [pools_now, Catalog::default()] {
        match reserve(&pools, &later, "a") {
            Ok(Reserved::Existing(allocation)) => {
                assert_eq!(texts(&allocation.assigned), ["10.0.0.1"]);
                assert_eq!(
                    (allocation.record, allocation.since),
                    (json!({"pod": "a"}).into(), 1_700_000_000)
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_second_request_of_an_owner_that_is_being_served_is_told_to_come_back() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}"),
    );
    let pools = lab.open();
    let first = grant(&pools, &catalog, "a");
    assert!(matches!(
        reserve(&pools, &catalog, "a"),
        Err(PoolError::Busy {
            doing: "adding",
            ..
        })
    ));
    assert!(matches!(
        wait(pools.release(&owner("a"))),
        Err(PoolError::Busy {
            doing: "adding",
            ..
        })
    ));
    wait(first.commit(json!(null))).unwrap();
    assert!(matches!(
        reserve(&pools, &catalog, "a"),
        Ok(Reserved::Existing(_))
    ));
}

#[test]
fn release_of_what_never_was_is_none_and_of_what_was_is_told_once() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}"),
    );
    let pools = lab.open();
    assert_eq!(release(&pools, "a"), None);
    add(&pools, &catalog, "a");
    assert_eq!(
        release(&pools, "a").map(|allocation| texts(&allocation.assigned)),
        Some(vec!["10.0.0.1".into()])
    );
    assert_eq!(release(&pools, "a"), None);
}

#[test]
fn addresses_stay_held_when_their_pool_goes_or_another_comes_to_cover_them() {
    let lab = Lab::new();
    let before = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}");
    let after = catalog("q: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}");
    let pools = lab.open();
    assert_eq!(add(&pools, &before, "a"), ["10.0.0.1"]);
    let reserved = grant(&pools, &before, "b");
    assert_eq!(
        add(&pools, &after, "c"),
        ["10.0.0.3"],
        "not one that is held or only reserved from the old pool"
    );
    drop(reserved);
    assert_eq!(
        add(&pools, &after, "d"),
        ["10.0.0.2"],
        "given back to the pool that covers it now"
    );
    release(&pools, "a");
    let usage = &pools.usage(&after)[0];
    assert_eq!(
        (usage.total, usage.used, usage.in_cooldown, usage.free),
        (3, 2, 1, 0)
    );
    lab.pass(60);
    assert_eq!(add(&pools, &after, "e"), ["10.0.0.1"]);
}

#[test]
fn a_huge_pool_costs_nothing_until_it_is_used() {
    let lab = Lab::new();
    let ips = "ips: ['fd00::-fd00::ffff:ffff:ffff:ffff']";
    let catalog = catalog(&format!(
        "p: {{subnet: 'fd00::/64', {ips}, default: true, gateway: 'fe80::1'}}"
    ));
    let pools = lab.open();
    assert_eq!(
        add(&pools, &catalog, "a"),
        ["fd00::1"],
        "not the subnet-router anycast address"
    );
    let usage = &pools.usage(&catalog)[0];
    assert_eq!((usage.total, usage.used), ((1 << 64) - 1, 1));
    assert_eq!(serde_json::to_value(usage).unwrap()["family"], json!("v6"));
}

#[test]
fn the_record_can_be_replaced() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}"),
    );
    let pools = lab.open();
    assert!(matches!(
        wait(pools.update_record(&owner("a"), json!(1))),
        Err(PoolError::NotHeld { .. })
    ));
    add(&pools, &catalog, "a");
    wait(pools.update_record(&owner("a"), json!({"plan": 2}))).unwrap();
    assert_eq!(get(&pools, &owner("a")).unwrap().record, json!({"plan": 2}));
    drop(pools);
    assert_eq!(
        get(&lab.open(), &owner("a")).unwrap().record,
        json!({"plan": 2})
    );
}

#[test]
fn what_was_never_used_is_given_back_without_a_rest_and_a_restart_agrees() {
    let lab = Lab::new();
    let catalog = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}");
    let pools = lab.open();
    let first = add(&pools, &catalog, "one");
    assert!(wait(pools.release_unused(&owner("one"))).unwrap().is_some());
    assert_eq!(add(&pools, &catalog, "two"), first);
    wait(pools.release_unused(&owner("two"))).unwrap();
    drop(pools);
    let pools = lab.open();
    assert_eq!(add(&pools, &catalog, "three"), first);
}

#[test]
fn an_address_tells_who_has_it_who_had_it_and_how_long_it_rests() {
    let lab = Lab::new();
    let catalog = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}");
    let pools = lab.open();
    let address: IpAddr = [10, 0, 0, 1].into();
    assert_eq!(pools.lookup(address), AddressStatus::default());
    let open = grant(&pools, &catalog, "a");
    let standing = pools.lookup(address);
    assert_eq!(
        (standing.holder, standing.allocation),
        (Some(owner("a")), None)
    );
    let allocation = wait(open.commit(json!(1))).unwrap();
    assert_eq!(pools.lookup(address).allocation, Some(allocation));
    lab.pass(100);
    release(&pools, "a");
    lab.pass(20);
    let past = vec![Past {
        owner: owner("a"),
        pod: None,
        since: 1_700_000_000,
        until: 1_700_000_100,
    }];
    let released = AddressStatus {
        released_at: Some(1_700_000_100),
        cooldown_for: 40_000,
        past,
        ..AddressStatus::default()
    };
    assert_eq!(pools.lookup(address), released);
    lab.pass(60);
    assert_eq!(pools.lookup(address).cooldown_for, 0);
    add(&pools, &catalog, "b");
    assert_eq!(pools.lookup(address).released_at, None);
    assert_eq!(pools.lookup(address).past.len(), 1);
}
