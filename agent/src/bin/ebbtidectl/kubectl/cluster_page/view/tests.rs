use serde_json::{Value, json};

use super::{
    super::rows::{self, rows},
    *,
};

fn list(items: &Value) -> Value {
    json!({ "items": items })
}

/// Returns an endpoint as an agent writes it.
fn endpoint(pod: &str, node: &str, ips: &Value) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": pod, "labels": {"ebbtide.io/node": node}},
        "status": {
            "current": {"uid": format!("uid-{pod}"), "node": node, "ips": ips},
            "ownerControllerType": "Deployment", "ownerControllerName": "web",
        },
    })
}

fn v4(interface: &str, address: &str, pool: &str) -> Value {
    json!({"interface": interface, "ipv4": format!("{address}/24"), "ipv4Pool": pool})
}

fn pool(name: &str, total: u64, allocated: u64) -> Value {
    json!({
        "metadata": {"name": name}, "spec": {"subnet": "10.0.0.0/24"},
        "status": {"totalIPCount": total, "allocatedIPCount": allocated},
    })
}

fn node(name: &str, ready: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})
}

fn agent(node: &str, is_ready: bool) -> Value {
    json!({
        "metadata": {"name": format!("ebbtide-{node}")},
        "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "r.example:5000/ebbtide:v0.2.0"}]},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "agent", "ready": is_ready, "restartCount": 2, "state": {"running": {}}}]},
    })
}

/// Reads lists: nodes, agents, pools, endpoints.
fn read([nodes, agents, pools, endpoints]: [Value; 4]) -> Rows {
    Rows {
        nodes: Some(rows(&list(&nodes), rows::node)),
        agents: Some(rows(&list(&agents), rows::agent)),
        pools: Some(rows(&list(&pools), rows::pool)),
        networks: Some(Vec::new()),
        endpoints: Some(rows(&list(&endpoints), rows::endpoint)),
        events: Some(Vec::new()),
        pods: HashMap::new(),
    }
}

/// A cluster of one node, with these pools and endpoints.
fn of_one(pools: Value, endpoints: Value) -> Rows {
    read([
        json!([node("n1", "True")]),
        json!([agent("n1", true)]),
        pools,
        endpoints,
    ])
}

fn texts(view: &ClusterView) -> Vec<&str> {
    view.troubles.iter().map(|it| it.text.as_str()).collect()
}

#[test]
fn a_cluster_that_is_well_has_no_troubles() {
    let both = json!({"interface": "eth0", "ipv4": "10.0.0.5/24", "ipv4Pool": "a", "ipv6": "fd00::5/64", "ipv6Pool": "b"});
    let view = view(&of_one(
        json!([pool("b", 1 << 40, 1), pool("a", 20, 2)]),
        json!([endpoint(
            "web",
            "n1",
            &json!([both, v4("net1", "10.0.0.6", "a")])
        )]),
    ));
    assert!(
        view.troubles.is_empty() && view.doubles.is_empty(),
        "{view:?}"
    );
    let totals = Totals {
        nodes: 1,
        ready_nodes: 1,
        ready_agents: 1,
        pods: 1,
        addresses: 3,
    };
    assert_eq!(view.totals, totals);
    let [n1] = view.nodes.as_slice() else {
        panic!("{view:?}")
    };
    assert_eq!((n1.level, n1.pods, n1.addresses), (Level::Well, 1, 3));
    let agent = n1.agent.as_ref().unwrap();
    assert_eq!(
        (agent.version.as_str(), agent.restarts, agent.state.as_str()),
        ("v0.2.0", 2, "ready")
    );
    let pools: Vec<_> = n1
        .pools
        .iter()
        .map(|it| (it.pool.as_str(), it.pods, it.addresses))
        .collect();
    assert_eq!(pools, [("a", 1, 2), ("b", 1, 1)]);
    let [a, b] = view.pools.as_slice() else {
        panic!("{view:?}")
    };
    assert_eq!(
        (a.held, a.allocated, a.total, a.free),
        (2, Some(2), Some(20), Some(18))
    );
    assert_eq!((b.held, b.level), (1, Level::Well));
    let [web] = view.pods.as_slice() else {
        panic!("{view:?}")
    };
    assert_eq!(
        (web.pod.as_str(), web.owner.as_str(), web.others),
        ("shop/web", "Deployment/web", false)
    );
    assert_eq!(web.interfaces.len(), 2);
}

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

#[test]
fn pools_are_judged_by_what_is_left() {
    for (total, allocated, level, trouble) in [
        (0, 0, Level::Well, None),
        (10, 9, Level::Well, None),
        (
            10,
            10,
            Level::Bad,
            Some("pools without a free address: a (0 of 10 free)"),
        ),
        (
            30,
            28,
            Level::Warn,
            Some("pools nearly empty: a (2 of 30 free)"),
        ),
        (
            5,
            7,
            Level::Bad,
            Some("pools without a free address: a (0 of 5 free)"),
        ),
        (i64::MAX as u64, 3, Level::Well, None),
    ] {
        let view = view(&of_one(json!([pool("a", total, allocated)]), json!([])));
        assert_eq!(view.pools[0].level, level, "{allocated} of {total}");
        assert_eq!(
            texts(&view).first().copied(),
            trouble,
            "{allocated} of {total}"
        );
    }
    let mut disabled = pool("a", 5, 5);
    disabled["spec"]["disable"] = json!(true);
    assert!(
        view(&of_one(json!([disabled]), json!([])))
            .troubles
            .is_empty()
    );
}

#[test]
fn nodes_and_agents_that_do_not_work_are_told() {
    let web = || json!([endpoint("web", "n1", &json!([v4("eth0", "10.0.0.5", "a")]))]);
    let mut crashed = agent("n1", false);
    crashed["status"]["containerStatuses"][0]["state"] =
        json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let mut older = agent("n2", true);
    older["spec"]["containers"][0]["image"] = json!("ebbtide:v0.1.0");
    let mut ending = agent("n1", true);
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for (nodes, agents, endpoints, expected) in [
        (
            json!([node("n1", "True")]),
            json!([agent("n1", true)]),
            web(),
            vec![],
        ),
        (
            json!([node("n1", "True")]),
            json!([ending, agent("n1", true)]),
            web(),
            vec![],
        ),
        (
            json!([node("n1", "True")]),
            json!([ending]),
            web(),
            vec!["the agent is not ready: n1 (ending)"],
        ),
        (
            json!([node("n1", "True")]),
            json!([crashed]),
            web(),
            vec!["the agent is not ready: n1 (CrashLoopBackOff)"],
        ),
        (
            json!([node("n1", "True")]),
            json!([agent("n1", false)]),
            web(),
            vec!["the agent is not ready: n1 (not ready)"],
        ),
        (
            json!([node("n1", "True")]),
            json!([]),
            web(),
            vec!["no agent, but pods with its addresses: n1"],
        ),
        (
            json!([node("n1", "Unknown"), node("n2", "True")]),
            json!([agent("n1", true)]),
            web(),
            vec![
                "no agent runs on these nodes, and no pod there can have an address: n2",
                "the node is not ready: n1",
            ],
        ),
        (
            json!([node("n2", "True")]),
            json!([agent("n2", true)]),
            web(),
            vec![
                "no agent, but pods with its addresses: n1",
                "there is no such Node, but something of it is left: n1",
            ],
        ),
        (
            json!([node("n1", "True"), node("n2", "True")]),
            json!([agent("n1", true), older]),
            web(),
            vec!["the agents are of several versions: v0.1.0 on 1, v0.2.0 on 1"],
        ),
    ] {
        let rows = read([nodes, agents, json!([pool("a", 20, 1)]), endpoints]);
        assert_eq!(texts(&view(&rows)), expected, "{rows:?}");
    }
}

#[test]
fn many_nodes_with_one_trouble_are_one_line() {
    let nodes: Vec<Value> = (0..500)
        .map(|it| node(&format!("n{it:03}"), "True"))
        .collect();
    let view = view(&read([json!(nodes), json!([]), json!([]), json!([])]));
    let expected = "no agent runs on these nodes, and no pod there can have an address: n000, n001, n002, n003, n004 and 495 more";
    assert_eq!(texts(&view), [expected]);
    assert!(view.nodes.iter().all(|it| it.level == Level::Well));
}

#[test]
fn a_pool_is_on_the_nics_of_its_networks() {
    let networks = json!([
        {"metadata": {"namespace": "shop", "name": "fast"}, "spec": {"ipvlan": {"master": ["ens6"], "ippools": {"ipv4": ["named-*"]}}}},
        {"metadata": {"namespace": "kube-system", "name": "fast"}, "spec": {"ipvlan": {"master": ["ens7"]}}},
        {"metadata": {"namespace": "shop", "name": "bond"}, "spec": {"ipvlan": {"master": ["ens8", "ens9"]}}},
        {"metadata": {"namespace": "shop", "name": "odd"}, "spec": {"macvlan": {"master": ["ens9"]}}},
    ]);
    let of = |name: &str, networks: Value| json!({"metadata": {"name": name}, "spec": {"multusName": networks}});
    for (pool, nic) in [
        (of("a", json!(["shop/fast"])), "ens6"),
        (of("a", json!(["fast"])), "ens6, ens7"),
        (of("a", json!(["shop/bond"])), "ens8+ens9"),
        (of("a", json!(["shop/odd"])), ""),
        (of("a", json!([])), ""),
        (of("named-1", Value::Null), "ens6"),
    ] {
        let mut rows = of_one(json!([pool]), json!([]));
        rows.networks = Some(rows::rows(&list(&networks), rows::network));
        assert_eq!(view(&rows).pools[0].nic, nic, "{pool}");
    }
}

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

#[test]
fn images_have_tags() {
    for (image, version) in [
        ("ebbtide", ""),
        ("ebbtide:v1", "v1"),
        ("r.example:5000/a/ebbtide", ""),
        ("r.example:5000/a/ebbtide:v1", "v1"),
        ("r.example/ebbtide@sha256:0123456789abcdef", "0123456789ab"),
    ] {
        let mut pod = agent("n1", true);
        pod["spec"]["containers"][0]["image"] = json!(image);
        assert_eq!(rows::agent(&pod).version, version, "{image}");
    }
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
