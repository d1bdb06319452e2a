//! A further interface of Ebbtide.

use super::*;

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
        ]
    );
    assert!(texts(&net.in_host.routes)[0].starts_with("route 210.22.16.11/32 dev veth"));
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
