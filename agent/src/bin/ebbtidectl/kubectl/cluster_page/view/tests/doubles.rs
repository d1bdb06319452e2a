//! Addresses that more than one pod has.

use super::*;

#[test]
fn an_address_of_two_living_pods_is_a_double() {
    let of = |pod: &str, address: &str| endpoint(pod, "n1", &json!([v4("eth0", address, "a")]));
    let mut ending = of("ending", "10.0.0.5");
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let six = |pod: &str, address: &str| {
        endpoint(pod, "n1", &json!([{"interface": "eth0", "ipv6": address}]))
    };
    let twice = endpoint(
        "self",
        "n1",
        &json!([v4("eth0", "10.0.0.5", "a"), v4("net1", "10.0.0.5", "a")]),
    );
    let looked = |uid: &str, has_ended| {
        Some(PodRow {
            uid: uid.to_owned(),
            has_ended,
        })
    };
    type Looks = Vec<(&'static str, Option<PodRow>)>;
    let cases: Vec<(&str, Value, Looks, &[&str])> = vec![
        (
            "two addresses",
            json!([of("a", "10.0.0.5"), of("b", "10.0.0.6")]),
            vec![],
            &[],
        ),
        (
            "one address",
            json!([of("a", "10.0.0.5"), of("b", "10.0.0.5")]),
            vec![],
            &["10.0.0.5"],
        ),
        (
            "of one that ends",
            json!([of("a", "10.0.0.5"), ending]),
            vec![],
            &[],
        ),
        (
            "of one that has ended",
            json!([of("a", "10.0.0.5"), of("b", "10.0.0.5")]),
            vec![
                ("shop/a", looked("uid-a", true)),
                ("shop/b", looked("uid-b", false)),
            ],
            &[],
        ),
        (
            "of one that is gone",
            json!([of("a", "10.0.0.5"), of("b", "10.0.0.5")]),
            vec![("shop/a", None), ("shop/b", looked("uid-b", false))],
            &[],
        ),
        (
            "of an older one of its name",
            json!([of("a", "10.0.0.5"), of("b", "10.0.0.5")]),
            vec![
                ("shop/a", looked("other", false)),
                ("shop/b", looked("uid-b", false)),
            ],
            &[],
        ),
        (
            "both live",
            json!([of("a", "10.0.0.5"), of("b", "10.0.0.5")]),
            vec![
                ("shop/a", looked("uid-a", false)),
                ("shop/b", looked("uid-b", false)),
            ],
            &["10.0.0.5"],
        ),
        // Written differently, it is the same.
        (
            "IPv6",
            json!([six("a", "fd00::5/64"), six("b", "FD00:0::5")]),
            vec![],
            &["fd00::5"],
        ),
        (
            "of one pod's two interfaces",
            json!([twice]),
            vec![],
            &["10.0.0.5"],
        ),
    ];
    for (name, endpoints, looks, expected) in cases {
        let mut rows = of_one(json!([pool("a", 20, 2)]), endpoints);
        rows.pods = looks
            .into_iter()
            .map(|(pod, row)| (pod.to_owned(), row))
            .collect();
        let view = view(&rows);
        let doubles: Vec<String> = view
            .doubles
            .iter()
            .map(|it| it.address.to_string())
            .collect();
        assert_eq!(doubles, expected, "{name}");
        // Who is looked at does not depend on what was seen.
        assert_eq!(
            rows.suspects().is_empty(),
            rows.pods.is_empty() && expected.is_empty(),
            "{name}"
        );
    }
}

#[test]
fn what_has_ended_is_shown_and_does_not_count() {
    let mut rows = of_one(
        json!([pool("a", 20, 0)]),
        json!([
            endpoint("gone", "n1", &json!([v4("eth0", "10.0.0.5", "a")])),
            endpoint("web", "n1", &json!([v4("eth0", "10.0.0.5", "a")])),
        ]),
    );
    rows.pods = HashMap::from([("shop/gone".to_owned(), None)]);
    let view = view(&rows);
    assert_eq!(
        (view.totals.pods, view.totals.addresses, view.pools[0].held),
        (1, 1, 1)
    );
    let ends: Vec<_> = view
        .pods
        .iter()
        .map(|it| (it.pod.as_str(), it.end))
        .collect();
    assert_eq!(ends, [("shop/gone", "is gone"), ("shop/web", "")]);
}
