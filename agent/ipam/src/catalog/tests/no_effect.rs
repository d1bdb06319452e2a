//! Fields without effect are reported, and affect nothing else.

use super::*;

/// Returns the fields of these objects that have no effect.
fn named(text: &str) -> Vec<String> {
    let catalog = catalog(text);
    for problem in catalog.problems() {
        assert_eq!(problem.consequence, Consequence::FieldIgnored, "{problem}");
        assert!(problem.message.starts_with("has no effect: "), "{problem}");
    }
    let fields = catalog
        .problems()
        .iter()
        .filter_map(|each| each.field.clone());
    fields.collect()
}

fn coordinator(spec: &str) -> String {
    format!(
        "---\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderCoordinator\nmetadata: {{name: default}}\nspec: {spec}\n"
    )
}

#[test]
fn each_field_of_a_coordinator_that_does_nothing_is_named_and_spiderpools_own_defaults_are_not() {
    for (fields, expected) in [
        (
            "policyRoutes: [{dst: 10.40.0.0/16, gw: 10.70.16.7}]",
            "policyRoutes",
        ),
        ("podMACPrefix: '0a:1b'", "podMACPrefix"),
        ("tunePodRoutes: false", "tunePodRoutes"),
        ("hostRuleTable: 520", "hostRuleTable"),
        ("hostRPFilter: 1", "hostRPFilter"),
        ("podRPFilter: -1", "podRPFilter"),
        ("txQueueLen: 2000", "txQueueLen"),
        ("detectIPConflict: true", "detectIPConflict"),
        ("detectGateway: on", "detectGateway"),
        ("detectOptions: {retry: 3}", "detectOptions"),
        ("vethLinkAddress: 169.254.100.1", "vethLinkAddress"),
        ("vethLinkAddress: rubbish", "vethLinkAddress"),
        ("vethMTU: 1450", "vethMTU"),
        ("tuneMode: underlay", "tuneMode"),
        ("podCIDRType: calico", "podCIDRType"),
        ("colour: green", "colour"),
        // Defaults that Spiderpool's chart and webhook fill in.
        (
            "mode: auto, podCIDRType: auto, hijackCIDR: [169.254.0.0/16], policyRoutes: [], vethLinkAddress: '', \
             podMACPrefix: '', podDefaultRouteNIC: '', podRPFilter: 0, tunePodRoutes: true, hostRuleTable: 500, \
             txQueueLen: 0, vethMTU: 1500, detectGateway: false, detectIPConflict: false",
            "",
        ),
    ] {
        let expected: Vec<&str> = expected
            .split(' ')
            .filter(|name| !name.is_empty())
            .collect();
        let of_cluster = named(&coordinator(&format!("{{{fields}}}")));
        let wanted: Vec<String> = expected.iter().map(|name| format!("spec.{name}")).collect();
        assert_eq!(of_cluster, wanted, "{fields}");
        let block =
            format!("{{cniType: ipvlan, ipvlan: {{master: [ens5]}}, coordinator: {{{fields}}}}}");
        let wanted: Vec<String> = expected
            .iter()
            .map(|name| format!("spec.coordinator.{name}"))
            .collect();
        assert_eq!(named(&network("name: n", &block)), wanted, "{fields}");
    }
}

#[test]
fn each_field_of_a_network_that_does_nothing_is_named() {
    for (spec, expected) in [
        (
            "{cniType: ipvlan, ipvlan: {master: [ens5]}, chainCNIJsonData: ['{\"type\": \"tuning\"}']}",
            &["spec.chainCNIJsonData"][..],
        ),
        (
            "{cniType: ipvlan, ipvlan: {master: [ens5], rdmaResourceName: example.com/a, qos: 7}, colour: green}",
            &[
                "spec.colour",
                "spec.ipvlan.qos",
                "spec.ipvlan.rdmaResourceName",
            ],
        ),
        (
            "{cniType: ipvlan, enableCoordinator: false, coordinator: {txQueueLen: 7}, \
             ipvlan: {master: [ens5], rdmaResourceName: '', ippools: {}}, chainCNIJsonData: [], customCNI: ''}",
            &[],
        ),
    ] {
        assert_eq!(named(&network("name: n", spec)), expected, "{spec}");
    }
}

#[test]
fn an_unknown_field_is_named_wherever_it_is_and_its_object_is_in_use() {
    let text = pool(
        "a",
        "{subnet: 10.0.0.0/24, gatway: 10.0.0.1, routes: [{dst: 10.9.0.0/16, gw: 10.0.0.1, metric: 7}]}",
    );
    assert_eq!(named(&text), ["spec.gatway", "spec.routes[0].metric"]);
    assert_eq!(catalog(&text).pools().len(), 1);
    let reserved = "---\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderReservedIP\nmetadata: {name: r}\n\
                    spec: {ips: [10.0.0.7], excludeIPs: [10.0.0.8]}\n";
    assert_eq!(named(reserved), ["spec.excludeIPs"]);
}

#[test]
fn what_is_the_networks_or_the_clusters_alone_is_named_in_the_other() {
    assert_eq!(named(&coordinator("{mode: disabled}")), ["spec.mode"]);
    assert_eq!(
        named(&coordinator("{mode: underlay, podCIDRType: cluster}")),
        [""; 0]
    );
    let block = "{cniType: ipvlan, ipvlan: {master: [ens5]}, coordinator: {mode: disabled, podCIDRType: cluster}}";
    assert_eq!(
        named(&network("name: n", block)),
        ["spec.coordinator.podCIDRType"]
    );
}
