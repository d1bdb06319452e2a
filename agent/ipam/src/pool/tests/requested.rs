//! Requested addresses.

use super::*;

const POOLS: &str = "
    a: {subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.13], default: true}
    b: {subnet: 10.0.1.0/24, ips: [10.0.1.10-10.0.1.13], default: true}
    six: {subnet: 'fd00::/64', ips: ['fd00::10-fd00::13'], default: true}
    away: {subnet: 10.0.2.0/24, ips: [10.0.2.10], default: true, nodeName: [other]}
";

fn ask(
    pools: &Pools,
    catalog: &Catalog,
    container: &str,
    pod: &str,
    requested_addresses: &[&str],
) -> Result<Vec<String>, PoolError> {
    let requested_addresses: Vec<IpAddr> = requested_addresses
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    let subject = Subject {
        pod: Object::named(pod),
        namespace: Object::named("shop"),
        pod_uid: container.to_owned(),
        ..Subject::UNKNOWN
    };
    let owner = owner(container);
    let request = Request {
        subject: &subject,
        requested_addresses: &requested_addresses,
        ..Request::new(&owner, "node", catalog)
    };
    match pools.reserve(&request)? {
        Reserved::New(grant) => Ok(texts(&wait(grant.commit(json!({}))).unwrap().assigned)),
        Reserved::Existing(allocation) => Ok(texts(&allocation.assigned)),
    }
}

#[test]
fn a_pod_gets_the_addresses_it_asks_for_and_any_of_the_other_family() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    for (container, requested_addresses, expected) in [
        ("one", vec!["10.0.1.12"], ["10.0.1.12", "fd00::10"]),
        ("two", vec!["fd00::13"], ["10.0.0.10", "fd00::13"]),
        (
            "three",
            vec!["fd00::12", "10.0.0.13"],
            ["10.0.0.13", "fd00::12"],
        ),
        // A repeated ADD returns what the pod has.
        ("one", vec!["10.0.1.12"], ["10.0.1.12", "fd00::10"]),
    ] {
        let found = ask(&pools, &catalog, container, container, &requested_addresses);
        assert_eq!(found.unwrap(), expected, "{container}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason_and_nothing_is_taken() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    ask(&pools, &catalog, "first", "first", &["10.0.0.11"]).unwrap();
    let before = pools.list().len();
    for (requested_addresses, said) in [
        (vec!["10.0.0.11"], "in use: eth0 of container first"),
        (
            vec!["fd00::10", "10.9.9.9"],
            "not among the addresses of the pools that serve this pod (a, b)",
        ),
        (vec!["10.0.2.10"], "not among"),
        (vec!["10.0.0.12", "10.0.1.12"], "one IPv4 address"),
        (vec!["fd00::99"], "not among"),
    ] {
        let error = ask(&pools, &catalog, "second", "second", &requested_addresses).unwrap_err();
        assert!(
            error.to_string().contains(said),
            "{requested_addresses:?}: {error}"
        );
        assert_eq!(pools.list().len(), before, "{requested_addresses:?}");
    }
    // All of it is still free.
    let found = ask(&pools, &catalog, "second", "second", &["10.0.0.12"]);
    assert_eq!(found.unwrap(), ["10.0.0.12", "fd00::11"]);
}

#[test]
fn a_family_that_no_pool_has_cannot_be_asked_for() {
    let lab = Lab::new();
    let pools = lab.open();
    let catalog = catalog("a: {subnet: 10.0.0.0/24, ips: [10.0.0.10], default: true}");
    let error = ask(&pools, &catalog, "one", "one", &["fd00::1"]).unwrap_err();
    assert!(error.to_string().contains("no IPv6 pool"), "{error}");
}

#[test]
fn a_released_address_rests_but_for_a_pod_of_the_same_name() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    let asked = ["10.0.0.12"];
    ask(&pools, &catalog, "one", "web-0", &asked).unwrap();
    release(&pools, "one").unwrap();
    let error = ask(&pools, &catalog, "two", "db-0", &asked).unwrap_err();
    assert!(error.to_string().contains("cools down for 60 s"), "{error}");
    let again = ask(&pools, &catalog, "three", "web-0", &asked).unwrap();
    assert_eq!(again[0], "10.0.0.12");
    release(&pools, "three").unwrap();
    lab.pass(61);
    assert_eq!(
        ask(&pools, &catalog, "four", "db-0", &asked).unwrap()[0],
        "10.0.0.12"
    );
}

#[test]
fn a_released_address_rests_but_for_the_same_container_where_no_pod_is_named() {
    let lab = Lab::new();
    let (pools, catalog) = (lab.open(), catalog(POOLS));
    let asked = ["10.0.0.12"];
    for _ in 0..2 {
        let found = ask(&pools, &catalog, "one", "", &asked).unwrap();
        assert_eq!(found, ["10.0.0.12", "fd00::10"]);
        release(&pools, "one").unwrap();
    }
    let error = ask(&pools, &catalog, "two", "", &asked).unwrap_err();
    assert!(error.to_string().contains("cools down for 60 s"), "{error}");
    // Without a request, too.
    let again = ask(&pools, &catalog, "one", "", &[]).unwrap();
    assert_eq!(again, ["10.0.0.12", "fd00::10"]);
}
