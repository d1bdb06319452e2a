use super::*;
use crate::catalog::Affinities;

#[test]
fn a_pool_of_the_walk_through_is_read_as_it_is_meant() {
    let catalog = catalog(
        r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: master-v4-ens5
spec:
  subnet: 172.31.16.0/20
  ips:
    - 172.31.16.4-172.31.16.8
    - 172.31.16.9
    - 172.31.16.0
    - 172.31.31.255
  excludeIPs: ["172.31.16.6"]
  gateway: 172.31.16.1
  routes: [{dst: 10.1.2.3/8, gw: 172.31.16.2}]
  default: true
  nodeName: ["master"]
  multusName: ["default/ipvlan-ens5", "other"]
"#,
    );
    assert_eq!(catalog.problems(), []);
    let pool = catalog.pool("master-v4-ens5").unwrap();
    assert_eq!(pool.family, Family::V4, "inferred");
    assert_eq!(
        pool.ranges.to_string(),
        "172.31.16.4-172.31.16.5, 172.31.16.7-172.31.16.9",
        "merged, without the excluded, network and broadcast addresses"
    );
    assert_eq!(pool.gateway, Some([172, 31, 16, 1].into()));
    assert_eq!(
        pool.routes,
        [Route {
            dst: "10.0.0.0/8".parse().unwrap(),
            gateway: [172, 31, 16, 2].into()
        }]
    );
    assert_eq!(pool.node_names, ["master"]);
    let networks: Vec<String> = pool.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["default/ipvlan-ens5", "other"]);
    assert!(pool.default && !pool.disabled);
}

#[test]
fn addresses_that_are_no_hosts_are_never_in_a_pool() {
    let cases = [
        (
            "{subnet: 10.0.0.0/30, ips: [10.0.0.0-10.0.0.3]}",
            "10.0.0.1-10.0.0.2",
        ),
        (
            "{subnet: 10.0.0.0/31, ips: [10.0.0.0-10.0.0.1]}",
            "10.0.0.0-10.0.0.1",
        ),
        ("{subnet: 10.0.0.7/32, ips: [10.0.0.7]}", "10.0.0.7"),
        (
            "{subnet: 'fd00::/126', ips: ['fd00::-fd00::3']}",
            "fd00::1-fd00::3",
        ),
        (
            "{subnet: 'fd00::/127', ips: ['fd00::-fd00::1']}",
            "fd00::-fd00::1",
        ),
        (
            "{subnet: 'fd00::/64', gateway: 'fe80::1', ips: ['fd00::1']}",
            "fd00::1",
        ),
        ("{subnet: 10.0.0.0/24}", ""),
    ];
    for (spec, ranges) in cases {
        let catalog = catalog(&pool("p", spec));
        assert_eq!(catalog.problems(), [], "{spec}");
        assert_eq!(catalog.pools()[0].ranges.to_string(), ranges, "{spec}");
    }
}

#[test]
fn each_broken_rule_names_the_field_the_value_and_the_way_out() {
    let base = |more: &str| format!("{{subnet: 10.0.0.0/24, {more}}}");
    let cases = [
        ("{}".to_owned(), "spec.subnet", "is missing"),
        (
            "{subnet: 10.0.0.0}".to_owned(),
            "spec.subnet",
            "is not a prefix",
        ),
        (
            base("ipVersion: 6"),
            "spec.ipVersion",
            "the subnet 10.0.0.0/24 is IPv4",
        ),
        (base("ipVersion: 5"), "spec.ipVersion", "neither 4 nor 6"),
        (
            base("ips: [10.0.0.1, 10.0.0]"),
            "spec.ips[1]",
            "neither an address nor a range",
        ),
        (
            base("ips: [10.0.0.9-10.0.0.1]"),
            "spec.ips[0]",
            "ends before it begins",
        ),
        (base("ips: ['fd00::1']"), "spec.ips[0]", "is not IPv4"),
        (
            base("ips: [10.0.0.250-10.0.1.2]"),
            "spec.ips[0]",
            "not inside the subnet",
        ),
        (
            base("excludeIPs: [10.0.1.2]"),
            "spec.excludeIPs[0]",
            "not inside the subnet",
        ),
        (base("gateway: ten"), "spec.gateway", "is not an address"),
        (
            base("gateway: 'fe80::1'"),
            "spec.gateway",
            "is not IPv4 as the subnet is",
        ),
        (
            "{subnet: 'fd00::/64', gateway: 10.0.0.1}".to_owned(),
            "spec.gateway",
            "is not IPv6 as the subnet is",
        ),
        (base("gateway: 10.0.0.0"), "spec.gateway", "broadcast"),
        (base("gateway: 10.0.0.255"), "spec.gateway", "broadcast"),
        (base("gateway: 224.0.0.1"), "spec.gateway", "a router can"),
        (base("gateway: 0.0.0.0"), "spec.gateway", "a router can"),
        (base("gateway: 127.0.0.1"), "spec.gateway", "a router can"),
        (
            base("gateway: 255.255.255.255"),
            "spec.gateway",
            "a router can",
        ),
        (
            "{subnet: 'fd00::/64', gateway: 'ff02::1'}".to_owned(),
            "spec.gateway",
            "a router can",
        ),
        (
            "{subnet: 'fd00::/64', gateway: '::1'}".to_owned(),
            "spec.gateway",
            "a router can",
        ),
        (
            base("ips: [10.0.0.1-10.0.0.5], gateway: 10.0.0.1"),
            "spec.gateway",
            "spec.excludeIPs",
        ),
        (
            base("routes: [{dst: 0.0.0.0/0, gw: 10.0.0.1}]"),
            "spec.routes[0].dst",
            "use spec.gateway",
        ),
        (
            base("routes: [{dst: 10.9.0.0, gw: 10.0.0.1}]"),
            "spec.routes[0].dst",
            "is not a prefix",
        ),
        (
            base("routes: [{dst: 'fd00::/64', gw: 10.0.0.1}]"),
            "spec.routes[0].dst",
            "is not IPv4",
        ),
        (
            base("routes: [{dst: 10.9.0.0/16, gw: 10.1.0.1}]"),
            "spec.routes[0].gw",
            "not inside the subnet",
        ),
        (
            base("routes: [{dst: 10.9.0.0/16, gw: x}]"),
            "spec.routes[0].gw",
            "is not an address",
        ),
        (
            base("routes: [{dst: 10.9.0.0/16, gw: 10.0.0.1}, {dst: 10.9.1.0/16, gw: 10.0.0.2}]"),
            "spec.routes[1].dst",
            "earlier route",
        ),
        (
            base("multusName: [a/b/c]"),
            "spec.multusName[0]",
            "namespace/name",
        ),
        (base("podAffinity: {}"), "spec.podAffinity", "is empty"),
        (
            base("podAffinity: {matchLabels: null, matchExpressions: []}"),
            "spec.podAffinity",
            "is empty",
        ),
        (
            base(
                "podAffinity: {matchExpressions: [{key: a, operator: Exists}, {key: a, operator: In}]}",
            ),
            "spec.podAffinity.matchExpressions[1]",
            "needs values",
        ),
        (
            base(
                "namespaceAffinity: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            ),
            "spec.namespaceAffinity.matchExpressions[0]",
            "must have no values",
        ),
        (
            base("nodeAffinity: {matchExpressions: [{key: '', operator: Exists}]}"),
            "spec.nodeAffinity.matchExpressions[0]",
            "has no key",
        ),
    ];
    for (spec, field, message) in cases {
        let catalog = catalog(&pool("p", &spec));
        assert_eq!(catalog.pools(), [], "{spec}");
        let [problem] = catalog.problems() else {
            panic!("{spec}: {:?}", catalog.problems())
        };
        assert_eq!(problem.object.as_deref(), Some("SpiderIPPool p"), "{spec}");
        assert_eq!(problem.field.as_deref(), Some(field), "{spec}: {problem}");
        assert!(problem.message.contains(message), "{spec}: {problem}");
    }
    let catalog = catalog(&pool("''", "{subnet: 10.0.0.0/24}"));
    assert_eq!(
        catalog.problems()[0].field.as_deref(),
        Some("metadata.name")
    );
}

#[test]
fn a_selector_without_conditions_is_for_all_nodes_and_namespaces() {
    for selector in [
        "{}",
        "{matchLabels: {}}",
        "{matchLabels: null, matchExpressions: []}",
    ] {
        for field in ["nodeAffinity", "namespaceAffinity"] {
            let spec = format!("{{subnet: 10.0.0.0/24, {field}: {selector}}}");
            let catalog = catalog(&pool("p", &spec));
            assert_eq!(catalog.problems(), [], "{spec}");
            let affinities = &catalog.pools()[0].affinities;
            assert_eq!(affinities, &Affinities::default(), "{spec}");
        }
    }
}

#[test]
fn addresses_that_no_pod_can_have_are_refused_with_what_they_are() {
    for (spec, field, said) in [
        (
            "{subnet: 127.0.0.0/8}",
            "spec.subnet",
            "127.0.0.0/8 is loopback",
        ),
        (
            "{subnet: 127.1.0.0/16, ips: [127.1.0.5]}",
            "spec.subnet",
            "loopback",
        ),
        ("{subnet: 0.0.0.0/8}", "spec.subnet", "this network"),
        ("{subnet: 0.5.0.0/16}", "spec.subnet", "this network"),
        ("{subnet: 224.0.0.0/4}", "spec.subnet", "multicast"),
        (
            "{subnet: 239.1.0.0/16, ips: [239.1.0.1-239.1.0.9]}",
            "spec.subnet",
            "multicast",
        ),
        ("{subnet: 240.0.0.0/4}", "spec.subnet", "reserved"),
        (
            "{subnet: 255.255.255.255/32, ips: [255.255.255.255]}",
            "spec.subnet",
            "broadcast",
        ),
        (
            "{subnet: 'fe80::/64', ips: ['fe80::5']}",
            "spec.subnet",
            "link-local",
        ),
        ("{subnet: 'ff02::/64'}", "spec.subnet", "multicast"),
        ("{subnet: '::ffff:10.0.0.0/120'}", "spec.subnet", "IPv4"),
        (
            "{subnet: '::/128', ips: ['::']}",
            "spec.subnet",
            "unspecified",
        ),
        (
            "{subnet: '::1/128', ips: ['::1']}",
            "spec.subnet",
            "loopback",
        ),
        (
            "{subnet: '::/64', ips: ['::2', '::1']}",
            "spec.ips[1]",
            "loopback",
        ),
        (
            "{subnet: 0.0.0.0/0, ips: [126.255.255.250-127.0.0.9]}",
            "spec.ips[0]",
            "loopback",
        ),
        (
            "{subnet: 128.0.0.0/1, ips: [10.0.0.1]}",
            "spec.ips[0]",
            "inside",
        ),
        (
            "{subnet: 192.0.0.0/2, ips: [223.255.255.250-224.0.0.9]}",
            "spec.ips[0]",
            "multicast",
        ),
    ] {
        let catalog = catalog(&pool("p", spec));
        assert_eq!(catalog.pools(), [], "{spec}");
        let [problem] = catalog.problems() else {
            panic!("{spec}: {:?}", catalog.problems())
        };
        assert_eq!(problem.field.as_deref(), Some(field), "{spec}: {problem}");
        assert!(problem.message.contains(said), "{spec}: {problem}");
    }
    for spec in [
        "{subnet: 100.64.0.0/10, ips: [100.64.0.5-100.127.0.9]}",
        "{subnet: 198.18.0.0/15, ips: [198.18.0.5]}",
        "{subnet: 169.254.0.0/16, ips: [169.254.7.5]}",
        "{subnet: 192.0.2.0/24, ips: [192.0.2.5]}",
        "{subnet: 223.255.255.0/24, ips: [223.255.255.254]}",
        "{subnet: 'fec0::/64', ips: ['fec0::5']}",
        "{subnet: '2001:db8::/64', ips: ['2001:db8::5']}",
        "{subnet: '::/64', ips: ['::2'], excludeIPs: ['::1']}",
    ] {
        let catalog = catalog(&pool("p", spec));
        assert_eq!(catalog.problems(), [], "{spec}");
        assert!(!catalog.pools()[0].ranges.is_empty(), "{spec}");
    }
}

#[test]
fn a_gateway_may_be_in_another_subnet_and_a_route_may_use_it() {
    for (spec, gateway, route) in [
        (
            "{subnet: 203.0.113.32/28, gateway: 10.70.16.1, routes: [{dst: 10.9.0.0/16, gw: 10.70.16.1}]}",
            "10.70.16.1",
            "10.70.16.1",
        ),
        (
            "{subnet: 203.0.113.7/32, gateway: 169.254.1.1, routes: [{dst: 10.9.0.0/16, gw: 203.0.113.7}]}",
            "169.254.1.1",
            "203.0.113.7",
        ),
        (
            "{subnet: 'fd00::/64', gateway: 'fd01::1', routes: [{dst: 'fd09::/16', gw: 'fd00::2'}]}",
            "fd01::1",
            "fd00::2",
        ),
        // The subnet-router anycast address (RFC 4291, 2.6.1).
        (
            "{subnet: 'fd00::/64', gateway: 'fd00::', routes: [{dst: 'fd09::/16', gw: 'fd00::2'}]}",
            "fd00::",
            "fd00::2",
        ),
    ] {
        let catalog = catalog(&pool("p", spec));
        assert_eq!(catalog.problems(), [], "{spec}");
        let pool = &catalog.pools()[0];
        assert_eq!(pool.gateway, Some(gateway.parse().unwrap()), "{spec}");
        assert_eq!(pool.routes[0].gateway.to_string(), route, "{spec}");
    }
}

#[test]
fn a_subnet_written_as_an_interfaces_address_is_the_subnet_that_it_is_in() {
    for (subnet, ips, meant) in [
        ("10.73.0.1/16", "10.73.8.20-10.73.8.29", "10.73.0.0/16"),
        ("'fd00::1/64'", "'fd00::5'", "fd00::/64"),
        ("10.73.0.1/32", "10.73.0.1", "10.73.0.1/32"),
    ] {
        let written = catalog(&pool("p", &format!("{{subnet: {subnet}, ips: [{ips}]}}")));
        assert_eq!(written.problems(), [], "{subnet}");
        let meant = catalog(&pool("p", &format!("{{subnet: '{meant}', ips: [{ips}]}}")));
        assert_eq!(written.pools(), meant.pools(), "{subnet}");
        // So the notation may be corrected while pods run, and other pools may use either one.
        assert_eq!(meant.clone().keeping_used_pools(&written, |_| true), meant);
    }
    let both = catalog(
        &[
            pool("a", "{subnet: 10.73.0.1/16, ips: [10.73.8.20]}"),
            pool("b", "{subnet: 10.73.0.0/16, ips: [10.73.8.21]}"),
        ]
        .concat(),
    );
    assert_eq!(both.pools().len(), 2, "{:?}", both.problems());
}

#[test]
fn an_empty_gateway_is_none() {
    let catalog = catalog(&pool("p", "{subnet: 10.0.0.0/24, gateway: ''}"));
    assert_eq!(catalog.problems(), []);
    assert_eq!(catalog.pools()[0].gateway, None);
}

#[test]
fn of_two_pools_that_exclude_one_another_the_earlier_stays() {
    let first = "{subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.20]}";
    let cases = [
        (
            "b",
            "{subnet: 10.0.0.0/24, ips: [10.0.0.21-10.0.0.30]}",
            None,
        ),
        (
            "b",
            "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.30], excludeIPs: [10.0.0.10-10.0.0.20]}",
            None,
        ),
        ("b", "{subnet: 10.0.1.0/24, ips: [10.0.1.1]}", None),
        (
            "b",
            "{subnet: 10.0.0.0/24, ips: [10.0.0.20-10.0.0.30]}",
            Some("spec.ips"),
        ),
        (
            "b",
            "{subnet: 10.0.0.0/25, ips: [10.0.0.1]}",
            Some("spec.subnet"),
        ),
        (
            "b",
            "{subnet: 10.0.0.0/16, ips: [10.0.9.1]}",
            Some("spec.subnet"),
        ),
        (
            "a",
            "{subnet: 10.7.0.0/24, ips: [10.7.0.1]}",
            Some("metadata.name"),
        ),
    ];
    for (name, second, field) in cases {
        let (one, two) = (pool("a", first), pool(name, second));
        let catalog = Catalog::from_texts([
            (Path::new("1.yaml"), one.as_str()),
            (Path::new("2.yaml"), two.as_str()),
        ]);
        assert_eq!(catalog.pools()[0].ranges.to_string(), "10.0.0.10-10.0.0.20");
        assert_eq!(
            catalog.pools().len(),
            if field.is_some() { 1 } else { 2 },
            "{second}"
        );
        let reported: Vec<_> = catalog
            .problems()
            .iter()
            .map(|p| (p.file.to_str(), p.field.as_deref()))
            .collect();
        assert_eq!(
            reported,
            Vec::from_iter(field.map(|field| (Some("2.yaml"), Some(field)))),
            "{second}"
        );
    }
}

#[test]
fn a_pool_that_was_left_out_excludes_no_other() {
    let catalog = catalog(
        &[
            pool(
                "a",
                "{subnet: 10.0.0.0/24, gateway: 224.2.3.4, ips: [10.0.0.5]}",
            ),
            pool("b", "{subnet: 10.0.0.0/25, ips: [10.0.0.5]}"),
        ]
        .concat(),
    );
    assert_eq!(catalog.pools().len(), 1);
    assert_eq!(catalog.pools()[0].name, "b");
}

#[test]
fn a_pool_whose_addresses_are_in_use_keeps_its_subnet_and_nothing_else() {
    let old = pool("p", "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9]}");
    for (new, field) in [
        (pool("p", "{subnet: 10.0.0.0/24, ips: [10.0.0.7]}"), None),
        (
            pool("p", "{subnet: 10.0.0.0/24, gateway: 10.0.0.254}"),
            None,
        ),
        (pool("p", "{subnet: 10.0.0.0/25}"), Some("spec.subnet")),
        (pool("p", "{subnet: 'fd00::/64'}"), Some("spec.ipVersion")),
        (pool("q", "{subnet: 10.0.0.0/25}"), None),
    ] {
        let (older, newer) = (catalog(&old), catalog(&new));
        let free = newer.clone().keeping_used_pools(&older, |_| false);
        assert_eq!(free, newer, "{new}");
        let kept = newer.clone().keeping_used_pools(&older, |name| name == "p");
        let Some(field) = field else {
            assert_eq!(kept, newer, "{new}");
            continue;
        };
        assert_eq!(kept.pools(), older.pools(), "{new}");
        let [problem] = kept.problems() else {
            panic!("{new}: {:?}", kept.problems())
        };
        assert_eq!(problem.field.as_deref(), Some(field));
        // The next comparison returns the same.
        assert_eq!(newer.keeping_used_pools(&kept, |_| true), kept);
    }
}

#[test]
fn what_overlaps_a_pool_that_is_kept_is_left_out_and_said() {
    let older = catalog(&pool(
        "p",
        "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9]}",
    ));
    let newer = catalog(
        &[
            pool("p", "{subnet: 10.0.1.0/24, ips: [10.0.1.1]}"),
            pool("taken", "{subnet: 10.0.0.0/24, ips: [10.0.0.5]}"),
            pool("free", "{subnet: 10.0.0.0/24, ips: [10.0.0.50]}"),
        ]
        .concat(),
    );
    assert_eq!(newer.problems(), []);
    let kept = newer.keeping_used_pools(&older, |_| true);
    let names: Vec<&str> = kept.pools().iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["p", "free"]);
    let problems = kept
        .problems()
        .iter()
        .filter_map(|problem| problem.object.as_deref());
    assert_eq!(
        problems.collect::<Vec<_>>(),
        ["SpiderIPPool p", "SpiderIPPool taken"]
    );
}
