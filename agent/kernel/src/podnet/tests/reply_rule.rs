//! The reply rule: which pods have it, and what comes with it.

use super::*;
use crate::netlink::model::{Action, Neighbour, Route};

const RULES: [&str; 2] = [
    "IPv4 rule 1000: fwmark 0x1000/0x1000 iif lo lookup 7700",
    "IPv6 rule 1000: fwmark 0x1000/0x1000 iif lo lookup 7700",
];

/// The rules by mark of a plan, as their families.
fn ruled(net: &PodNet) -> Vec<Family> {
    let rules = net
        .in_pod
        .rules
        .iter()
        .filter(|rule| rule.action == Action::Table(7700));
    rules.map(|rule| rule.family).collect()
}

fn planned_beside(existing: &Existing, network: &NetworkSpec, own: &[PodAddress]) -> PodNet {
    plan(&sandbox(), existing, network, own, &node(), &settings()).unwrap()
}

fn again(net: &PodNet) -> PodNet {
    replan(net, &node(), |own| own.gateway, &settings()).unwrap()
}

#[test]
fn replies_have_a_rule_only_where_they_may_not_reach_an_interface_of_ebbtide_s() {
    let nothing = Existing::default();
    let something = Existing {
        foreign: true,
        ..Existing::default()
    };
    let marks = Existing {
        marks: true,
        ..Existing::default()
    };
    let chained = NetworkSpec {
        made_before: Some(1500),
        ..network()
    };
    let unknown = NetworkSpec {
        reply_rule: None,
        ..network()
    };
    let without_veth = NetworkSpec {
        veth: false,
        ..network()
    };
    let without = |own: PodAddress| PodAddress {
        gateway: None,
        ..own
    };
    let another = address("172.31.16.5/20", "172.31.16.1");
    let both = [v4(), v6()];
    for (what, existing, network, own, expected) in [
        ("nothing", &nothing, network(), &both[..], &[][..]),
        (
            "something foreign",
            &something,
            network(),
            &both,
            &Family::BOTH,
        ),
        (
            "one family",
            &something,
            network(),
            &both[..1],
            &[Family::V4],
        ),
        // Not by itself: whoever reads that also says that there is something.
        ("marks", &marks, network(), &both, &[]),
        (
            "another plugin's interface",
            &nothing,
            chained,
            &both,
            &Family::BOTH,
        ),
        ("an older record", &nothing, unknown, &both, &Family::BOTH),
        ("no pair", &something, without_veth, &both, &[]),
        (
            "no gateway",
            &nothing,
            network(),
            &[without(v4()), without(v6())],
            &Family::BOTH,
        ),
        (
            "no gateway of one family",
            &nothing,
            network(),
            &[without(v4()), v6()],
            &[Family::V4],
        ),
        (
            "a gateway of another address",
            &nothing,
            network(),
            &[without(v4()), another],
            &[],
        ),
    ] {
        let net = planned_beside(existing, &network, own);
        assert_eq!(ruled(&net), expected, "{what}");
        assert_eq!(again(&net), net, "{what}, planned again");
        // The route and the neighbour come with the rule alone.
        let routes = net.in_pod.routes.iter().filter(|route| route.table == 7700);
        assert_eq!(routes.count(), expected.len(), "{what}");
        let by_nic = net.in_pod.neighbours.iter().filter(|n| n.link == "eth0");
        assert_eq!(by_nic.count(), expected.len(), "{what}");
    }
}

#[test]
fn the_rule_leads_to_the_interface_by_a_next_hop_that_nobody_has() {
    let existing = Existing {
        foreign: true,
        ..Existing::default()
    };
    let net = planned_beside(&existing, &network(), &[v4(), v6()]);
    assert_eq!(texts(&net.in_pod.rules), RULES);
    let routes = net.in_pod.routes.iter().filter(|route| route.table == 7700);
    assert_eq!(
        routes.map(ToString::to_string).collect::<Vec<_>>(),
        [
            "route default via 169.254.235.1 dev eth0 src 172.31.16.4 table 7700",
            "route default via fe80::eb:b0ff:fe00:1 dev eth0 src fd00:16::4 table 7700",
        ]
    );
    assert_eq!(
        texts(&net.in_pod.neighbours),
        [
            "neighbour 169.254.1.1 dev veth0 lladdr 02:eb:b0:00:00:01",
            "neighbour 169.254.235.1 dev eth0 lladdr 02:eb:b0:00:00:01",
            "neighbour fe80::1 dev veth0 lladdr 02:eb:b0:00:00:01",
            "neighbour fe80::eb:b0ff:fe00:1 dev eth0 lladdr 02:eb:b0:00:00:01",
        ]
    );
}

#[test]
fn one_interface_makes_the_replies_of_a_family_with_and_without_the_rule() {
    for foreign in [false, true] {
        let existing = Existing {
            foreign,
            ..Existing::default()
        };
        let first = planned_beside(&existing, &network(), &[v4()]);
        assert_eq!(first.reply_families(), [Family::V4]);
        assert_eq!(first.has_reply_rule(), foreign);
        let existing = Existing {
            foreign,
            ..after_first()
        };
        let net1 = second(&existing, &network());
        assert_eq!(net1.reply_families(), []);
        assert_eq!(ruled(&net1), []);
        for net in [first, net1] {
            assert_eq!(again(&net), net);
        }
    }
}

/// The record of an agent that always made the rule, with a route by the veth.
fn older_record() -> PodNet {
    let existing = Existing {
        foreign: true,
        ..Existing::default()
    };
    let mut net = planned_beside(&existing, &network(), &[v4(), v6()]);
    net.in_pod.neighbours.retain(|n| n.link == "veth0");
    for route in net
        .in_pod
        .routes
        .iter_mut()
        .filter(|route| route.table == 7700)
    {
        route.link = "veth0".into();
        route.via = Some(match route.destination {
            ipnet::IpNet::V4(_) => "169.254.1.1".parse().unwrap(),
            ipnet::IpNet::V6(_) => "fe80::1".parse().unwrap(),
        });
    }
    let mut record = serde_json::to_value(&net).unwrap();
    record["spec"]
        .as_object_mut()
        .unwrap()
        .remove("replyRule")
        .unwrap();
    serde_json::from_value(record).unwrap()
}

#[test]
fn an_older_record_keeps_its_rule_until_somebody_has_looked_into_the_pod() {
    let old = older_record();
    assert!(old.has_reply_rule());
    let kept = again(&old);
    assert_eq!(ruled(&kept), Family::BOTH);
    assert_eq!(again(&kept), kept);
    for (found, expected) in [(false, &[][..]), (true, &Family::BOTH[..])] {
        let mut looked = old.clone();
        looked.spec.as_mut().unwrap().reply_rule = Some(found);
        let new = again(&looked);
        assert_eq!(ruled(&new), expected);
        assert_eq!(again(&new), new);
        // What becomes of the older routes and rules: none stays beside a new one.
        let surplus = replan::surplus(&old.in_pod, &new.in_pod);
        let is_older = |route: &Route| route.table == 7700 && route.link == "veth0";
        let left = surplus
            .routes
            .iter()
            .filter(|route| is_older(route))
            .count();
        assert_eq!(
            (left, surplus.rules.len()),
            if found { (0, 0) } else { (2, 2) }
        );
        assert_eq!(surplus.neighbours, Vec::<Neighbour>::new());
    }
}
