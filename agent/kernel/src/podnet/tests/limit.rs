//! Pods with a limit of their bandwidth.

use ebbtide_types::bandwidth::{Bandwidth, Rate};

use super::*;

fn limit(egress: u64) -> Option<Bandwidth> {
    Bandwidth::of(
        Rate::egress(egress, None).unwrap(),
        Rate::ingress(1_000_000, None).unwrap(),
    )
}

fn limited() -> NetworkSpec {
    NetworkSpec {
        bandwidth: limit(2_000_000),
        ..network()
    }
}

fn limits(net: &PodNet) -> Vec<String> {
    let filters = net.in_pod.filters.iter();
    let limits = filters.filter(|filter| filter.is_limit());
    let mut texts: Vec<String> = limits.map(ToString::to_string).collect();
    texts.extend(net.in_pod.queues.iter().map(ToString::to_string));
    texts
}

#[test]
fn a_limited_pod_has_its_programs_behind_the_others_and_a_pod_without_a_limit_has_none() {
    let free = planned(&network(), &[v4(), v6()]);
    assert_eq!((limits(&free), free.bandwidth()), (Vec::new(), None));
    let net = planned(&limited(), &[v4(), v6()]);
    assert_eq!(
        limits(&net),
        [
            "program limit_egress at eth0 egress",
            "program limit_ingress at eth0 ingress",
            "program limit_egress at veth0 egress",
            "program limit_ingress at veth0 ingress",
            "qdisc fq on eth0",
            "qdisc fq on veth0",
        ]
    );
    // Nothing else changes.
    let mut rest = net.clone();
    rest.in_pod.filters.retain(|filter| !filter.is_limit());
    rest.in_pod.queues.clear();
    if let Some(spec) = &mut rest.spec {
        spec.bandwidth = None;
    }
    assert_eq!(rest, free);
    assert_eq!(net.registered().is_followed, free.registered().is_followed);
    assert!(
        net.to_string()
            .contains("egress 2 Mbit/s, ingress 1 Mbit/s")
    );
}

#[test]
fn a_limit_is_planned_again_from_its_record_and_older_records_have_none() {
    let net = planned(&limited(), &[v4()]);
    let record = serde_json::to_value(&net).unwrap();
    let read: PodNet = serde_json::from_value(record).unwrap();
    assert_eq!(read, net);
    let gateway = |own: &PodAddress| own.gateway;
    assert_eq!(replan(&read, &node(), gateway, &settings()).unwrap(), net);
    let free = planned(&network(), &[v4()]);
    let record = serde_json::to_string(&free).unwrap();
    assert!(
        !record.contains("bandwidth") && !record.contains("queues"),
        "{record}"
    );
}

#[test]
fn a_further_interface_shares_the_limit_and_may_not_ask_for_another() {
    let existing = Existing {
        bandwidth: limit(2_000_000),
        ..after_first()
    };
    let net = second(&existing, &network());
    // The pair's programs are those of the first interface.
    assert_eq!(
        limits(&net),
        [
            "program limit_egress at net1 egress",
            "program limit_ingress at net1 ingress",
            "qdisc fq on net1",
        ]
    );
    let other = NetworkSpec {
        bandwidth: limit(3_000_000),
        ..network()
    };
    let own = [v4()];
    let refused = plan(&sandbox(), &existing, &other, &own, &node(), &settings());
    assert!(matches!(refused, Err(PlanError::OtherLimit { .. })));
}

#[test]
fn another_plugin_s_interface_is_not_limited() {
    let network = NetworkSpec {
        made_before: Some(1500),
        ..limited()
    };
    let net = planned(&network, &[v4()]);
    assert_eq!((limits(&net), net.bandwidth()), (Vec::new(), None));
}
