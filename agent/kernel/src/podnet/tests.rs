//! A pod's network as a specification: facts in, objects out, no kernel.

use ebbtide_types::{Family, IpvlanMode, settings::Settings};

use super::{Existing, NetworkSpec, PlanError, PodAddress, PodNet, Sandbox, plan};
use crate::node::{Nic, NodeFacts};

fn nic(name: &str, ifindex: u32, addresses: &[&str]) -> Nic {
    Nic {
        name: name.into(),
        ifindex,
        mac: None,
        mtu: 9001,
        up: true,
        kind: None,
        port_of: None,
        below: None,
        ipv6: true,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        nics: vec![
            nic("ens5", 2, &["172.31.22.228/20", "fd00:16::228/64"]),
            nic("ens6", 3, &["210.22.16.10/24"]),
        ],
        ..NodeFacts::default()
    }
}

fn sandbox() -> Sandbox {
    Sandbox {
        container_id: "abc".into(),
        interface: "eth0".into(),
        netns: "/run/netns/abc".into(),
        netns_inode: 4_026_532_008,
        pid_namespace: None,
        pod: "default/web".into(),
    }
}

fn network() -> NetworkSpec {
    NetworkSpec {
        name: "default/ipvlan-ens5".into(),
        master: "ens5".into(),
        mode: IpvlanMode::L3,
        mtu: None,
        veth: true,
        via_host: Vec::new(),
        default_route: None,
        answer_neighbours: false,
        gateways: Vec::new(),
        made_before: None,
        accept_marks: true,
        strict_links: Vec::new(),
    }
}

fn address(address: &str, gateway: &str) -> PodAddress {
    PodAddress {
        address: address.parse().unwrap(),
        pool: "pool".into(),
        gateway: Some(gateway.parse().unwrap()),
        routes: Vec::new(),
    }
}

fn v4() -> PodAddress {
    address("172.31.16.4/20", "172.31.16.1")
}

fn v6() -> PodAddress {
    address("fd00:16::4/64", "fd00:16::1")
}

#[test]
fn an_alias_fits_the_kernel_and_ends_with_the_interface_however_long_the_pod_s_name_is() {
    for (pod, whole) in [
        ("default/web".to_owned(), true),
        (format!("{}/{}", "n".repeat(63), "x".repeat(176)), true),
        (format!("{}/{}", "n".repeat(63), "x".repeat(177)), false),
        (format!("{}/{}", "n".repeat(63), "x".repeat(253)), false),
        ("x".repeat(100_000), false),
        // Cut within a character of more bytes than one.
        (format!("a{}", "\u{e9}".repeat(300)), false),
        ("\u{1f419}".repeat(300), false),
    ] {
        let sandbox = Sandbox {
            pod: pod.clone(),
            ..sandbox()
        };
        let existing = Existing::default();
        let net = plan(
            &sandbox,
            &existing,
            &network(),
            &[v4()],
            &node(),
            &settings(),
        )
        .unwrap();
        let alias = &net.alias;
        assert!(alias.len() <= 254, "{} bytes: {alias}", alias.len());
        assert!(alias.len() > 250 || whole, "{} bytes: {alias}", alias.len());
        assert!(
            alias.starts_with("ebbtide: ") && alias.ends_with(" eth0"),
            "{alias}"
        );
        assert_eq!(alias.contains("..."), !whole, "{alias}");
        // Its owner is recorded elsewhere.
        assert_eq!(net.pod, pod);
    }
}

fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        via_host_cidrs: Vec::new(),
        ..Settings::default()
    }
}

fn planned(network: &NetworkSpec, addresses: &[PodAddress]) -> PodNet {
    plan(
        &sandbox(),
        &Existing::default(),
        network,
        addresses,
        &node(),
        &settings(),
    )
    .unwrap()
}

fn texts<T: ToString>(objects: &[T]) -> Vec<String> {
    objects.iter().map(ToString::to_string).collect()
}

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
            "route default via 169.254.1.1 dev veth0 src 172.31.16.4 table 7700",
        ]
    );
    assert_eq!(
        texts(&net.in_pod.neighbours),
        ["neighbour 169.254.1.1 dev veth0 lladdr 02:eb:b0:00:00:01"]
    );
}

#[test]
fn replies_of_what_came_in_by_the_veth_are_routed_by_their_mark() {
    let net = planned(&network(), &[v4(), v6()]);
    assert_eq!(
        texts(&net.in_pod.rules),
        [
            "IPv4 rule 1000: fwmark 0x1000/0x1000 iif lo lookup 7700",
            "IPv6 rule 1000: fwmark 0x1000/0x1000 iif lo lookup 7700",
        ]
    );
    assert_eq!(
        texts(&net.in_pod.filters),
        [
            "program veth_ingress at veth0 ingress",
            "program nic_egress at eth0 egress",
            "program nic_ingress at eth0 ingress",
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
    let again = super::replan(&net, &node(), |own| own.gateway, &settings()).unwrap();
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
            "route default via fe80::1 dev veth0 src fd00:16::4 table 7700",
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
fn a_plan_survives_its_record() {
    let net = planned(&network(), &[v4(), v6()]);
    let record = serde_json::to_value(&net).unwrap();
    assert_eq!(serde_json::from_value::<PodNet>(record).unwrap(), net);
}

fn second(existing: &Existing, network: &NetworkSpec) -> PodNet {
    let sandbox = Sandbox {
        interface: "net1".into(),
        ..sandbox()
    };
    let ens6 = NetworkSpec {
        name: "default/ipvlan-ens6".into(),
        master: "ens6".into(),
        ..network.clone()
    };
    let own = [address("210.22.16.11/24", "210.22.16.1")];
    plan(&sandbox, existing, &ens6, &own, &node(), &settings()).unwrap()
}

fn after_first() -> Existing {
    let first = planned(&network(), &[v4()]);
    Existing {
        veth: first.veth,
        tables: vec![crate::netlink::model::MAIN_TABLE],
        others_defaults: Vec::new(),
        in_main: vec![v4().address.addr()],
        families: vec![Family::V4],
        own_table: None,
        marks: false,
    }
}

#[test]
fn a_second_nic_shares_the_veth_and_sends_what_is_from_its_address() {
    let net = second(&after_first(), &network());
    assert_eq!(net.veth, None);
    assert_eq!(net.shared_veth, planned(&network(), &[v4()]).veth);
    assert_eq!(
        texts(&net.in_pod.rules),
        [
            "IPv4 rule 1001: from 210.22.16.11 lookup 7701",
            "IPv4 rule 1001: from 172.31.16.4 lookup 254",
            "IPv4 rule 1002: from all lookup 254 suppress_prefixlength 0",
            "IPv4 rule 1003: from all lookup 7701 suppress_prefixlength 0",
        ]
    );
    assert_eq!(
        texts(&net.in_pod.routes),
        [
            "route default via 210.22.16.1 dev net1 src 210.22.16.11 table 7701",
            "route 210.22.16.0/24 dev net1 src 210.22.16.11 table 7701",
            "route 172.31.22.228/32 via 169.254.1.1 dev veth0 src 210.22.16.11 table 7701",
            "route 210.22.16.10/32 via 169.254.1.1 dev veth0 src 210.22.16.11 table 7701",
            "route 10.96.0.0/16 via 169.254.1.1 dev veth0 src 210.22.16.11 table 7701",
        ]
    );
    assert_eq!(
        texts(&net.in_pod.filters),
        [
            "program veth_ingress at veth0 ingress",
            "program nic_egress at net1 egress",
            "program nic_ingress at net1 ingress",
        ]
    );
    assert!(texts(&net.in_host.routes)[0].starts_with("route 210.22.16.11/32 dev veth"));
}

/// The guards: the programs that let only packets from the pod's own addresses pass.
fn guards(net: &PodNet) -> Vec<String> {
    let filters = net.in_pod.filters.iter().chain(&net.in_host.filters);
    let guards = filters.filter(|filter| filter.only_from == Some(net.number()));
    guards.map(|filter| filter.program.clone()).collect()
}

#[test]
fn a_pod_is_guarded_where_it_sends_but_not_behind_another_plugin_nor_against_the_settings() {
    let both = ["nic_egress", "host_veth_ingress"];
    assert_eq!(guards(&planned(&network(), &[v4()])), both);
    // The interface that the pair came with decides whether it is guarded.
    let net1 = second(&after_first(), &network());
    assert_eq!(guards(&net1), ["nic_egress"]);
    assert!(net1.in_host.filters.is_empty());
    let chained = NetworkSpec {
        made_before: Some(1500),
        ..network()
    };
    assert!(guards(&planned(&chained, &[v4()])).is_empty());
    let off = Settings {
        spoof_guard: false,
        ..settings()
    };
    let none = Existing::default();
    let net = plan(&sandbox(), &none, &network(), &[v4()], &node(), &off).unwrap();
    assert!(guards(&net).is_empty() && !net.in_host.filters.is_empty());
}

#[test]
fn a_network_can_choose_who_has_the_default_route() {
    let chosen = NetworkSpec {
        default_route: Some("net1".into()),
        ..network()
    };
    let first = planned(&chosen, &[v4()]);
    assert_eq!(first.table, Some(7701));
    let existing = Existing {
        tables: vec![7701],
        in_main: Vec::new(),
        ..after_first()
    };
    let net = second(&existing, &chosen);
    assert_eq!(net.table, None);
    // The first one's subnet is in the table before this one's.
    let own = "IPv4 rule 1001: from 210.22.16.11 lookup 254";
    assert_eq!(texts(&net.in_pod.rules), [own]);
    let again = Existing {
        own_table: Some(crate::netlink::model::MAIN_TABLE),
        in_main: net.in_main(),
        ..existing
    };
    assert_eq!(second(&again, &chosen), net);
    assert_eq!(
        texts(&net.in_pod.routes)[0],
        "route default via 210.22.16.1 dev net1 src 210.22.16.11"
    );
}

#[test]
fn the_own_table_of_a_further_interface_is_never_one_of_the_kernels() {
    for (reply_table, own) in [(7700, 7701), (251, 252), (252, 256), (254, 256)] {
        let settings = Settings {
            reply_table,
            ..settings()
        };
        let second = Sandbox {
            interface: "net1".into(),
            ..sandbox()
        };
        let existing = after_first();
        let net = plan(&second, &existing, &network(), &[v4()], &node(), &settings).unwrap();
        assert_eq!(net.table, Some(own), "after {reply_table}");
    }
}

#[test]
fn planned_again_an_interface_keeps_its_table() {
    let again = Existing {
        tables: vec![7701],
        own_table: Some(crate::netlink::model::MAIN_TABLE),
        ..Existing::default()
    };
    let net = plan(
        &sandbox(),
        &again,
        &network(),
        &[v4()],
        &node(),
        &settings(),
    )
    .unwrap();
    assert_eq!(net, planned(&network(), &[v4()]));
    let moved = Existing {
        own_table: Some(7702),
        ..after_first()
    };
    assert_eq!(second(&moved, &network()).table, Some(7702));
}

/// eth0 is another plugin's, with a default route of each of `families`, and 10.244.1.5 and fd00:244::5.
fn beside_another_plugin(families: &[Family]) -> Existing {
    Existing {
        others_defaults: families.to_vec(),
        in_main: ["10.244.1.5", "fd00:244::5"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        ..Existing::default()
    }
}

#[test]
fn beside_another_plugin_s_default_route_nothing_is_in_the_main_table() {
    let net = second(&beside_another_plugin(&Family::BOTH), &network());
    assert!(net.veth.is_some(), "nobody brought the pair yet");
    assert_eq!(
        texts(&net.in_pod.routes),
        [
            "route default via 210.22.16.1 dev net1 src 210.22.16.11 table 7701",
            "route 210.22.16.0/24 dev net1 src 210.22.16.11 table 7701",
            "route 210.22.16.0/24 dev net1 src 210.22.16.11 table 8201",
            "route 172.31.22.228/32 via 169.254.1.1 dev veth0 src 210.22.16.11 table 7701",
            "route 210.22.16.10/32 via 169.254.1.1 dev veth0 src 210.22.16.11 table 7701",
            "route 10.96.0.0/16 via 169.254.1.1 dev veth0 src 210.22.16.11 table 7701",
            "route default via 169.254.1.1 dev veth0 src 210.22.16.11 table 7700",
        ]
    );
    // Packets from eth0's address, and those to Services without a source yet, are routed as before.
    assert_eq!(
        texts(&net.in_pod.rules),
        [
            "IPv4 rule 1001: from 210.22.16.11 lookup 7701",
            "IPv4 rule 1001: from 10.244.1.5 lookup 254",
            "IPv4 rule 1002: from all lookup 254 suppress_prefixlength 0",
            "IPv4 rule 1003: from all lookup 8201 suppress_prefixlength 0",
            "IPv4 rule 1000: fwmark 0x1000/0x1000 iif lo lookup 7700",
        ]
    );
}

#[test]
fn the_default_route_that_is_asked_for_is_a_rule_beside_another_plugin_s() {
    let default = "IPv4 rule 1004: from all lookup 7701";
    let has_default = |existing: &Existing, chosen: Option<&str>| {
        let network = NetworkSpec {
            default_route: chosen.map(str::to_owned),
            ..network()
        };
        let net = second(existing, &network);
        let table = net.table;
        (
            texts(&net.in_pod.rules).contains(&default.to_owned()),
            table,
        )
    };
    let both = beside_another_plugin(&Family::BOTH);
    assert_eq!(has_default(&both, Some("net1")), (true, Some(7701)));
    assert_eq!(has_default(&both, Some("eth0")), (false, Some(7701)));
    // IPv4 is unaffected where eth0 has a default route of IPv6 alone.
    let other = beside_another_plugin(&[Family::V6]);
    assert_eq!(has_default(&other, None), (false, None));
}

#[test]
fn each_family_has_the_default_route_of_whoever_has_one() {
    let only_v4 = beside_another_plugin(&[Family::V4]);
    let own = [v4(), v6()];
    let net = plan(&sandbox(), &only_v4, &network(), &own, &node(), &settings()).unwrap();
    let rules = texts(&net.in_pod.rules);
    assert!(
        rules.contains(&"IPv6 rule 1004: from all lookup 7701".into()),
        "{rules:#?}"
    );
    assert!(
        !rules.iter().any(|rule| rule.starts_with("IPv4 rule 1004")),
        "{rules:#?}"
    );
}

#[test]
fn beside_another_plugin_an_interface_is_planned_again_as_it_was() {
    for families in [&Family::BOTH[..], &Family::BOTH[..1]] {
        let existing = beside_another_plugin(families);
        let own = [v4(), v6()];
        let net = plan(
            &sandbox(),
            &existing,
            &network(),
            &own,
            &node(),
            &settings(),
        )
        .unwrap();
        let gateway = |own: &PodAddress| own.gateway;
        let again = super::replan(&net, &node(), gateway, &settings()).unwrap();
        assert_eq!(again, net);
    }
}

#[test]
fn a_namespace_that_was_noted_in_another_pid_namespace_is_not_taken_for_gone() {
    let mut net = planned(&network(), &[]);
    net.netns = "/proc/4194304/ns/net".into();
    for (pid_namespace, is_told) in [
        (None, true),
        (
            crate::netlink::netns::Netns::pid_namespace_of(&net.netns),
            true,
        ),
        (Some(1), false),
    ] {
        net.pid_namespace = pid_namespace;
        match net.namespace() {
            Ok(_) => assert!(is_told, "{pid_namespace:?}"),
            Err(e) => assert!(!is_told && e.to_string().contains("hostPID"), "{e}"),
        }
    }
}
