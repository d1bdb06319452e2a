//! An interface beside another plugin's.

use super::*;

/// eth0 is another plugin's, with a default route of each of `families`, and 10.244.1.5 and fd00:244::5.
fn beside_another_plugin(families: &[Family]) -> Existing {
    Existing {
        others_defaults: families.to_vec(),
        foreign: true,
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
            "route default via 169.254.235.1 dev net1 src 210.22.16.11 table 7700",
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
        let again = replan(&net, &node(), gateway, &settings()).unwrap();
        assert_eq!(again, net);
    }
}
