//! Problems that users of other plugins reported, and that Ebbtide does not have. The numbers are those projects'.
//!
//! Not here: what involves the kernel or the API server. Two owners of one address and lost allocations after
//! a crash (#412, #2526): `model`, `faults` and `durability`. A pod that fails over and over and takes another
//! address each time (#5700), a StatefulSet's address that is given to another pod or kept where the pod may
//! not have it (#3751, 2.8): `reservations`. Deletion is known by evidence (#1659): the agent's sweep.

use super::*;

/// Spiderpool: one IPv6 default pool of node A makes every IPv4-only pod of node B fail.
#[test]
fn a_pool_that_concerns_other_nodes_only_never_makes_a_pod_here_fail() {
    for other in [
        "nodeName: [else]",
        "nodeAffinity: {matchLabels: {zone: else}}",
        "namespaceName: [else]",
        "multusName: [else/else]",
        "podAffinity: {matchLabels: {app: else}}",
    ] {
        let lab = Lab::new();
        let catalog = catalog(&format!(
            "four: {{subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}}
             six: {{subnet: 'fd00::/64', ips: ['fd00::1'], default: true, {other}}}"
        ));
        assert_eq!(add(&lab.open(), &catalog, "a"), ["10.0.0.1"], "{other}");
    }
}

/// Spiderpool 2.4, #2042: pools of equal rank in the random order of a Go map.
#[test]
fn equal_pools_are_tried_in_the_same_order_every_time() {
    let lab = Lab::new();
    let pools = lab.open();
    let first = "zeta: {subnet: 10.0.0.0/24, ips: [10.0.0.9], default: true}";
    let second = "alpha: {subnet: 10.0.1.0/24, ips: [10.0.1.9], default: true}";
    for text in [format!("{first}\n{second}"), format!("{second}\n{first}")] {
        let catalog = catalog(&text);
        for _ in 0..20 {
            let grant = grant(&pools, &catalog, "a");
            assert_eq!(grant.assigned()[0].pool, "alpha");
        }
    }
}

/// Spiderpool 2.5; amazon-vpc-cni-k8s #3628: the lowest free address is reused, which a pod
/// released a moment ago, while neighbours and load balancers still send to it.
#[test]
fn an_address_is_not_reused_at_once() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}"),
    );
    let pools = lab.open();
    assert_eq!(add(&pools, &catalog, "a"), ["10.0.0.1"]);
    release(&pools, "a");
    assert_eq!(add(&pools, &catalog, "b"), ["10.0.0.2"]);
    assert_eq!(add(&pools, &catalog, "c"), ["10.0.0.3"]);
    assert!(matches!(
        reserve(&pools, &catalog, "d"),
        Err(PoolError::Full(_))
    ));
}

/// Spiderpool 2.5: two interfaces of one pod in one pool get one address.
#[test]
fn two_interfaces_of_a_pod_in_one_pool_get_two_addresses() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}"),
    );
    let pools = lab.open();
    let owners = ["eth0", "net1"].map(|interface| Owner {
        interface: interface.into(),
        ..owner("c")
    });
    let granted = owners.each_ref().map(|owner| {
        pools
            .reserve(&Request::new(owner, "node", &catalog))
            .unwrap()
    });
    let [Reserved::New(eth0), Reserved::New(net1)] = &granted else {
        panic!("{granted:?}")
    };
    assert_ne!(eth0.assigned()[0].address, net1.assigned()[0].address);
}

/// Spiderpool #4295: one interface's pool is full, and each retry takes another address of the other.
#[test]
fn a_full_pool_of_one_interface_does_not_drain_the_pool_of_another() {
    let (lab, catalog) = (
        Lab::new(),
        catalog(
            "one: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}
             two: {subnet: 10.0.1.0/24, ips: [10.0.1.1], default: true}",
        ),
    );
    let pools = lab.open();
    let (one, two, none) = (["one".to_owned()], ["two".to_owned()], []);
    let named = |names| Source::Named {
        ipv4: names,
        ipv6: &none,
    };
    let blocker = owner("blocker");
    let request = Request {
        source: named(&two),
        ..Request::new(&blocker, "node", &catalog)
    };
    let _full = pools.reserve(&request).unwrap();
    for attempt in 0..100 {
        let container = format!("attempt-{attempt}");
        let eth0 = owner(&container);
        let net1 = Owner {
            interface: "net1".into(),
            ..owner(&container)
        };
        let [one, two] = [
            Request {
                source: named(&one),
                ..Request::new(&eth0, "node", &catalog)
            },
            Request {
                source: named(&two),
                ..Request::new(&net1, "node", &catalog)
            },
        ];
        let taken = pools.reserve(&one).unwrap();
        let error = pools.reserve(&two).unwrap_err();
        // A failed ADD releases what it took.
        drop(taken);
        assert!(
            error.to_string().contains("pool two has 1 of 1 in use"),
            "{error}"
        );
        assert_eq!(pools.usage(&catalog)[0].free, 2, "attempt {attempt}");
    }
}

/// Spiderpool #3699, #4916: the leftovers of an earlier pod of the same name keep a new one from starting.
#[test]
fn a_pod_of_the_same_name_does_not_wait_for_the_earlier_one() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}"),
    );
    let pools = lab.open();
    let subject = Subject {
        pod: Object::named("job"),
        namespace: Object::named("shop"),
        ..Subject::UNKNOWN
    };
    for (container, address) in [
        ("first-sandbox", "10.0.0.1"),
        ("second-sandbox", "10.0.0.2"),
    ] {
        let owner = owner(container);
        let request = Request {
            subject: &subject,
            ..Request::new(&owner, "node", &catalog)
        };
        let Ok(Reserved::New(grant)) = pools.reserve(&request) else {
            panic!("{container}")
        };
        assert_eq!(texts(grant.assigned()), [address]);
        wait(grant.commit(json!(null))).unwrap();
    }
    release(&pools, "first-sandbox");
    assert_eq!(
        pools.list().len(),
        1,
        "a late DEL of the old sandbox leaves the new one alone"
    );
}

/// cni-plugins #170, Spiderpool #2517: "used out" though addresses are free, after a reboot at any point.
#[test]
fn a_pool_is_as_free_after_a_thousand_restarts_of_one_pod_as_before() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}"),
    );
    let pools = lab.open();
    for round in 0..1000 {
        let container = round.to_string();
        add(&pools, &catalog, &container);
        if round % 3 == 0 {
            drop(grant(&pools, &catalog, "gave-up"));
        }
        release(&pools, &container);
        lab.pass(60);
    }
    let usage = &pools.usage(&catalog)[0];
    assert_eq!((usage.used, usage.in_cooldown, usage.free), (0, 0, 3));
}

/// Spiderpool #3771: the counts do not match what is allocated.
#[test]
fn counts_are_right_for_pools_in_use_idle_moved_and_reserved() {
    let lab = Lab::new();
    let pools = lab.open();
    let before = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.4], default: true}");
    for container in ["a", "b", "c"] {
        add(&pools, &before, container);
    }
    release(&pools, "a");
    let counts = |catalog: &Catalog| -> Vec<(u64, u64, u128)> {
        let usage = pools.usage(catalog).into_iter();
        usage
            .map(|each| (each.used, each.in_cooldown, each.free))
            .collect()
    };
    assert_eq!(counts(&before), [(2, 1, 1)]);
    let split = catalog(
        "x: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}
         y: {subnet: 10.0.0.0/24, ips: [10.0.0.3-10.0.0.4], default: true}",
    );
    assert_eq!(
        counts(&split),
        [(1, 1, 0), (1, 0, 1)],
        "idle: counted without a picker"
    );
    assert_eq!(add(&pools, &split, "d"), ["10.0.0.4"]);
    assert_eq!(counts(&split), [(1, 1, 0), (2, 0, 0)]);
    lab.pass(60);
    assert_eq!(counts(&split), [(1, 0, 1), (2, 0, 0)]);
}

/// Spiderpool 1.1: `disable` stops new allocations, and existing ones can still be released.
#[test]
fn a_disabled_pool_gives_nothing_new_and_takes_everything_back() {
    let lab = Lab::new();
    let pools = lab.open();
    let on = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}");
    let off =
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true, disable: true}");
    add(&pools, &on, "a");
    assert!(matches!(
        reserve(&pools, &off, "b"),
        Err(PoolError::NoAddress(_))
    ));
    assert!(
        matches!(reserve(&pools, &off, "a"), Ok(Reserved::Existing(_))),
        "a repeated ADD"
    );
    assert!(release(&pools, "a").is_some());
}

/// Spiderpool 1.5, 2.5: reserved addresses, the gateway, the network and the broadcast address.
#[test]
fn what_is_no_pods_is_never_handed_out() {
    let lab = Lab::new();
    let text = "
---
{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: p}, spec:
  {subnet: 10.0.0.0/29, ips: [10.0.0.0-10.0.0.7], excludeIPs: [10.0.0.1, 10.0.0.5], gateway: 10.0.0.1, default: true}}
---
{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderReservedIP, metadata: {name: r}, spec: {ips: [10.0.0.3]}}
";
    let catalog = Catalog::from_texts([(Path::new("m.yaml"), text)]);
    assert_eq!(catalog.problems(), []);
    let pools = lab.open();
    let given: Vec<String> = (0..3)
        .flat_map(|each| add(&pools, &catalog, &each.to_string()))
        .collect();
    assert_eq!(given, ["10.0.0.2", "10.0.0.4", "10.0.0.6"]);
    assert!(matches!(
        reserve(&pools, &catalog, "x"),
        Err(PoolError::Full(_))
    ));
    let usage = &pools.usage(&catalog)[0];
    assert_eq!((usage.total, usage.reserved, usage.used), (3, 1, 3));
}

/// An address that is reserved while a pod has it: the pod keeps it, no later pod gets it.
#[test]
fn an_address_reserved_while_it_is_in_use_stays_until_it_is_released() {
    let lab = Lab::new();
    let pools = lab.open();
    let pool = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: p}, spec: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], default: true}}";
    let reserved = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderReservedIP, metadata: {name: r}, spec: {ips: [10.0.0.1]}}";
    let before = Catalog::from_texts([(Path::new("m.yaml"), pool)]);
    let both = format!("{pool}\n---\n{reserved}\n");
    let after = Catalog::from_texts([(Path::new("m.yaml"), both.as_str())]);
    add(&pools, &before, "a");
    assert_eq!(pools.usage(&after)[0].used, 1);
    assert!(matches!(
        reserve(&pools, &after, "a"),
        Ok(Reserved::Existing(_))
    ));
    release(&pools, "a");
    lab.pass(60);
    assert_eq!(add(&pools, &after, "b"), ["10.0.0.2"]);
    assert!(matches!(
        reserve(&pools, &after, "c"),
        Err(PoolError::Full(_))
    ));
}

/// Spiderpool 5, #49: "all pools are used out", without which pools, and why not the others.
#[test]
fn a_failed_allocation_explains_every_candidate() {
    let lab = Lab::new();
    let catalog = catalog(
        "full: {subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}
         released: {subnet: 10.0.1.0/24, ips: [10.0.1.1], default: true}
         off: {subnet: 10.0.2.0/24, ips: [10.0.2.1], default: true, disable: true}
         elsewhere: {subnet: 10.0.3.0/24, ips: [10.0.3.1], default: true, nodeName: [n2, n3]}
         labelled: {subnet: 10.0.4.0/24, ips: [10.0.4.1], default: true, podAffinity: {matchLabels: {app: db}}}
         wired: {subnet: 10.0.5.0/24, ips: [10.0.5.1], default: true, multusName: [kube-system/ens9]}",
    );
    let pools = lab.open();
    add(&pools, &catalog, "a");
    add(&pools, &catalog, "b");
    release(&pools, "b");
    lab.pass(18);
    let error = reserve(&pools, &catalog, "c").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no free IPv4 address: \
         pool full has 1 of 1 in use, 0 cooling down; \
         pool released has 0 of 1 in use, 1 cooling down (the next one free in 42 s); \
         pool labelled has podAffinity, and the agent does not know the pod's labels; \
         pool elsewhere is for node n2, n3; \
         pool wired is for network kube-system/ens9; \
         pool off is disabled. \
         Delete pods, wait, or add addresses (spec.ips) or a pool for this node"
    );
}

/// Spiderpool #1375, #979; cni-plugins #171: more than a thousand pods at once conflict with one another, and
/// allocation still fails after twenty minutes.
#[test]
fn a_thousand_pods_at_once_are_served_at_their_first_try() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/16, ips: [10.0.1.0-10.0.4.231], default: true}"),
    );
    let pools = lab.open();
    let commits = (0..1000).map(|each: u16| {
        let grant = grant(&pools, &catalog, &each.to_string());
        grant.commit(json!(each))
    });
    let all = wait(futures::future::try_join_all(commits)).unwrap();
    let given: std::collections::BTreeSet<IpAddr> = all
        .iter()
        .flat_map(|each| addresses(&each.assigned))
        .collect();
    assert_eq!(given.len(), 1000);
    assert_eq!(pools.usage(&catalog)[0].free, 0);
    drop(pools);
    assert_eq!(lab.open().list().len(), 1000);
}

/// Spiderpool 2.11: a pool is one object with at most 5000 records, all rewritten every time.
#[test]
fn a_pool_of_tens_of_thousands_is_served_to_its_last_address() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/16, ips: [10.0.1.0-10.0.60.255], default: true}"),
    );
    let pools = lab.open();
    let total = pools.usage(&catalog)[0].total;
    let mut grants = Vec::new();
    while let Ok(Reserved::New(grant)) = reserve(&pools, &catalog, &grants.len().to_string()) {
        grants.push(grant);
    }
    assert_eq!((grants.len() as u128, total), (60 * 256, 60 * 256));
    let error = reserve(&pools, &catalog, "one-more")
        .unwrap_err()
        .to_string();
    assert!(error.contains("has 15360 of 15360 in use"), "{error}");
}
