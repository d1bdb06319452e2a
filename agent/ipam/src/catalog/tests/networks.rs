use super::*;

#[test]
fn the_shortest_network_has_the_documented_defaults() {
    let catalog = catalog(&network(
        "name: ipvlan-ens5",
        "{cniType: ipvlan, ipvlan: {master: [ens5]}}",
    ));
    assert_eq!(catalog.problems(), []);
    let expected = Network {
        name: ObjectName {
            namespace: "default".into(),
            name: "ipvlan-ens5".into(),
        },
        master: "ens5".into(),
        mode: IpvlanMode::L3,
        mtu: None,
        addresses: Addresses::Pools,
        ipv4_pools: vec![],
        ipv6_pools: vec![],
        coordinator: true,
        via_host: vec![],
        answer_neighbours: false,
        default_route_nic: None,
    };
    assert_eq!(catalog.networks(), [expected]);
}

#[test]
fn every_setting_of_a_network_is_read() {
    let catalog = catalog(&network(
        "name: n, namespace: kube-system",
        "{cniType: ipvlan, enableCoordinator: false,
          ipvlan: {master: [ens6], mode: l2, mtu: 9001, vlanID: 0, ippools: {ipv4: [b, a], ipv6: [c]}},
          coordinator: {hijackCIDR: [169.254.0.0/16, 10.0.0.1, 'fd00::5/64'], podDefaultRouteNIC: net1}}",
    ));
    assert_eq!(catalog.problems(), []);
    let network = &catalog.networks()[0];
    assert_eq!(network.name.to_string(), "kube-system/n");
    assert_eq!(
        (network.mode, network.mtu, network.coordinator),
        (IpvlanMode::L2, Some(9001), false)
    );
    assert_eq!(network.ipv4_pools, ["b", "a"]);
    assert_eq!(network.ipv6_pools, ["c"]);
    let via_host: Vec<String> = network.via_host.iter().map(ToString::to_string).collect();
    assert_eq!(via_host, ["169.254.0.0/16", "10.0.0.1/32", "fd00::/64"]);
    assert_eq!(network.default_route_nic.as_deref(), Some("net1"));
}

#[test]
fn what_is_wrong_or_not_supported_in_a_network_is_named() {
    let ipvlan = |more: &str| format!("{{cniType: ipvlan, ipvlan: {{master: [ens5], {more}}}}}");
    let beside = |more: &str| format!("{{cniType: ipvlan, ipvlan: {{master: [ens5]}}, {more}}}");
    let cases = [
        (
            "{ipvlan: {master: [ens5]}}".to_owned(),
            "spec.cniType",
            "\"custom\"",
        ),
        (
            "{cniType: macvlan, macvlan: {master: [ens5]}}".to_owned(),
            "spec.cniType",
            "\"macvlan\"",
        ),
        ("{cniType: ipvlan}".to_owned(), "spec.ipvlan", "is missing"),
        (
            "{cniType: ipvlan, ipvlan: {master: []}}".to_owned(),
            "spec.ipvlan.master",
            "is missing",
        ),
        (
            "{cniType: ipvlan, ipvlan: {master: [a, b]}}".to_owned(),
            "spec.ipvlan.master",
            "not supported yet",
        ),
        (
            "{cniType: ipvlan, ipvlan: {master: [a/b]}}".to_owned(),
            "spec.ipvlan.master",
            "not an interface name",
        ),
        (
            "{cniType: ipvlan, ipvlan: {master: [abcdefghijklmnop]}}".to_owned(),
            "spec.ipvlan.master",
            "not an interface name",
        ),
        (
            ipvlan("mode: l4"),
            "spec.ipvlan.mode",
            "l3 (the default), l2 or l3s",
        ),
        (ipvlan("mtu: 20"), "spec.ipvlan.mtu", "68"),
        (ipvlan("mtu: -1"), "spec.ipvlan.mtu", "68"),
        (
            ipvlan("vlanID: 7"),
            "spec.ipvlan.vlanID",
            "not supported yet",
        ),
        (
            ipvlan("bond: {name: b, mode: 0}"),
            "spec.ipvlan.bond",
            "not supported yet",
        ),
        (
            ipvlan("ippools: {matchMasterSubnet: true}"),
            "spec.ipvlan.ippools.matchMasterSubnet",
            "SR-IOV",
        ),
        (
            beside("coordinator: {podDefaultRouteNIC: far-too-long-a-name}"),
            "spec.coordinator.podDefaultRouteNIC",
            "not an interface name",
        ),
        (
            beside("chainCNIJsonData: ['{\"type\": \"tuning\"}', '{\"type\": ']"),
            "spec.chainCNIJsonData[1]",
            "is not JSON",
        ),
        (
            beside("chainCNIJsonData: ['{}']"),
            "spec.chainCNIJsonData[0]",
            "has no `type`",
        ),
        (
            beside("chainCNIJsonData: ['7']"),
            "spec.chainCNIJsonData[0]",
            "has no `type`",
        ),
        (
            "{cniType: custom, customCNI: '{'}".to_owned(),
            "spec.customCNI",
            "is not a JSON object",
        ),
        (
            ipvlan("ippools: {ipv6: ['']}"),
            "spec.ipvlan.ippools.ipv6[0]",
            "not a pool's name",
        ),
        (
            beside("vlan: {master: [a]}"),
            "spec.vlan",
            "another cniType",
        ),
        (
            beside("disableIPAM: true"),
            "spec.disableIPAM",
            "not supported yet",
        ),
        (
            beside("coordinator: {mode: sideways}"),
            "spec.coordinator.mode",
            "is no mode",
        ),
        (
            beside("coordinator: {hijackCIDR: [10.0.0.0/33]}"),
            "spec.coordinator.hijackCIDR[0]",
            "neither an address nor",
        ),
        (
            beside("ipvlan2: {}, enableCoordinator: 1"),
            "spec.enableCoordinator",
            "true or false is expected",
        ),
    ];
    for (spec, field, message) in cases {
        let catalog = catalog(&network("name: n", &spec));
        assert_eq!(catalog.networks(), [], "{spec}");
        let [problem] = catalog.problems() else {
            panic!("{spec}: {:?}", catalog.problems())
        };
        assert_eq!(problem.field.as_deref(), Some(field), "{spec}: {problem}");
        assert!(problem.message.contains(message), "{spec}: {problem}");
    }
}

/// Pools that are named in an unknown way must not mean the default pools.
#[test]
fn pools_by_whatever_name_are_used_or_refused() {
    let used = [
        "ippools: {ipv4: [rare], ipv6: []}",
        "spiderpoolConfigPools: {IPv4IPPool: [rare]}",
        "spiderpoolConfigPools: {IPv4IPPool: [rare], IPv6IPPool: null}, ippools: {}",
        "spiderpoolConfigPools: {}, ippools: {ipv4: [rare]}",
    ];
    for form in used {
        let spec = format!("{{cniType: ipvlan, ipvlan: {{master: [ens6], {form}}}}}");
        let catalog = catalog(&network("name: n", &spec));
        assert_eq!(catalog.problems(), [], "{form}");
        assert_eq!(catalog.networks()[0].ipv4_pools, ["rare"], "{form}");
    }
    for (form, field) in [
        ("ippools: {IPv4: [rare]}", "spec.ipvlan.ippools.IPv4"),
        (
            "ippools: {ipv4Pools: [rare]}",
            "spec.ipvlan.ippools.ipv4Pools",
        ),
        (
            "spiderpoolConfigPools: {ipv4: [rare]}",
            "spec.ipvlan.spiderpoolConfigPools.ipv4",
        ),
        ("ipPools: {ipv4: [rare]}", "spec.ipvlan.ipPools"),
        ("defaultIPv4IPPool: [rare]", "spec.ipvlan.defaultIPv4IPPool"),
        (
            "spiderpoolConfigPools: {IPv4IPPool: [rare]}, ippools: {ipv4: [other]}",
            "spec.ipvlan.spiderpoolConfigPools",
        ),
        (
            "spiderpoolConfigPools: {IPv4IPPool: ['']}",
            "spec.ipvlan.spiderpoolConfigPools.IPv4IPPool[0]",
        ),
    ] {
        let spec = format!("{{cniType: ipvlan, ipvlan: {{master: [ens6], {form}}}}}");
        let catalog = catalog(&network("name: n", &spec));
        assert_eq!(catalog.networks(), [], "{form}");
        assert_eq!(catalog.problems().len(), 1, "{:?}", catalog.problems());
        let found = catalog.problems()[0].field.as_deref();
        assert_eq!(found, Some(field), "{form}");
    }
    let beside = "{cniType: ipvlan, ipvlan: {master: [ens6]}, ippools: {ipv4: [rare]}}";
    let catalog = catalog(&network("name: n", beside));
    assert_eq!(catalog.networks(), []);
}

#[test]
fn a_disabled_coordinator_means_no_veth() {
    for mode in ["disabled", "disable"] {
        let spec =
            format!("{{cniType: ipvlan, ipvlan: {{master: [e]}}, coordinator: {{mode: {mode}}}}}");
        let catalog = catalog(&network("name: n", &spec));
        assert_eq!(
            catalog
                .networks()
                .iter()
                .map(|n| n.coordinator)
                .collect::<Vec<_>>(),
            [false],
            "{mode}"
        );
    }
}

#[test]
fn a_network_is_found_by_full_or_bare_name_and_a_miss_lists_what_there_is() {
    let spec = "{cniType: ipvlan, ipvlan: {master: [ens5]}}";
    let names = [
        "name: a",
        "name: a, namespace: x",
        "name: b, namespace: x",
        "name: c, namespace: x",
        "name: c, namespace: y",
    ];
    let catalog = catalog(&names.map(|name| network(name, spec)).concat());
    let found = |reference| {
        catalog
            .network(reference)
            .map(|network| network.name.to_string())
    };
    assert_eq!(found("a").as_deref(), Ok("default/a"), "default goes first");
    assert_eq!(found("x/a").as_deref(), Ok("x/a"));
    assert_eq!(
        found("b").as_deref(),
        Ok("x/b"),
        "the only one of that name"
    );
    assert_eq!(
        found("c").unwrap_err().to_string(),
        "network \"c\" could be x/c, y/c; name it as \"namespace/name\""
    );
    let unknown = found("default/b").unwrap_err().to_string();
    assert!(
        unknown.contains("there are: default/a, x/a, x/b, x/c, y/c"),
        "{unknown}"
    );
    assert!(matches!(found("a/b/c"), Err(NetworkError::Malformed(_))));
    assert!(
        Catalog::default()
            .network("a")
            .unwrap_err()
            .to_string()
            .contains("no network is declared")
    );
}

#[test]
fn a_bare_name_is_the_administrator_s_network_and_never_another_namespace_s() {
    let spec = "{cniType: ipvlan, ipvlan: {master: [ens5]}}";
    let names = [
        "name: tenants, namespace: team-a",
        "name: tenants, namespace: default",
        "name: both, namespace: aaa",
        "name: both, namespace: kube-system",
        "name: all, namespace: kube-system",
        "name: all, namespace: ebbtide-system",
        "name: all, namespace: default",
    ];
    let catalog = catalog(&names.map(|name| network(name, spec)).concat());
    let catalog = catalog.named_in(Namespaces::of_agent("ebbtide-system"));
    for (reference, expected) in [
        ("both", Some("kube-system/both")),
        ("all", Some("ebbtide-system/all")),
        ("default/all", Some("default/all")),
        ("team-a/tenants", Some("team-a/tenants")),
        ("tenants", None),
        ("nobodys", None),
    ] {
        let found = catalog.network(reference);
        let found = found.map(|network| network.name.to_string());
        match (expected, found) {
            (Some(expected), Ok(found)) => assert_eq!(found, expected, "{reference}"),
            (None, Err(error)) => {
                let error = error.to_string();
                for said in [
                    "in namespace ebbtide-system or kube-system",
                    "\"namespace/name\"",
                ] {
                    assert!(error.contains(said), "{reference}: {error}");
                }
            }
            (expected, found) => panic!("{reference}: {expected:?} {found:?}"),
        }
    }
    // A pool's networks are named the same way.
    for (reference, name, is_meant) in [
        ("all", "kube-system/all", true),
        ("all", "default/all", false),
        ("all", "team-a/all", false),
        ("team-a/all", "team-a/all", true),
        ("team-a/all", "team-b/all", false),
    ] {
        let (namespace, own) = name.split_once('/').unwrap();
        let name = ObjectName {
            namespace: namespace.into(),
            name: own.into(),
        };
        let reference: NetworkRef = reference.parse().unwrap();
        let matches = reference.matches(&name, catalog.namespaces());
        assert_eq!(matches, is_meant, "{reference} {name}");
    }
}

#[test]
fn two_networks_of_one_name_are_not_both_used() {
    let one = network("name: a", "{cniType: ipvlan, ipvlan: {master: [ens5]}}");
    let two = network(
        "name: a, namespace: default",
        "{cniType: ipvlan, ipvlan: {master: [ens6]}}",
    );
    let catalog = catalog(&(one + &two));
    assert_eq!(
        catalog
            .networks()
            .iter()
            .map(|n| n.master.as_str())
            .collect::<Vec<_>>(),
        ["ens5"]
    );
    assert_eq!(
        catalog.problems()[0].field.as_deref(),
        Some("metadata.name")
    );
}

#[test]
fn a_network_takes_its_addresses_from_the_cloud_s_metadata_or_from_pools() {
    let annotated = |value: &str, ipvlan: &str| {
        let name = format!("name: n, annotations: {{ebbtide.io/addresses: {value}}}");
        let spec = format!("{{cniType: ipvlan, ipvlan: {{master: [ens6]{ipvlan}}}}}");
        catalog(&network(&name, &spec))
    };
    for ipvlan in ["", ", ippools: {}", ", ippools: {ipv4: [], ipv6: null}"] {
        let catalog = annotated("metadata", ipvlan);
        assert_eq!(catalog.problems(), [], "{ipvlan}");
        assert_eq!(catalog.networks()[0].addresses, Addresses::Metadata);
        assert_eq!(
            catalog.metadata_links().into_iter().collect::<Vec<_>>(),
            ["ens6"]
        );
    }
    for (value, ipvlan, said) in [
        ("pools", "", "use \"metadata\", or remove it"),
        ("''", "", "use \"metadata\", or remove it"),
        ("Metadata", "", "use \"metadata\", or remove it"),
        (
            "metadata",
            ", ippools: {ipv4: [a, b]}",
            "names a, b; keep the annotation or ippools, not both",
        ),
        ("metadata", ", ippools: {ipv6: [c]}", "names c; keep"),
        (
            "metadata",
            ", spiderpoolConfigPools: {IPv4IPPool: [d]}",
            "names d; keep",
        ),
    ] {
        let catalog = annotated(value, ipvlan);
        assert_eq!(catalog.networks(), [], "{value} {ipvlan}");
        let [problem] = catalog.problems() else {
            panic!("{value} {ipvlan}: {:?}", catalog.problems())
        };
        assert_eq!(problem.consequence, Consequence::LeftOut);
        assert_eq!(
            problem.field.as_deref(),
            Some("metadata.annotations[ebbtide.io/addresses]")
        );
        assert!(problem.message.contains(said), "{problem}");
    }
}
