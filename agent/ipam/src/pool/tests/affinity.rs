//! Pools for certain pods, namespaces and nodes.

use ebbtide_types::Family;

use super::*;
use crate::{catalog::Labels, pool::select::select};

fn labels(text: &str) -> Option<Labels> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').unwrap();
        (key.to_owned(), value.to_owned())
    };
    Some(text.split_whitespace().map(pair).collect())
}

fn subject(pod: &str, namespace: &str, namespace_labels: &str, node: &str) -> Subject {
    Subject {
        pod: Object {
            labels: labels(pod),
            ..Object::named("web-0")
        },
        namespace: Object {
            labels: labels(namespace_labels),
            ..Object::named(namespace)
        },
        node_labels: labels(node),
        ..Subject::UNKNOWN
    }
}

/// Returns the IPv4 pools that are tried, or why none is.
fn chosen(pools: &str, subject: &Subject) -> Result<Vec<String>, Vec<PassedOver>> {
    let catalog = catalog(pools);
    let owner = owner("c");
    let request = Request {
        subject,
        ..Request::new(&owner, "node", &catalog)
    };
    match select(&request) {
        Ok(selection) => {
            let [choice] = selection.as_slice() else {
                panic!("{selection:?}")
            };
            assert_eq!(choice.family, Family::V4);
            Ok(choice.pools.iter().map(|pool| pool.name.clone()).collect())
        }
        Err(error) => Err(error.candidates.into_iter().map(|(_, why)| why).collect()),
    }
}

#[test]
fn every_operator_of_a_label_selector_means_what_kubernetes_means() {
    for (selector, labels, expected) in [
        ("matchLabels: {app: web}", "app=web tier=x", true),
        ("matchLabels: {app: web, tier: y}", "app=web tier=x", false),
        ("matchLabels: {app: web}", "", false),
        (
            "matchExpressions: [{key: app, operator: In, values: [web, api]}]",
            "app=api",
            true,
        ),
        (
            "matchExpressions: [{key: app, operator: In, values: [web, api]}]",
            "app=db",
            false,
        ),
        (
            "matchExpressions: [{key: app, operator: In, values: [web]}]",
            "",
            false,
        ),
        (
            "matchExpressions: [{key: app, operator: NotIn, values: [web]}]",
            "app=db",
            true,
        ),
        (
            "matchExpressions: [{key: app, operator: NotIn, values: [web]}]",
            "",
            true,
        ),
        (
            "matchExpressions: [{key: app, operator: NotIn, values: [web]}]",
            "app=web",
            false,
        ),
        (
            "matchExpressions: [{key: app, operator: Exists}]",
            "app=",
            true,
        ),
        (
            "matchExpressions: [{key: app, operator: Exists}]",
            "",
            false,
        ),
        (
            "matchExpressions: [{key: app, operator: DoesNotExist}]",
            "",
            true,
        ),
        (
            "matchExpressions: [{key: app, operator: DoesNotExist}]",
            "app=x",
            false,
        ),
        (
            "matchLabels: {app: web}, matchExpressions: [{key: old, operator: DoesNotExist}]",
            "app=web old=1",
            false,
        ),
    ] {
        for field in ["podAffinity", "namespaceAffinity", "nodeAffinity"] {
            let pools =
                format!("p: {{subnet: 10.0.0.0/24, default: true, {field}: {{{selector}}}}}");
            let subject = subject(labels, "shop", labels, labels);
            assert_eq!(
                chosen(&pools, &subject).is_ok(),
                expected,
                "{field} {selector} {labels:?}"
            );
        }
    }
}

#[test]
fn names_win_over_labels() {
    let pools = "
        node: {subnet: 10.0.0.0/24, default: true, nodeName: [node], nodeAffinity: {matchLabels: {zone: b}}}
        space: {subnet: 10.0.1.0/24, default: true, namespaceName: [shop], namespaceAffinity: {matchLabels: {team: b}}}
        other: {subnet: 10.0.2.0/24, default: true, namespaceName: [bank], namespaceAffinity: {matchLabels: {team: a}}}";
    let subject = subject("", "shop", "team=a", "zone=a");
    assert_eq!(
        chosen(pools, &subject),
        Ok(vec!["node".into(), "space".into()])
    );
}

#[test]
fn the_more_specific_goes_first_in_the_documented_order() {
    let pools = "
        a-none: {subnet: 10.0.0.0/24, default: true}
        b-namespace-labels: {subnet: 10.0.1.0/24, default: true, namespaceAffinity: {matchLabels: {l: l}}}
        c-namespace: {subnet: 10.0.2.0/24, default: true, namespaceName: [shop]}
        d-node-labels: {subnet: 10.0.3.0/24, default: true, nodeAffinity: {matchLabels: {l: l}}}
        e-node: {subnet: 10.0.4.0/24, default: true, nodeName: [node]}
        f-pod: {subnet: 10.0.5.0/24, default: true, podAffinity: {matchLabels: {l: l}}}";
    let order = [
        "f-pod",
        "e-node",
        "d-node-labels",
        "c-namespace",
        "b-namespace-labels",
        "a-none",
    ];
    let subject = subject("l=l", "shop", "l=l", "l=l");
    assert_eq!(
        chosen(pools, &subject),
        Ok(order.map(str::to_owned).to_vec())
    );
}

#[test]
fn what_is_not_known_is_never_guessed() {
    let absent = "{matchExpressions: [{key: x, operator: DoesNotExist}]}";
    for (field, condition, what) in [
        ("podAffinity", absent, "the pod's labels"),
        ("namespaceAffinity", absent, "the namespace's labels"),
        ("nodeAffinity", absent, "the node's labels"),
        ("namespaceName", "[shop]", "the pod's namespace"),
    ] {
        let pools = format!("p: {{subnet: 10.0.0.0/24, default: true, {field}: {condition}}}");
        assert_eq!(
            chosen(&pools, &Subject::UNKNOWN),
            Err(vec![PassedOver::NotKnown(field, what)])
        );
    }
}

#[test]
fn a_pool_passed_over_says_why() {
    for (condition, why) in [
        (
            "podAffinity: {matchLabels: {a: b}}",
            "has a podAffinity that the pod's labels do not meet",
        ),
        (
            "namespaceName: [bank, vault]",
            "is for namespace bank, vault",
        ),
        (
            "nodeAffinity: {matchLabels: {a: b}}",
            "has a nodeAffinity that the node's labels do not meet",
        ),
    ] {
        let pools = format!("p: {{subnet: 10.0.0.0/24, default: true, {condition}}}");
        let reasons = chosen(&pools, &subject("", "shop", "", "")).unwrap_err();
        assert_eq!(reasons[0].to_string(), why);
    }
}
