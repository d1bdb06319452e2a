//! Reservations, adopted and sticky, and a pod's own addresses in cooldown.

use ebbtide_types::Family;

use super::*;
use crate::catalog::AddressSet;

const POOLS: &str = "
    p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}
    other: {subnet: 10.1.0.0/24, ips: [10.1.0.1-10.1.0.3]}";

fn pod(name: &str, uid: &str) -> PodRef {
    PodRef {
        namespace: "shop".into(),
        name: name.into(),
        uid: uid.into(),
    }
}

fn stateful(name: &str, uid: &str) -> Subject {
    Subject {
        pod: Object::named(name),
        namespace: Object::named("shop"),
        pod_uid: uid.into(),
        controller: Some(Controller {
            kind: "StatefulSet".into(),
            name: "web".into(),
        }),
        ..Subject::UNKNOWN
    }
}

fn plain(name: &str, uid: &str) -> Subject {
    Subject {
        controller: None,
        ..stateful(name, uid)
    }
}

fn try_add(
    pools: &Pools,
    catalog: &Catalog,
    container: &str,
    subject: &Subject,
) -> Result<Vec<String>, PoolError> {
    let owner = owner(container);
    let request = Request {
        subject,
        ..Request::new(&owner, "node", catalog)
    };
    let Reserved::New(grant) = pools.reserve(&request)? else {
        panic!("{container} is there already");
    };
    Ok(texts(&wait(grant.commit(json!(null)))?.assigned))
}

fn add_as(pools: &Pools, catalog: &Catalog, container: &str, subject: &Subject) -> Vec<String> {
    try_add(pools, catalog, container, subject).unwrap()
}

fn adopt(
    pools: &Pools,
    catalog: &Catalog,
    pod: &PodRef,
    addresses: &[(&str, &str)],
) -> Result<bool, PoolError> {
    let addresses: Vec<(&str, IpAddr)> = addresses
        .iter()
        .map(|(pool, address)| (*pool, address.parse().unwrap()))
        .collect();
    let requested = Adopt {
        pod,
        interface: "eth0",
        addresses: &addresses,
    };
    wait(pools.adopt(&requested, catalog))
}

fn end(pools: &Pools, name: &str) -> Option<Reservation> {
    let key = ReservationKey {
        namespace: "shop".into(),
        name: name.into(),
        interface: "eth0".into(),
    };
    wait(pools.end_reservation(&key)).unwrap()
}

fn used(pools: &Pools, catalog: &Catalog) -> (u64, u64, u128) {
    let usage = &pools.usage(catalog)[0];
    (usage.used, usage.in_cooldown, usage.free)
}

#[test]
fn a_pod_in_a_new_sandbox_gets_the_address_back_that_it_just_released() {
    let (lab, catalog) = (Lab::new(), catalog(POOLS));
    let pools = lab.open();
    let other = plain("other", "u2");
    add_as(&pools, &catalog, "first", &plain("job", "u1"));
    for retry in 0..50 {
        release(&pools, if retry == 0 { "first" } else { "again" });
        lab.pass(1);
        let again = add_as(&pools, &catalog, "again", &plain("job", "u1"));
        assert_eq!(again, ["10.0.0.1"], "retry {retry}");
        assert_eq!(used(&pools, &catalog), (1, 0, 2), "retry {retry}");
    }
    release(&pools, "again");
    // Another pod, also of that name, and one of unknown uid: the address cools down for them.
    for (subject, address) in [
        (&plain("job", "u3"), "10.0.0.2"),
        (&plain("job", ""), "10.0.0.3"),
    ] {
        assert_eq!(add_as(&pools, &catalog, address, subject), [address]);
    }
    assert!(matches!(
        try_add(&pools, &catalog, "x", &other),
        Err(PoolError::Full(_))
    ));
    lab.pass(60);
    assert_eq!(add_as(&pools, &catalog, "x", &other), ["10.0.0.1"]);
    release(&pools, "x");
    assert!(
        matches!(
            try_add(&pools, &catalog, "late", &plain("job", "u1")),
            Err(PoolError::Full(_))
        ),
        "it was another's since"
    );
}

#[test]
fn an_own_resting_address_that_is_given_back_rests_on() {
    let (lab, catalog) = (Lab::new(), catalog(POOLS));
    let pools = lab.open();
    add_as(&pools, &catalog, "a", &plain("job", "u1"));
    release(&pools, "a");
    lab.pass(30);
    let (owner, subject) = (owner("b"), plain("job", "u1"));
    let request = Request {
        subject: &subject,
        ..Request::new(&owner, "node", &catalog)
    };
    drop(pools.reserve(&request).unwrap());
    assert_eq!(pools.lookup([10, 0, 0, 1].into()).cooldown_for, 30_000);
    assert_eq!(used(&pools, &catalog), (0, 1, 2));
}

#[test]
fn a_statefulset_pods_address_waits_for_its_next_sandbox_over_restarts() {
    let catalog = catalog(POOLS);
    let lab = Lab {
        sticky: true,
        ..Lab::new()
    };
    let pools = lab.open();
    assert_eq!(
        add_as(&pools, &catalog, "a", &stateful("web-0", "u1")),
        ["10.0.0.1"]
    );
    add_as(&pools, &catalog, "b", &plain("web-1", "u2"));
    for container in ["a", "b"] {
        release(&pools, container);
    }
    assert_eq!(
        used(&pools, &catalog),
        (1, 1, 1),
        "one waits, one cools down"
    );
    let reservations = pools.reservations();
    assert_eq!(reservations.len(), 1);
    assert_eq!(
        (reservations[0].reason, reservations[0].pod.to_string()),
        (Reason::Sticky, "shop/web-0".into())
    );
    drop(pools);
    lab.pass(100_000);
    let pools = lab.open();
    assert_eq!(pools.reservations(), reservations);
    let standing = pools.lookup([10, 0, 0, 1].into());
    assert_eq!(
        (standing.holder, standing.reservation),
        (None, Some(reservations[0].clone()))
    );
    for (container, address) in [("c", "10.0.0.3"), ("d", "10.0.0.2")] {
        assert_eq!(
            add(&pools, &catalog, container),
            [address],
            "not the one that waits"
        );
    }
    assert_eq!(
        add_as(&pools, &catalog, "e", &stateful("web-0", "u9")),
        ["10.0.0.1"]
    );
    assert_eq!(pools.reservations(), []);
    drop(pools);
    let pools = lab.open();
    assert_eq!((pools.reservations().len(), pools.list().len()), (0, 3));
}

#[test]
fn a_sticky_address_is_released_by_evidence_by_a_person_and_by_the_option() {
    let catalog = catalog(POOLS);
    let mut lab = Lab {
        sticky: true,
        ..Lab::new()
    };
    let pools = lab.open();
    add_as(&pools, &catalog, "a", &stateful("web-0", "u1"));
    release(&pools, "a");
    assert!(end(&pools, "web-0").is_some());
    assert_eq!(end(&pools, "web-0"), None);
    assert_eq!(used(&pools, &catalog), (0, 1, 2), "it cools down");
    add_as(&pools, &catalog, "b", &stateful("web-1", "u2"));
    assert!(
        wait(pools.release_permanently(&owner("b")))
            .unwrap()
            .is_some()
    );
    assert_eq!(pools.reservations(), []);
    add_as(&pools, &catalog, "c", &stateful("web-2", "u3"));
    release(&pools, "c");
    assert_eq!(pools.reservations().len(), 1);
    drop(pools);
    lab.sticky = false;
    for _ in 0..2 {
        let pools = lab.open();
        assert_eq!(pools.reservations(), []);
        assert_eq!(used(&pools, &catalog), (0, 3, 0));
    }
}

#[test]
fn an_address_that_waits_in_a_pool_the_pod_is_not_for_any_more_is_released() {
    let catalog = catalog(POOLS);
    let lab = Lab {
        sticky: true,
        ..Lab::new()
    };
    let pools = lab.open();
    add_as(&pools, &catalog, "a", &stateful("web-0", "u1"));
    release(&pools, "a");
    let moved = Subject {
        pod: Object {
            annotations: [(
                "ipam.spidernet.io/ippool".to_owned(),
                "{\"ipv4\": [\"other\"]}".to_owned(),
            )]
            .into(),
            ..Object::named("web-0")
        },
        ..stateful("web-0", "u2")
    };
    assert_eq!(add_as(&pools, &catalog, "b", &moved), ["10.1.0.1"]);
    assert_eq!(pools.reservations(), []);
    assert_eq!(used(&pools, &catalog), (0, 1, 2), "it cools down");
    drop(pools);
    assert_eq!(used(&lab.open(), &catalog), (0, 1, 2));
}

#[test]
fn a_request_that_does_not_commit_leaves_what_waits_waiting() {
    let catalog = catalog(POOLS);
    let lab = Lab {
        sticky: true,
        ..Lab::new()
    };
    let pools = lab.open();
    let subject = stateful("web-0", "u1");
    add_as(&pools, &catalog, "a", &subject);
    release(&pools, "a");
    let before = pools.reservations();
    let other = owner("b");
    let request = Request {
        subject: &subject,
        ..Request::new(&other, "node", &catalog)
    };
    let grant = pools.reserve(&request).unwrap();
    let key = before[0].key();
    assert!(matches!(
        wait(pools.end_reservation(&key)),
        Err(PoolError::ReservationBusy(_))
    ));
    drop(grant);
    assert_eq!(pools.reservations(), before);
    assert_eq!(add_as(&pools, &catalog, "b", &subject), ["10.0.0.1"]);
}

#[test]
fn an_adopted_address_is_its_pods_alone_and_is_adopted_once() {
    let (lab, catalog) = (Lab::new(), catalog(POOLS));
    let pools = lab.open();
    let web = pod("web", "u1");
    assert!(adopt(&pools, &catalog, &web, &[("p", "10.0.0.1")]).unwrap());
    drop(pools);
    let pools = lab.open();
    assert!(!adopt(&pools, &catalog, &web, &[("p", "10.0.0.1")]).unwrap());
    assert_eq!(used(&pools, &catalog), (1, 0, 2));
    assert_eq!(add(&pools, &catalog, "x"), ["10.0.0.2"]);
    assert_eq!(
        add_as(&pools, &catalog, "y", &plain("web", "u2")),
        ["10.0.0.3"],
        "a later pod of the name: the running one has it"
    );
    release(&pools, "y");
    assert_eq!(
        add_as(&pools, &catalog, "z", &plain("web", "u1")),
        ["10.0.0.1"],
        "its own next sandbox"
    );
    assert!(
        !adopt(&pools, &catalog, &web, &[("p", "10.0.0.1")]).unwrap(),
        "the pod has it, by its sandbox"
    );
    assert_eq!(pools.reservations(), []);
}

#[test]
fn what_cannot_be_adopted_is_refused_and_nothing_is_taken() {
    let catalog = catalog(&format!(
        "{POOLS}
         six: {{subnet: 'fd00::/64', ips: ['fd00::1-fd00::9']}}"
    ));
    let lab = Lab::new();
    let pools = lab.open();
    add(&pools, &catalog, "a");
    adopt(&pools, &catalog, &pod("db", "u7"), &[("p", "10.0.0.2")]).unwrap();
    let before = (pools.snapshot(), used(&pools, &catalog));
    for (name, addresses, expected) in [
        (
            "web",
            &[("p", "10.0.0.1")][..],
            "belongs to eth0 of container a",
        ),
        (
            "web",
            &[("p", "10.0.0.2")],
            "is reserved for eth0 of pod shop/db",
        ),
        (
            "web",
            &[("six", "fd00::1"), ("p", "10.0.0.1")],
            "belongs to",
        ),
        ("db", &[("p", "10.0.0.3")], "not all that the pod has"),
        (
            "db",
            &[("six", "fd00::1"), ("p", "10.0.0.2")],
            "not all that the pod has",
        ),
    ] {
        let error = adopt(&pools, &catalog, &pod(name, "u7"), addresses)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{name} {addresses:?}: {error}");
        assert_eq!((pools.snapshot(), used(&pools, &catalog)), before);
    }
    let both = [("six", "fd00::1"), ("p", "10.0.0.3")];
    assert!(adopt(&pools, &catalog, &pod("web", "u8"), &both).unwrap());
    assert!(!adopt(&pools, &catalog, &pod("web", "u8"), &both).unwrap());
    let reservation = end(&pools, "web").unwrap();
    assert_eq!(texts(&reservation.assigned), ["10.0.0.3", "fd00::1"]);
}

#[test]
fn a_running_pods_address_is_held_also_while_its_pool_is_not_there() {
    let (lab, before) = (Lab::new(), catalog("other: {subnet: 10.1.0.0/24}"));
    let pools = lab.open();
    assert!(adopt(&pools, &before, &pod("web", "u1"), &[("p", "10.0.0.1")]).unwrap());
    drop(pools);
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    assert_eq!(add(&pools, &catalog, "a"), ["10.0.0.2"]);
    // Its own pod gets it, with the pool's current settings.
    let again = add_as(&pools, &catalog, "b", &plain("web", "u1"));
    assert_eq!(again, ["10.0.0.1"]);
    let owner = owner("b");
    assert_eq!(get(&pools, &owner).unwrap().assigned[0].prefix_len, 24);
}

#[test]
fn reservations_that_could_not_be_written_are_as_they_were() {
    let catalog = catalog(POOLS);
    let subject = stateful("web-0", "u1");
    faults::at_every_change(|lab, disk, changes| {
        let lab = &Lab {
            sticky: true,
            ..Lab {
                dir: tempfile::tempdir().unwrap(),
                clock: Arc::clone(&lab.clock),
                ..Lab::new()
            }
        };
        let pools = disk.open(lab);
        add_as(&pools, &catalog, "a", &subject);
        disk.fail_after(changes);
        let mut failed = wait(pools.release(&owner("a"))).is_err();
        assert_eq!(pools.reservations().is_empty(), failed, "after {changes}");
        if !failed {
            let adopted = adopt(&pools, &catalog, &pod("db", "u7"), &[("p", "10.0.0.2")]);
            failed |= adopted.is_err();
            let again = try_add(&pools, &catalog, "b", &subject);
            failed |= again.is_err();
            let expected = usize::from(adopted.is_ok()) + usize::from(again.is_err());
            assert_eq!(pools.reservations().len(), expected, "after {changes}");
        }
        assert_eq!(disk.mend(), failed, "after {changes}");
        // Whatever failed works now, and the disk agrees.
        add(&pools, &catalog, "c");
        let before = (pools.list(), pools.reservations());
        drop(pools);
        let pools = disk.open(lab);
        assert_eq!(
            (pools.list(), pools.reservations()),
            before,
            "after {changes}"
        );
        failed
    });
}

#[test]
fn a_snapshot_says_whose_each_address_is_and_every_change_is_announced() {
    let (lab, catalog) = (Lab::new(), catalog(POOLS));
    let pools = lab.open();
    let mut changes = pools.subscribe();
    assert_eq!(pools.snapshot(), Snapshot::default());
    add_as(&pools, &catalog, "a", &plain("web", "u1"));
    adopt(&pools, &catalog, &pod("db", "u7"), &[("other", "10.1.0.3")]).unwrap();
    assert!(changes.has_changed().unwrap());
    let snapshot = pools.snapshot();
    assert_eq!(*changes.borrow_and_update(), snapshot.changes);
    let assignment = |pod, container_id: Option<&str>| Assignment {
        pod: Some(pod),
        interface: "eth0".into(),
        container_id: container_id.map(Into::into),
        since: 1_700_000_000,
    };
    let expected = [
        ("p", [10, 0, 0, 1], assignment(pod("web", "u1"), Some("a"))),
        ("other", [10, 1, 0, 3], assignment(pod("db", "u7"), None)),
    ];
    let expected =
        expected.map(|(pool, address, whose)| (pool.to_owned(), [(address.into(), whose)].into()));
    assert_eq!(snapshot.pools, expected.into());
    drop(grant(&pools, &catalog, "b"));
    assert!(!changes.has_changed().unwrap(), "nothing became durable");
    release(&pools, "a");
    assert!(changes.has_changed().unwrap());
    assert_eq!(pools.snapshot().pools.len(), 1);
}

#[test]
fn a_range_comes_and_goes_at_run_time_but_not_while_it_is_in_use() {
    let whole = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9], default: true}");
    let block = |text: &str| AddressSet::parse(text, Family::V4).unwrap();
    let leased = |text: &str| {
        let pool = whole.pools()[0].limited_to(&block(text));
        (pool.ranges.to_string(), pool)
    };
    assert_eq!(leased("10.0.0.8-10.0.0.200").0, "10.0.0.8-10.0.0.9");
    let lab = Lab::new();
    let pools = lab.open();
    for container in ["a", "b", "c"] {
        add(&pools, &whole, container);
    }
    release(&pools, "c");
    let error = pools.withdraw(&block("10.0.0.2-10.0.0.9")).unwrap_err();
    let expected = InUse {
        held: vec![[10, 0, 0, 2].into()],
        in_cooldown: vec![[10, 0, 0, 3].into()],
    };
    assert_eq!(error, expected);
    assert!(
        error
            .to_string()
            .contains("1 of these addresses are in use and 1 are in cooldown"),
        "{error}"
    );
    assert_eq!(used(&pools, &whole), (2, 1, 6), "nothing changed");
    pools.withdraw(&block("10.0.0.4-10.0.0.8")).unwrap();
    assert_eq!(
        used(&pools, &whole),
        (2, 1, 1),
        "whatever the catalog says still"
    );
    assert_eq!(add(&pools, &whole, "d"), ["10.0.0.9"]);
    assert!(matches!(
        reserve(&pools, &whole, "e"),
        Err(PoolError::Full(_))
    ));
    let adopted = adopt(&pools, &whole, &pod("db", "u"), &[("p", "10.0.0.4")]).unwrap_err();
    assert!(
        adopted
            .to_string()
            .contains("is no longer leased to this node"),
        "{adopted}"
    );
    pools.restore(&block("10.0.0.5-10.0.0.6"));
    assert_eq!(add(&pools, &whole, "e"), ["10.0.0.5"]);
    lab.pass(60);
    assert_eq!(
        pools.withdraw(&block("10.0.0.3")),
        Ok(()),
        "it has cooled down"
    );
    assert_eq!(add(&pools, &whole, "f"), ["10.0.0.6"]);
}
