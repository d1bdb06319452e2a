//! A pod's network as a specification: facts in, objects out, no kernel.

mod existing;
mod first;
mod further;
mod limit;
mod ours;
mod reply_rule;

use ebbtide_types::{Family, IpvlanMode, Mac, settings::Settings};

use super::{Existing, NetworkSpec, PlanError, PodAddress, PodNet, Sandbox, plan, replan};
use crate::node::{Nic, NodeFacts};

fn nic(name: &str, ifindex: u32, addresses: &[&str]) -> Nic {
    Nic {
        mac: Some(Mac([2, 0, 0, 0, 0, 5])),
        mtu: 9001,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..Nic::named(name, ifindex)
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
        master: "ens5".into(),
        ..NetworkSpec::named("default/ipvlan-ens5")
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
        foreign: false,
        bandwidth: None,
    }
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
