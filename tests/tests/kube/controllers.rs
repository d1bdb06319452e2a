//! What the controller and the agents write, and how they behave when one of them or the API server dies.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use ebbtide_cluster::{Controller, Member};
use ebbtide_kube::{leader, leases};
use serde_json::{Value, json};

use crate::setup::{LONG, NO_REST, SHORT, add_in_the_end, cluster};

const OBJECTS: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: ipvlan-ens5, namespace: default}
spec: {cniType: ipvlan, ipvlan: {master: [ens5], ippools: {ipv4: [one]}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: one}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.12], gateway: 10.0.0.1, nodeName: [node-a], default: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: empty}
spec: {subnet: 10.1.0.0/24, ips: [10.1.0.10]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: wrong}
spec: {subnet: 10.2.0.0/24, ips: [10.3.0.10]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: bad-chain, namespace: other}
spec: {cniType: ipvlan, ipvlan: {master: [ens5]}, chainCNIJsonData: ['{\"type\": \"tuning\", }']}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: idle-field, namespace: other}
spec: {cniType: ipvlan, ipvlan: {master: [ens5]}, coordinator: {txQueueLen: 2000}}
";

/// A SpiderEndpoint as an agent writes it.
const ENDPOINT: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderEndpoint
metadata: {name: web, namespace: default, labels: {ebbtide.io/node: node-b}}
status:
  current: {uid: u-1, node: node-b, ips: [{interface: eth0, ipv4: 10.0.0.10/24, ipv4Pool: one}]}
";

const SHARED: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: shared}
spec: {subnet: 10.9.0.0/24, ips: [10.9.0.1-10.9.0.4], default: true}
";

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
    })
}

fn finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"] == json!(["spiderpool.spidernet.io"])
}

#[test]
fn what_concerns_no_node_is_written_and_kept_and_an_api_server_that_is_away_stops_no_pod()
-> Result<()> {
    let Some(mut cluster) = cluster()? else {
        return Ok(());
    };
    // Its networks are not the first ones, which the test looks for below.
    cluster.kubectl(&["create", "namespace", "other"])?;
    cluster.apply(OBJECTS)?;
    for name in ["web-0", "web-1"] {
        cluster.apply(&pod(name, "node-a").to_string())?;
    }
    let state = tempfile::tempdir()?;
    let kubeconfig = cluster.kubeconfig();
    let start = || Member::start(&kubeconfig, state.path(), "node-a", NO_REST);
    let agent = start()?;
    let _controller = Controller::start(&kubeconfig, "controller")?;

    // What Spiderpool's webhook and controllers would have written.
    for pool in ["one", "empty"] {
        cluster.wait_until(&["spiderippool", pool], |pool| {
            pool["spec"]["ipVersion"] == 4 && finalizers(pool)
        })?;
    }
    let definition = ["network-attachment-definitions"];
    let made = cluster.wait_until(&definition, |list| list["items"][0].is_object())?;
    let (first, owner) = (
        &made["items"][0],
        &made["items"][0]["metadata"]["ownerReferences"][0],
    );
    ensure!(first["metadata"]["name"] == "ipvlan-ens5", "{first:#}");
    ensure!(
        owner["kind"] == "SpiderMultusConfig" && owner["controller"] == true,
        "{owner:#}"
    );
    cluster.kubectl(&["delete", "network-attachment-definition", "ipvlan-ens5"])?;
    let again = cluster.wait_until(&definition, |list| list["items"][0].is_object())?;
    ensure!(again["items"][0]["spec"] == first["spec"], "{again:#}");

    // Events tell which objects were left out and which fields have no effect, and why.
    for (reason, object, field) in [
        ("Invalid", "wrong", "ips"),
        ("Invalid", "bad-chain", "chainCNIJsonData"),
        ("NoEffect", "idle-field", "txQueueLen"),
    ] {
        let of_object = format!("involvedObject.name={object},reason={reason}");
        cluster.wait_until(&["events", "-A", "--field-selector", &of_object], |list| {
            let message = list["items"][0]["message"].as_str().unwrap_or_default();
            message.contains(field)
        })?;
    }

    // The owners in Spiderpool's format. The pool stays while one has an address.
    cluster.apply(ENDPOINT)?;
    let used = |pool: &Value| pool["status"]["allocatedIPCount"] == 1;
    let pool = cluster.wait_until(&["spiderippool", "one"], used)?;
    let text = pool["status"]["allocatedIPs"].as_str().unwrap_or_default();
    let holders: Value = serde_json::from_str(text)?;
    ensure!(
        holders == json!({"10.0.0.10": {"pod": "default/web", "podUid": "u-1"}}),
        "{holders:#}"
    );
    ensure!(pool["status"]["totalIPCount"] == 3, "{pool:#}");
    cluster.kubectl(&["delete", "spiderippool", "empty", "--wait=false"])?;
    let names = |list: &Value| -> BTreeSet<String> {
        let items = list["items"].as_array().into_iter().flatten();
        let names = items.filter_map(|each| each["metadata"]["name"].as_str());
        names.map(str::to_owned).collect()
    };
    cluster.wait_until(&["spiderippools"], |list| !names(list).contains("empty"))?;

    // The API server dies, then the agent: what the agent knew is enough to serve pods.
    agent.knows_pool("one")?;
    agent.is_open()?;
    agent.add("web-0", LONG)?;
    cluster.stop_api_server()?;
    let with = agent.add("web-1", LONG)?;
    agent.del("web-1")?;
    drop(agent);
    let agent = start()?;
    let without = agent.add("web-1", LONG)?;
    let pool: Vec<IpAddr> = vec![
        "10.0.0.10".parse()?,
        "10.0.0.11".parse()?,
        "10.0.0.12".parse()?,
    ];
    ensure!(
        pool.contains(&with) && pool.contains(&without),
        "{with} {without}"
    );
    cluster.start_api_server()?;

    // A deleted pool stays while an address is in use, and is removed then.
    cluster.kubectl(&["delete", "spiderippool", "one", "--wait=false"])?;
    std::thread::sleep(SHORT);
    ensure!(
        names(&cluster.get(&["spiderippools"])?).contains("one"),
        "a used pool went"
    );
    cluster.kubectl(&["delete", "spiderendpoint", "web"])?;
    cluster.wait_until(&["spiderippools"], |list| !names(list).contains("one"))?;
    Ok(())
}

/// Returns the number of addresses that the ConfigMap gives to the node.
fn leased(map: &Value, node: &str) -> usize {
    let text = map["data"][node].as_str().unwrap_or_default();
    let last = |address: &str| -> usize {
        let number = address.trim().rsplit('.').next().unwrap_or_default();
        number.parse().unwrap_or(0)
    };
    text.split(',')
        .filter(|range| !range.trim().is_empty())
        .map(|range| {
            let (first, end) = range.split_once('-').unwrap_or((range, range));
            last(end) + 1 - last(first)
        })
        .sum()
}

/// Shorter times than the shipped ones, but long enough for a leader that waits for the API server on a busy machine.
fn quick() -> leader::Times {
    leader::Times {
        duration: Duration::from_secs(8),
        renew: Duration::from_secs(2),
        spread: Duration::from_secs(1),
    }
}

#[test]
fn one_controller_is_elected_and_when_it_goes_another_is_and_a_gone_nodes_addresses_are_free()
-> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    cluster.apply(SHARED)?;
    for node in ["node-a", "node-b"] {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        cluster.apply(&object.to_string())?;
    }
    for number in 0..4 {
        for node in ["a", "b"] {
            let pod = pod(&format!("{node}-{number}"), &format!("node-{node}"));
            cluster.apply(&pod.to_string())?;
        }
    }
    let state = tempfile::tempdir()?;
    let start = |node: &str| {
        let agent = Member::start_with(
            &cluster.kubeconfig(),
            &state.path().join(node),
            node,
            NO_REST,
            leases::Pace {
                look: Duration::from_secs(2),
            },
        )?;
        agent.is_open()?;
        agent.knows_pool("shared")?;
        anyhow::Ok(agent)
    };
    let elected = ["lease", "ebbtide-agent"];
    let holder = |lease: &Value| lease["spec"]["holderIdentity"].clone();
    let stand = |name| Controller::start_with(&cluster.kubeconfig(), name, quick());
    let elected_first = stand("controller-a")?;
    let lease = cluster.wait_until(&["leases"], |list| list["items"][0].is_object())?;
    ensure!(holder(&lease["items"][0]) == "controller-a", "{lease:#}");
    let _elected_second = stand("controller-b")?;
    let (first, second) = (start("node-a")?, start("node-b")?);

    // All four addresses are leased to the first node.
    let mut had = BTreeSet::new();
    for number in 0..4 {
        had.insert(first.add(&format!("a-{number}"), LONG)?);
    }
    ensure!(had.len() == 4, "{had:?}");
    let full = second.add("b-0", SHORT);
    ensure!(full.is_err(), "given out twice: {full:?}");

    // One becomes free there, and is moved to the node that waits.
    first.del("a-0")?;
    let got = second.add("b-0", LONG)?;
    ensure!(had.contains(&got), "{got}");

    // The other candidate was not elected meanwhile, though it tried.
    let lease = cluster.get(&elected)?;
    ensure!(holder(&lease) == "controller-a", "{lease:#}");
    drop((first, elected_first));
    cluster.kubectl(&["delete", "node", "node-a"])?;
    cluster.wait_until(&elected, |lease| holder(lease) == "controller-b")?;
    for number in 1..4 {
        second.add(&format!("b-{number}"), LONG)?;
    }

    // Addresses that are unused for long are returned, except one for the next pod.
    for number in 1..4 {
        second.del(&format!("b-{number}"))?;
    }
    let map = ["configmap", "ebbtide-leases.shared"];
    cluster.wait_until(&map, |map| leased(map, "node-b") == 2)?;
    Ok(())
}

#[test]
fn a_statefulsets_address_waits_for_its_pod_until_the_set_is_scaled_down() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    cluster.apply(
        "---
         {apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: two},
          spec: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.2], nodeName: [node-a], default: true}}",
    )?;
    cluster.apply(
        "---
         {apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}, spec: {replicas: 2,
          serviceName: db, selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}},
          spec: {containers: [{name: c, image: none}]}}}}",
    )?;
    let set = cluster.get(&["statefulset", "db"])?;
    let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db",
        "uid": set["metadata"]["uid"], "controller": true}]);
    for name in ["db-0", "db-1", "other"] {
        let mut pod = pod(name, "node-a");
        if name != "other" {
            pod["metadata"]["ownerReferences"] = owner.clone();
        }
        cluster.apply(&pod.to_string())?;
    }
    let state = tempfile::tempdir()?;
    let agent = Member::start(&cluster.kubeconfig(), state.path(), "node-a", NO_REST)?;
    agent.is_open()?;
    agent.knows_pool("two")?;
    let (first, second) = (agent.add("db-0", LONG)?, agent.add("db-1", LONG)?);
    for pod in ["db-0", "db-1"] {
        agent.del(pod)?;
    }
    let full = agent.add("other", SHORT);
    ensure!(full.is_err(), "it was to wait for a pod: {full:?}");
    cluster.kubectl(&["scale", "statefulset", "db", "--replicas=1"])?;
    let got = add_in_the_end(&agent, "other")?;
    ensure!(got == second, "{got}, not {second}");
    let again = agent.add("db-0", SHORT)?;
    ensure!(again == first, "{again}, not {first}");
    Ok(())
}
