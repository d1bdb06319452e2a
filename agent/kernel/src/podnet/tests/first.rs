//! The first interface of a pod.

use ebbtide_layout::{POD_METADATA, POD_METADATA_SHIFT, POD_NO_METADATA};
use ebbtide_types::settings::{LocalRule, PodMetadata};

use super::*;

#[test]
fn a_pod_reaches_the_world_by_its_nic_and_its_node_by_the_veth() {
    let net = planned(&network(), &[v4()]);
    assert_eq!(
        texts(&net.in_pod.addresses),
        [
            "address 172.31.16.4/20 on eth0",
            "address 172.31.16.4/32 on veth0"
        ]
    );
    assert_eq!(
        texts(&net.in_pod.routes),
        [
            "route default via 172.31.16.1 dev eth0 src 172.31.16.4",
            "route 172.31.22.228/32 via 169.254.1.1 dev veth0 src 172.31.16.4",
            "route 210.22.16.10/32 via 169.254.1.1 dev veth0 src 172.31.16.4",
            "route 10.96.0.0/16 via 169.254.1.1 dev veth0 src 172.31.16.4",
        ]
    );
    assert_eq!(
        texts(&net.in_pod.neighbours),
        ["neighbour 169.254.1.1 dev veth0 lladdr 02:eb:b0:00:00:01"]
    );
}

#[test]
fn replies_of_what_came_in_by_the_veth_are_redirected_by_their_mark() {
    let net = planned(&network(), &[v4(), v6()]);
    assert_eq!(texts(&net.in_pod.rules), [""; 0]);
    assert_eq!(
        texts(&net.in_pod.filters),
        [
            "program veth_ingress at veth0 ingress",
            "program nic_egress at eth0 egress",
        ]
    );
    let sysctls = texts(&net.in_pod.sysctls);
    for needed in [
        "sysctl net/ipv4/tcp_fwmark_accept = 1",
        "sysctl net/ipv4/fwmark_reflect = 1",
        "sysctl net/ipv6/fwmark_reflect = 1",
        "sysctl net/ipv4/conf/veth0/src_valid_mark = 1",
    ] {
        assert!(
            sysctls.iter().any(|s| s == needed),
            "{needed} in {sysctls:?}"
        );
    }
}

#[test]
fn a_pod_has_a_program_for_what_comes_in_only_where_no_nic_has_one_that_sees_it() {
    type Change = fn(&mut NodeFacts, &mut NetworkSpec, &mut Settings);
    let rows: [(&str, Change, bool); 6] = [
        ("l3", |_, _, _| {}, false),
        ("l2", |_, network, _| network.mode = IpvlanMode::L2, false),
        ("l3s", |_, network, _| network.mode = IpvlanMode::L3s, true),
        (
            "a link that is to be no NIC",
            |_, _, settings| settings.nics.exclude = vec!["ens5".to_owned()],
            true,
        ),
        (
            "a link in a VRF",
            |node, _, _| node.nics[0].port_of = Some(9),
            true,
        ),
        (
            "a chained interface",
            |_, network, _| network.made_before = Some(1500),
            true,
        ),
    ];
    for (name, change, expected) in rows {
        let (mut node, mut network, mut settings) = (node(), network(), settings());
        change(&mut node, &mut network, &mut settings);
        let net = plan(
            &sandbox(),
            &Existing::default(),
            &network,
            &[v4()],
            &node,
            &settings,
        )
        .unwrap();
        let filters = texts(&net.in_pod.filters);
        let comes_in = "program nic_ingress at eth0 ingress".to_owned();
        assert_eq!(filters.contains(&comes_in), expected, "{name}: {filters:?}");
        assert_eq!(net.registered().is_followed, !expected, "{name}");
    }
}

#[test]
fn marks_that_a_proxy_sets_are_neither_inherited_nor_used_to_look_up_sources() {
    for (accept_marks, value) in [(true, "1"), (false, "0")] {
        let network = NetworkSpec {
            accept_marks,
            ..network()
        };
        let sysctls = texts(&planned(&network, &[v4()]).in_pod.sysctls);
        for name in ["tcp_fwmark_accept", "conf/veth0/src_valid_mark"] {
            let wanted = format!("sysctl net/ipv4/{name} = {value}");
            assert!(sysctls.contains(&wanted), "{wanted} in {sysctls:?}");
        }
    }
}

#[test]
fn metadata_is_closed_where_its_routes_do_not_lead_and_for_good() {
    use PodMetadata::{Allow, Drop, ViaHost};

    let link_local = 0b11 << POD_METADATA_SHIFT;
    let closed = POD_NO_METADATA | POD_METADATA;
    let with = |metadata, of_pod| {
        let settings = Settings {
            metadata_for_pods: metadata,
            via_host_cidrs: Settings::default().via_host_cidrs,
            ..settings()
        };
        let network = NetworkSpec {
            metadata: of_pod,
            ..network()
        };
        let plan = |network: &NetworkSpec| {
            let none = Existing::default();
            plan(&sandbox(), &none, network, &[v4()], &node(), &settings).unwrap()
        };
        let net = plan(&network);
        let again = replan(&net, &node(), |own| own.gateway, &settings).unwrap();
        assert_eq!(again, net);
        let without_pair = NetworkSpec {
            veth: false,
            ..network.clone()
        };
        let anothers = NetworkSpec {
            made_before: Some(1500),
            ..network
        };
        assert_eq!(plan(&anothers).metadata, 0, "another plugin's interface");
        let alone = plan(&without_pair);
        let programs = texts(&alone.in_pod.filters);
        match alone.metadata {
            0 => assert_eq!(programs, [""; 0]),
            _ => assert_eq!(programs, ["program nic_egress at eth0 egress"]),
        }
        (net.metadata, alone.metadata)
    };
    for (setting, of_pod, expected) in [
        (ViaHost, None, (link_local, 0)),
        (Allow, None, (0, 0)),
        (Drop, None, (closed, closed)),
        (Drop, Some(Allow), (0, 0)),
        (Drop, Some(ViaHost), (link_local, 0)),
        (Allow, Some(Drop), (closed, closed)),
    ] {
        assert_eq!(with(setting, of_pod), expected, "{setting:?}, {of_pod:?}");
    }
    assert_eq!(Settings::default().metadata_for_pods, ViaHost);
}

#[test]
fn where_somebody_routes_by_marks_the_plan_says_so_for_good() {
    let marked = Existing {
        marks: true,
        ..Existing::default()
    };
    let net = plan(
        &sandbox(),
        &marked,
        &network(),
        &[v4()],
        &node(),
        &settings(),
    )
    .unwrap();
    assert!(!net.accepts_marks());
    let again = replan(&net, &node(), |own| own.gateway, &settings()).unwrap();
    assert!(!again.accepts_marks());
    assert_eq!(again, net);
}

#[test]
fn each_family_keeps_to_itself() {
    let net = planned(&network(), &[v6()]);
    assert_eq!(
        texts(&net.in_pod.routes),
        [
            "route default via fd00:16::1 dev eth0 src fd00:16::4",
            "route fd00:16::228/128 via fe80::1 dev veth0 src fd00:16::4",
        ]
    );
    let host = texts(&net.in_host.routes);
    assert_eq!(host.len(), 1);
    assert!(
        host[0].starts_with("route fd00:16::4/128 dev veth"),
        "{host:?}"
    );
}

#[test]
fn the_host_knows_the_pod_by_its_veth_and_never_asks() {
    let net = planned(&network(), &[v4()]);
    let veth = net.veth.as_ref().unwrap();
    assert_eq!(veth.host_name.len(), 15);
    assert_eq!(
        texts(&net.in_host.routes),
        [format!(
            "route 172.31.16.4/32 dev {} table 7700",
            veth.host_name
        )]
    );
    assert_eq!(
        texts(&net.in_host.neighbours),
        [format!(
            "neighbour 172.31.16.4 dev {} lladdr 02:eb:b0:00:00:02",
            veth.host_name
        )]
    );
}

#[test]
fn a_repeated_request_plans_the_same_and_another_container_another_veth() {
    let first = planned(&network(), &[v4()]);
    assert_eq!(first, planned(&network(), &[v4()]));
    let other = Sandbox {
        container_id: "abd".into(),
        ..sandbox()
    };
    let other = plan(
        &other,
        &Existing::default(),
        &network(),
        &[v4()],
        &node(),
        &settings(),
    )
    .unwrap();
    assert_ne!(first.veth.unwrap().host_name, other.veth.unwrap().host_name);
}

#[test]
fn without_the_coordinator_there_is_the_nic_alone() {
    let bare = NetworkSpec {
        veth: false,
        ..network()
    };
    let net = planned(&bare, &[v4()]);
    assert_eq!(net.veth, None);
    assert_eq!(
        texts(&net.in_pod.routes),
        ["route default via 172.31.16.1 dev eth0 src 172.31.16.4"]
    );
    assert!(net.in_pod.filters.is_empty() && net.in_pod.rules.is_empty());
    assert!(net.in_host.routes.is_empty());
}

#[test]
fn the_pools_routes_leave_by_the_nic() {
    let with_route = PodAddress {
        gateway: None,
        routes: vec![(
            "192.168.0.0/16".parse().unwrap(),
            "172.31.16.9".parse().unwrap(),
        )],
        ..v4()
    };
    let net = planned(&network(), &[with_route]);
    assert_eq!(
        texts(&net.in_pod.routes)[0],
        "route 192.168.0.0/16 via 172.31.16.9 dev eth0 src 172.31.16.4"
    );
}

#[test]
fn the_mtu_follows_the_nic_unless_the_network_says_less() {
    assert_eq!(planned(&network(), &[v4()]).mtu, 9001);
    let small = NetworkSpec {
        mtu: Some(1500),
        ..network()
    };
    let net = planned(&small, &[v4()]);
    assert_eq!((net.mtu, net.veth.unwrap().mtu), (1500, 1500));
}

#[test]
fn what_the_node_cannot_carry_is_refused_by_name() {
    let mut down = node();
    down.nics[0].up = false;
    let mut child = node();
    child.nics[0].kind = Some("ipvlan".into());
    let absent = NetworkSpec {
        master: "ens9".into(),
        ..network()
    };
    let large = NetworkSpec {
        mtu: Some(9002),
        ..network()
    };
    type Expectation = fn(&PlanError) -> bool;
    let narrow = NetworkSpec {
        mtu: Some(1279),
        ..network()
    };
    let cases: [(NetworkSpec, NodeFacts, Expectation); 5] = [
        (narrow, node(), |e| {
            matches!(e, PlanError::MtuWithoutIpv6 { .. })
        }),
        (absent, node(), |e| matches!(e, PlanError::NoMaster { .. })),
        (network(), down, |e| {
            matches!(e, PlanError::MasterDown { .. })
        }),
        (network(), child, |e| {
            matches!(e, PlanError::MasterIsChild { .. })
        }),
        (large, node(), |e| matches!(e, PlanError::Mtu { .. })),
    ];
    for (network, node, expected) in cases {
        let error = plan(
            &sandbox(),
            &Existing::default(),
            &network,
            &[v4(), v6()],
            &node,
            &settings(),
        )
        .unwrap_err();
        assert!(expected(&error), "{error}");
        assert!(error.to_string().contains(&network.master), "{error}");
    }
}

#[test]
fn the_node_has_a_second_route_to_a_pod_whose_address_it_takes_and_an_address_of_its_own_for_it() {
    let routes = |node: &NodeFacts, settings: &Settings| {
        let net = plan(
            &sandbox(),
            &Existing::default(),
            &network(),
            &[v4(), v6()],
            node,
            settings,
        )
        .unwrap();
        let routes = net.in_host.routes.iter();
        let held = routes.filter(|route| route.table == 7699);
        held.map(|route| (route.destination.to_string(), route.source))
            .collect::<Vec<_>>()
    };
    let never = Settings {
        local_rule: LocalRule::Never,
        ..settings()
    };
    let mut node = node();
    assert_eq!(routes(&node, &settings()), []);
    node.local = vec!["172.31.16.0/28".parse().unwrap()];
    let own = node.nics[0].addresses[0].addr();
    assert_eq!(
        routes(&node, &settings()),
        [("172.31.16.4/32".to_owned(), Some(own))]
    );
    node.local.push("fd00:16::4/128".parse().unwrap());
    assert_eq!(routes(&node, &settings()).len(), 2);
    assert_eq!(routes(&node, &never), []);
}
