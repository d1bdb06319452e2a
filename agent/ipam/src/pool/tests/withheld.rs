//! Addresses that are withheld for now.

use ebbtide_types::Family;

use super::*;
use crate::catalog::AddressSet;

const POOLS: &str = "
    p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.4], default: true}
    q: {subnet: 'fd00::/64', ips: ['fd00::1-fd00::ffff'], default: true}
";

fn withhold(pools: &Pools, addresses: &[&str]) {
    let reason = |text: &&str| (text.parse().unwrap(), "the node has it on ens6".to_owned());
    pools.withhold(Withheld::new(addresses.iter().map(reason)));
}

#[test]
fn what_is_withheld_is_passed_over_and_free_again_afterwards() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    withhold(&pools, &["10.0.0.1", "10.0.0.3", "fd00::1"]);
    assert_eq!(add(&pools, &catalog, "a"), ["10.0.0.2", "fd00::2"]);
    assert_eq!(add(&pools, &catalog, "b"), ["10.0.0.4", "fd00::3"]);
    let error = reserve(&pools, &catalog, "c").unwrap_err().to_string();
    assert!(
        error.contains(
            "pool p has 2 of 4 in use, 0 cooling down, 2 not given out (10.0.0.1: the node has it on ens6, \
             10.0.0.3: the node has it on ens6)"
        ),
        "{error}"
    );
    withhold(&pools, &["10.0.0.3"]);
    assert_eq!(add(&pools, &catalog, "c"), ["10.0.0.1", "fd00::1"]);
    assert!(reserve(&pools, &catalog, "d").is_err());
    withhold(&pools, &[]);
    assert_eq!(add(&pools, &catalog, "d"), ["10.0.0.3", "fd00::4"]);
}

#[test]
fn who_has_an_address_that_is_withheld_keeps_it_and_nobody_gets_it_afterwards() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    assert_eq!(add(&pools, &catalog, "a")[0], "10.0.0.1");
    withhold(&pools, &["10.0.0.1"]);
    let Ok(Reserved::Existing(allocation)) = reserve(&pools, &catalog, "a") else {
        panic!("a repeated ADD");
    };
    assert_eq!(texts(&allocation.assigned)[0], "10.0.0.1");
    let usage = &pools.usage(&catalog)[0];
    assert_eq!((usage.used, usage.free, usage.withheld.len()), (1, 3, 0));
    release(&pools, "a");
    lab.pass(61);
    for (container, address) in [("b", "10.0.0.2"), ("c", "10.0.0.3"), ("d", "10.0.0.4")] {
        assert_eq!(add(&pools, &catalog, container)[0], address);
    }
    assert!(reserve(&pools, &catalog, "e").is_err());
    let usage = &pools.usage(&catalog)[0];
    assert_eq!((usage.used, usage.free, usage.withheld.len()), (3, 0, 1));
    let standing = pools.lookup([10, 0, 0, 1].into());
    assert_eq!(
        standing.withheld.as_deref(),
        Some("the node has it on ens6")
    );
}

#[test]
fn what_is_asked_back_is_given_to_nobody_however_much_it_is() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    let set = |text: &str, family| AddressSet::parse_list(text, family).unwrap();
    assert_eq!(add(&pools, &catalog, "a"), ["10.0.0.1", "fd00::1"]);
    let asked_back = [
        set("10.0.0.1-10.0.0.2", Family::V4),
        // A prefix that nobody could look through one by one.
        set("fd00::-fd00::ffff:ffff:ffff", Family::V6).without(&set("fd00::7", Family::V6)),
    ];
    pools.withhold(Withheld::default().with_asked_back(asked_back.clone()));
    let usage = pools.usage(&catalog);
    let counts = |at: usize| {
        let usage = &usage[at];
        (usage.total, usage.used, usage.asked_back, usage.free)
    };
    assert_eq!(counts(0), (4, 1, 1, 2));
    assert_eq!(counts(1), (0xffff, 1, 0xfffd, 1));
    assert_eq!(add(&pools, &catalog, "b"), ["10.0.0.3", "fd00::7"]);
    let error = reserve(&pools, &catalog, "c").unwrap_err().to_string();
    assert!(
        error.contains("asked back by the cloud controller"),
        "{error}"
    );

    // Its pod keeps a used one, and then nobody gets it: not even the same pod again.
    let all = set("10.0.0.1-10.0.0.4", Family::V4);
    assert_eq!(
        pools.standing(&all).used,
        set("10.0.0.1, 10.0.0.3", Family::V4)
    );
    release(&pools, "a");
    assert_eq!(pools.standing(&all).resting, set("10.0.0.1", Family::V4));
    lab.pass(61);
    assert!(pools.standing(&all).resting.is_empty());
    assert!(reserve(&pools, &catalog, "a").is_err());
    pools.withhold(Withheld::default());
    assert_eq!(add(&pools, &catalog, "d")[0], "10.0.0.2");
}

#[test]
fn an_address_asked_for_by_name_that_is_withheld_is_refused_in_words() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    withhold(&pools, &["10.0.0.3"]);
    let owner = owner("a");
    let requested_addresses = ["10.0.0.3".parse().unwrap()];
    let request = Request {
        requested_addresses: &requested_addresses,
        ..Request::new(&owner, "node", &catalog)
    };
    assert_eq!(
        pools.reserve(&request).unwrap_err().to_string(),
        "the requested address 10.0.0.3 is not available: the node has it on ens6"
    );
    withhold(&pools, &[]);
    let Ok(Reserved::New(grant)) = pools.reserve(&request) else {
        panic!("it is free now");
    };
    assert_eq!(texts(grant.assigned())[0], "10.0.0.3");
}

#[test]
fn an_address_that_waits_for_a_pod_is_not_given_to_it_while_it_is_withheld() {
    let lab = Lab {
        sticky: true,
        ..Lab::new()
    };
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    let subject = Subject {
        pod: Object::named("web-0"),
        namespace: Object::named("shop"),
        controller: Some(Controller {
            kind: "StatefulSet".into(),
            name: "web".into(),
        }),
        ..Subject::UNKNOWN
    };
    let add = |container: &str| {
        let owner = owner(container);
        let request = Request {
            subject: &subject,
            ..Request::new(&owner, "node", &catalog)
        };
        let Ok(Reserved::New(grant)) = pools.reserve(&request) else {
            panic!("{container}");
        };
        texts(&wait(grant.commit(json!(0))).unwrap().assigned)
    };
    assert_eq!(add("a"), ["10.0.0.1", "fd00::1"]);
    release(&pools, "a");
    withhold(&pools, &["fd00::1"]);
    assert_eq!(add("b"), ["10.0.0.2", "fd00::2"], "both families or none");
    assert!(pools.reservations().is_empty());
}
