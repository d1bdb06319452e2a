mod doubles;
mod nodes;
mod odd;

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
