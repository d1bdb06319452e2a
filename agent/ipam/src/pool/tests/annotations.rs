//! Annotations of pods and namespaces.

use super::*;

const POOLS: &str = "
    d: {subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.19], gateway: 10.0.0.1, default: true}
    b: {subnet: 10.0.1.0/24, ips: [10.0.1.10-10.0.1.19], gateway: 10.0.1.1, routes: [{dst: 10.9.0.0/16, gw: 10.0.1.2}]}
    a: {subnet: 10.0.2.0/24, ips: [10.0.2.10-10.0.2.19]}
    w-node: {subnet: 10.0.3.0/24, ips: [10.0.3.10], nodeName: [node]}
    w-any: {subnet: 10.0.4.0/24, ips: [10.0.4.10]}
    w-else: {subnet: 10.0.5.0/24, ips: [10.0.5.10], nodeName: [else]}
    six: {subnet: 'fd00::/64', ips: ['fd00::10']}";

fn subject(pod: &[(&str, &str)], namespace: &[(&str, &str)]) -> Subject {
    let object = |name: &str, annotations: &[(&str, &str)]| Object {
        annotations: annotations
            .iter()
            .map(|(key, value)| (format!("ipam.spidernet.io/{key}"), (*value).to_owned()))
            .collect(),
        ..Object::named(name)
    };
    Subject {
        pod: object("web-0", pod),
        namespace: object("shop", namespace),
        ..Subject::UNKNOWN
    }
}

/// Returns what an interface gets, or the message.
fn given(interface: &str, subject: &Subject, source: Source<'_>) -> Result<Vec<Assigned>, String> {
    let lab = Lab::new();
    let catalog = catalog(POOLS);
    let owner = Owner {
        interface: interface.into(),
        ..owner("c")
    };
    let request = Request {
        subject,
        source,
        ..Request::new(&owner, "node", &catalog)
    };
    match lab.open().reserve(&request) {
        Ok(Reserved::New(grant)) => Ok(grant.assigned().to_vec()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn pools(pod: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Vec<String>, String> {
    given("eth0", &subject(pod, namespace), Source::Defaults)
        .map(|all| all.into_iter().map(|each| each.pool).collect())
}

fn names(names: &[&str]) -> Result<Vec<String>, String> {
    Ok(names.iter().map(ToString::to_string).collect())
}

#[test]
fn the_first_source_that_exists_wins() {
    let ippools = ("ippools", r#"[{"interface": "eth0", "ipv4": ["w-any"]}]"#);
    let ippool = ("ippool", r#"{"ipv4": ["b"]}"#);
    let space = [
        ("default-ipv4-ippool", r#"["a"]"#),
        ("default-ipv6-ippool", r#"["six"]"#),
    ];
    assert_eq!(pools(&[ippools, ippool], &space), names(&["w-any"]));
    assert_eq!(
        pools(&[ippool], &space),
        names(&["b"]),
        "the namespace's IPv6 pool is not mixed in"
    );
    assert_eq!(pools(&[], &space), names(&["a", "six"]));
    assert_eq!(pools(&[], &space[1..]), names(&["six"]));
    assert_eq!(
        pools(&[("ippool", "")], &[]),
        names(&["d"]),
        "empty is as good as none"
    );
    assert_eq!(pools(&[], &[]), names(&["d"]));
    let (own, none) = (["a".to_owned()], []);
    let network = Source::Named {
        ipv4: &own,
        ipv6: &none,
    };
    let by = |subject: &Subject| given("eth0", subject, network).map(|all| all[0].pool.clone());
    assert_eq!(by(&subject(&[], &[])), Ok("a".into()));
    assert_eq!(
        by(&subject(&[ippool], &[])),
        Ok("b".into()),
        "before the network's own"
    );
}

#[test]
fn there_is_no_fall_through_and_the_message_says_where_the_names_are_from() {
    let message = pools(&[("ippool", r#"{"ipv4": ["w-else"]}"#)], &[]).unwrap_err();
    assert!(
        message.contains("annotation ipam.spidernet.io/ippool"),
        "{message}"
    );
    assert!(
        message.contains("pool w-else is for node else"),
        "{message}"
    );
    let message = pools(&[("ippool", r#"{"ipv4": ["b"], "ipv6": ["tpyo"]}"#)], &[]).unwrap_err();
    assert!(
        message.contains("pool tpyo is named but not declared"),
        "{message}"
    );
}

#[test]
fn an_annotations_order_is_kept_and_a_pattern_stands_for_the_more_specific_first() {
    let lab = Lab::new();
    let catalog = catalog(POOLS);
    let pools = lab.open();
    let subject = subject(&[("ippool", r#"{"ipv4": ["w-*", "a", "?"]}"#)], &[]);
    let mut order: Vec<String> = Vec::new();
    for number in 0..40 {
        let owner = owner(&number.to_string());
        let request = Request {
            subject: &subject,
            ..Request::new(&owner, "node", &catalog)
        };
        let Ok(Reserved::New(grant)) = pools.reserve(&request) else {
            break;
        };
        order.push(grant.assigned()[0].pool.clone());
        wait(grant.commit(json!(null))).unwrap();
    }
    let count = order.len();
    order.dedup();
    assert_eq!(order, ["w-node", "w-any", "a", "b", "d"]);
    assert_eq!(count, 2 + 3 * 10, "and none was tried twice");
}

#[test]
fn a_pattern_that_nothing_fits_is_a_mistake_that_is_told() {
    let message = pools(&[("ippool", r#"{"ipv4": ["a"], "ipv6": ["none-*"]}"#)], &[]).unwrap_err();
    assert!(
        message.contains("pool none-* is a pattern that no pool fits"),
        "{message}"
    );
}

#[test]
fn each_interface_has_its_item_by_name_or_by_position() {
    let named = r#"[{"interface": "net1", "ipv4": ["b"], "cleangateway": true}, {"interface": "eth0", "ipv4": ["d"]}]"#;
    let placed = r#"[{"ipv4": ["d"]}, {"ipv4": ["b"], "cleangateway": true}]"#;
    for text in [named, placed] {
        let subject = subject(&[("ippools", text)], &[]);
        let get = |interface| {
            given(interface, &subject, Source::Defaults)
                .unwrap()
                .remove(0)
        };
        let (eth0, net1) = (get("eth0"), get("net1"));
        assert_eq!(
            (eth0.pool.as_str(), eth0.gateway.is_some()),
            ("d", true),
            "{text}"
        );
        assert_eq!((net1.pool.as_str(), net1.gateway), ("b", None), "{text}");
        assert_eq!(net1.routes.len(), 1, "only the default route is cleaned");
        let message = given("net2", &subject, Source::Defaults).unwrap_err();
        assert!(
            message.contains("says nothing of interface net2, only of eth0, net1"),
            "{message}"
        );
    }
}

#[test]
fn routes_go_to_the_interface_whose_subnet_has_their_gateway() {
    let routes =
        r#"[{"dst": "10.9.0.0/16", "gw": "10.0.1.7"}, {"dst": "10.8.0.0/16", "gw": "10.0.2.7"}]"#;
    let subject = subject(&[("routes", routes), ("ippool", r#"{"ipv4": ["b"]}"#)], &[]);
    let assigned = given("eth0", &subject, Source::Defaults).unwrap().remove(0);
    let texts: Vec<String> = assigned
        .routes
        .iter()
        .map(|route| format!("{} via {}", route.dst, route.gateway))
        .collect();
    assert_eq!(
        texts,
        ["10.9.0.0/16 via 10.0.1.7"],
        "in place of the pool's own to there"
    );
}

#[test]
fn what_cannot_be_followed_is_named_with_its_object_and_value() {
    for (annotation, value, message) in [
        ("ippool", "[", "is not an object in JSON"),
        ("ippool", "{}", "names no pool"),
        (
            "ippool",
            r#"{"ipv4": ["a b"]}"#,
            "neither a pool's name nor a pattern",
        ),
        (
            "ippool",
            r#"{"ipv4": ["w-["]}"#,
            "neither a pool's name nor a pattern",
        ),
        ("ippools", r#"{"ipv4": ["a"]}"#, "is not a list in JSON"),
        ("ippools", "[]", "only of none"),
        ("ippools", r#"[{"interface": "eth0"}]"#, "names no pool"),
        (
            "ippools",
            r#"[{"interface": "eth0", "ipv4": ["a"]}, {"ipv4": ["a"]}]"#,
            "of some items and not of others",
        ),
        (
            "ippools",
            r#"[{"interface": "eth0", "ipv4": ["a"]}, {"interface": "eth0", "ipv4": ["b"]}]"#,
            "names interface eth0 twice",
        ),
        (
            "routes",
            r#"[{"dst": "x", "gw": "10.0.0.1"}]"#,
            "not a prefix and an address",
        ),
        (
            "routes",
            r#"[{"dst": "fd00::/64", "gw": "10.0.0.1"}]"#,
            "mixes the families",
        ),
        (
            "routes",
            r#"[{"dst": "10.9.0.0/16", "gw": "10.0.0.1"}, {"dst": "10.9.1.1/16", "gw": "10.0.0.2"}]"#,
            "two routes to 10.9.0.0/16",
        ),
        (
            "subnet",
            r#"{"ipv4": ["s"]}"#,
            "is not supported: this agent makes no pools; name pools with ipam.spidernet.io/ippool",
        ),
        (
            "subnets",
            r#"[{"interface": "eth0", "ipv4": ["s"]}]"#,
            "is not supported: this agent makes no pools; name pools with ipam.spidernet.io/ippool",
        ),
        (
            "ippools",
            r#"[{"interface": "net1", "ipv4": ["b"]}]"#,
            "says nothing of interface eth0, only of net1; add an item for the interface",
        ),
        // Ignored, these would leave the pod without a family, or give it other pools' addresses.
        (
            "ippool",
            r#"{"ipv4pools": ["a"], "ipv6": ["b"]}"#,
            "\"ipv4pools\" seems to name pools",
        ),
        (
            "ippool",
            r#"{"interface": "net1", "ipv4": ["a"]}"#,
            "is for another interface",
        ),
        (
            "ippools",
            r#"[{"interface": "eth0", "IPv4": ["a"], "ipv6": ["b"]}]"#,
            "\"IPv4\" seems to name pools",
        ),
        (
            "routes",
            r#"[{"dst": "10.09.0.0/16", "gw": "10.0.0.1"}]"#,
            "not a prefix and an address",
        ),
    ] {
        let error = pools(&[(annotation, value)], &[]).unwrap_err();
        let start = format!("pod web-0: annotation ipam.spidernet.io/{annotation} = ");
        assert!(
            error.starts_with(&start) && error.contains(message),
            "{annotation} {value}: {error}"
        );
    }
    let error = pools(&[], &[("default-ipv4-ippool", "a")]).unwrap_err();
    assert!(error.starts_with("namespace shop: annotation"), "{error}");
}
