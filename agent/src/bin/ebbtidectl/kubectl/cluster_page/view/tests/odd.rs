//! Objects that are unknown, odd, of others, or many; and Events.

use super::*;

#[test]
fn others_objects_are_shown_as_theirs() {
    // Spiderpool's own endpoint, of a pool that is not there.
    let mut theirs = endpoint("old", "n1", &json!([v4("eth0", "10.0.0.9", "lost")]));
    theirs["metadata"]["labels"] = Value::Null;
    let view = view(&of_one(json!([]), json!([theirs])));
    assert!(view.pods[0].others);
    assert_eq!(
        texts(&view),
        ["pods have addresses of pools that are not there: lost"]
    );
    let lost = &view.pools[0];
    assert_eq!(
        (lost.held, lost.total, lost.free, lost.declared),
        (1, None, None, false)
    );
}

#[test]
fn what_was_never_answered_is_no_trouble() {
    let known = of_one(
        json!([]),
        json!([endpoint("web", "n1", &json!([v4("eth0", "10.0.0.5", "a")]))]),
    );
    let without = Rows {
        endpoints: known.endpoints,
        ..Rows::default()
    };
    let view = view(&without);
    assert!(view.troubles.is_empty(), "{view:?}");
    assert_eq!(
        (view.nodes[0].ready, view.nodes[0].level),
        (None, Level::Well)
    );
    assert_eq!(super::view(&Rows::default()), ClusterView::default());
}

#[test]
fn odd_objects_are_read_as_far_as_they_go() {
    let odd = [
        json!(null),
        json!(7),
        json!("text"),
        json!([]),
        json!({}),
        json!({"metadata": null, "spec": null, "status": null}),
        json!({"metadata": {"name": 5, "namespace": {}, "labels": [], "annotations": "x", "deletionTimestamp": 1}}),
        json!({"spec": {"nodeName": {}, "multusName": "x", "subnet": [], "ipvlan": {"master": "ens5", "ippools": {"ipv4": {}}}, "containers": {}}}),
        json!({"status": {"conditions": [null, 5, {"type": "Ready"}], "containerStatuses": [[], {"name": "agent"}], "totalIPCount": -1, "allocatedIPCount": "9"}}),
        json!({"status": {"current": {"ips": [null, 3, {}, {"ipv4": 7}, {"ipv4": "lan"}, {"ipv6": "", "ipv6Pool": []}], "node": []}}}),
        json!({"involvedObject": "x", "series": [], "count": -4, "message": {}}),
    ];
    for list in [
        json!({"items": odd}),
        json!({"items": {}}),
        json!(null),
        json!({"kind": "Status"}),
    ] {
        let rows = Rows {
            nodes: Some(rows(&list, rows::node)),
            agents: Some(rows(&list, rows::agent)),
            pools: Some(rows(&list, rows::pool)),
            networks: Some(rows(&list, rows::network)),
            endpoints: Some(rows(&list, rows::endpoint)),
            events: Some(rows(&list, rows::event)),
            pods: HashMap::from([("/".to_owned(), rows(&list, rows::pod).pop())]),
        };
        let view = view(&rows);
        assert!(serde_json::to_string(&view).is_ok());
        let count = list["items"].as_array().map_or(0, Vec::len);
        assert_eq!(view.pods.len(), count);
    }
    let view = view(&of_one(
        json!([]),
        json!([endpoint(
            "web",
            "n1",
            &json!([{"interface": "eth0", "ipv4": "lan"}])
        )]),
    ));
    assert_eq!(
        texts(&view),
        ["SpiderEndpoints with addresses that are none: shop/web (lan)"]
    );
}

#[test]
fn events_are_told_the_latest_first() {
    let event = |reason: &str, more: Value| {
        let mut event = json!({"reason": reason, "type": "Warning", "message": "x",
            "involvedObject": {"kind": "Node", "name": "n1", "namespace": "default"}});
        for (key, value) in more.as_object().unwrap() {
            event[key] = value.clone();
        }
        event
    };
    let events = json!([
        event(
            "Old",
            json!({"eventTime": "2026-01-01T00:00:01.000000Z", "lastTimestamp": null, "count": null})
        ),
        event(
            "Repeats",
            json!({"eventTime": "2026-01-01T00:00:00.000000Z", "series": {"count": 3, "lastObservedTime": "2026-01-01T00:00:09.000000Z"}})
        ),
        event(
            "Of",
            json!({"lastTimestamp": "2026-01-01T00:00:05Z", "count": 2, "type": "Normal",
            "involvedObject": {"kind": "Pod", "name": "web", "namespace": "shop"}})
        ),
    ]);
    let mut all = of_one(json!([]), json!([]));
    all.events = Some(rows(&list(&events), rows::event));
    let view = view(&all);
    let lines: Vec<_> = view
        .events
        .iter()
        .map(|it| (it.reason.as_str(), it.about.as_str(), it.times, it.level))
        .collect();
    assert_eq!(
        lines,
        [
            ("Repeats", "Node n1", 3, Level::Warn),
            ("Of", "Pod shop/web", 2, Level::Well),
            ("Old", "Node n1", 1, Level::Warn),
        ]
    );
}

/// What a browser gets of a large cluster: a look at its size.
#[test]
fn a_large_clusters_view_is_of_a_few_megabytes() {
    let nodes: Vec<Value> = (0..500)
        .map(|it| node(&format!("ip-10-0-{it}.internal"), "True"))
        .collect();
    let agents: Vec<Value> = (0..500)
        .map(|it| agent(&format!("ip-10-0-{it}.internal"), true))
        .collect();
    let endpoints: Vec<Value> = (0..20_000_u32)
        .map(|it| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + it);
            let ips = json!([v4(
                "eth0",
                &address.to_string(),
                &format!("ip-10-0-{}-ens6-v4", it % 500)
            )]);
            endpoint(
                &format!("web-6d4cf56db6-{it:05}"),
                &format!("ip-10-0-{}.internal", it % 500),
                &ips,
            )
        })
        .collect();
    let begin = std::time::Instant::now();
    let view = view(&read([
        json!(nodes),
        json!(agents),
        json!([]),
        json!(endpoints),
    ]));
    let text = serde_json::to_string(&view).unwrap();
    println!("{} bytes, {:?}", text.len(), begin.elapsed());
    assert_eq!((view.totals.nodes, view.totals.pods), (500, 20_000));
    assert!(text.len() < 8 << 20, "{}", text.len());
}
