//! Migration from Spiderpool: objects as Spiderpool writes them, and a real API server.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::{ControlPlane, Controller, Member};
use serde_json::{Value, json};

use crate::setup::{LONG, NO_REST, SHORT, add_in_the_end, cluster};

/// Pools that Spiderpool's webhook has completed. Spiderpool accepts `broken`, Ebbtide does not.
const POOLS: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: mine
  finalizers: [spiderpool.spidernet.io]
  labels: {ipam.spidernet.io/ippool-cidr: 172-31-192-0-20}
spec:
  ipVersion: 4
  subnet: 172.31.192.0/20
  ips: [172.31.199.185-172.31.199.189]
  gateway: 172.31.192.1
  default: false
  disable: false
  nodeName: [node-a]
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: shared
  finalizers: [spiderpool.spidernet.io]
  labels: {ipam.spidernet.io/ippool-cidr: 10-9-0-0-24}
spec:
  ipVersion: 4
  subnet: 10.9.0.0/24
  ips: [10.9.0.1-10.9.0.4]
  default: false
  disable: false
";

fn pod(name: &str, node: &str, pool: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  annotations: {{ipam.spidernet.io/ippool: '{{\"ipv4\": [\"{pool}\"]}}'}}
spec:
  nodeName: {node}
  containers: [{{name: c, image: none}}]
---
"
    )
}

/// Returns a SpiderEndpoint as Spiderpool writes it.
fn endpoint(pod: &str, uid: &str, node: &str, ips: &Value) -> Value {
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint",
        "metadata": {
            "name": pod, "namespace": "default", "finalizers": ["spiderpool.spidernet.io"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid,
                "controller": true, "blockOwnerDeletion": true}],
        },
        "status": {
            "current": {"uid": uid, "node": node, "ips": ips},
            "ownerControllerType": "Pod", "ownerControllerName": pod,
        },
    })
}

fn nic(interface: &str, address: &str, pool: &str) -> Value {
    json!({"interface": interface, "ipv4": address, "ipv4Pool": pool, "vlan": 0, "cleanGateway": false})
}

/// Returns a pool's status as Spiderpool writes it: JSON in a text.
fn status(entries: &[(&str, &str, &str)], total: u64) -> Value {
    let mut allocated = serde_json::Map::new();
    for (address, pod, uid) in entries {
        let holder = json!({"pod": format!("default/{pod}"), "podUid": uid});
        allocated.insert((*address).to_owned(), holder);
    }
    let count = allocated.len();
    let text = Value::Object(allocated).to_string();
    json!({"allocatedIPs": text, "totalIPCount": total, "allocatedIPCount": count})
}

fn path(pool: &str) -> String {
    format!("/apis/spiderpool.spidernet.io/v2beta1/spiderippools/{pool}")
}

/// Creates a cluster as Spiderpool leaves it: `web` runs on node-a with two NICs, `lone` runs there without an
/// endpoint, `far` and `moved` run on node-b, `gone` does not run.
fn spiderpools_cluster() -> Result<Option<ControlPlane>> {
    let Some(cluster) = cluster()? else {
        return Ok(None);
    };
    cluster.apply(POOLS)?;
    let mut pods = String::new();
    for (name, node) in [
        ("web", "node-a"),
        ("lone", "node-a"),
        ("far", "node-b"),
        ("moved", "node-b"),
    ] {
        pods += &pod(name, node, "mine");
    }
    for name in ["new-0", "new-1", "new-2"] {
        pods += &pod(name, "node-a", "mine");
    }
    for name in ["net-0", "net-1", "net-2"] {
        pods += &pod(name, "node-a", "shared");
    }
    cluster.apply(&pods)?;
    let uid = |pod: &str| -> Result<String> {
        let pod = cluster.get(&["pod", pod])?;
        Ok(pod["metadata"]["uid"].as_str().context("a UID")?.to_owned())
    };
    let (web, lone, far, moved) = (uid("web")?, uid("lone")?, uid("far")?, uid("moved")?);
    let mine = [
        ("172.31.199.185", "web", web.as_str()),
        (
            "172.31.199.186",
            "gone",
            "7d5ab2a7-0000-4000-8000-000000000000",
        ),
        ("172.31.199.187", "moved", &moved),
        ("172.31.199.188", "lone", &lone),
    ];
    cluster.set_status(&path("mine"), &status(&mine, 5))?;
    let shared = [
        ("10.9.0.1", "web", web.as_str()),
        ("10.9.0.2", "far", &far),
        ("10.9.0.3", "gone", "7d5ab2a7-0000-4000-8000-000000000000"),
    ];
    cluster.set_status(&path("shared"), &status(&shared, 4))?;
    let nics = [
        nic("eth0", "172.31.199.185/20", "mine"),
        nic("net1", "10.9.0.1/24", "shared"),
    ];
    for object in [
        endpoint("web", &web, "node-a", &json!(nics)),
        endpoint(
            "far",
            &far,
            "node-b",
            &json!([nic("eth0", "10.9.0.2/24", "shared")]),
        ),
    ] {
        cluster.apply(&object.to_string())?;
    }
    Ok(Some(cluster))
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Deletes a pod as the kubelet does in the end.
fn delete(cluster: &ControlPlane, pod: &str) -> Result<()> {
    let now = ["delete", "pod", pod, "--force", "--grace-period=0"];
    cluster.kubectl(&now).map(drop)
}

#[test]
fn what_spiderpools_pods_have_is_theirs_until_they_are_gone() -> Result<()> {
    let Some(mut cluster) = spiderpools_cluster()? else {
        return Ok(());
    };
    let state = tempfile::tempdir()?;
    let kubeconfig = cluster.kubeconfig();
    let start = || Member::start(&kubeconfig, state.path(), "node-a", NO_REST);
    let _controller = Controller::start(&kubeconfig, "controller")?;

    let agent = start()?;
    agent.is_open()?;
    agent.knows_pool("mine")?;
    let reservations: Vec<String> = agent
        .pools
        .reservations()
        .iter()
        .map(|reservation| {
            let addresses: Vec<String> = reservation
                .assigned
                .iter()
                .map(|each| each.address.to_string())
                .collect();
            format!(
                "{} {} {}",
                reservation.pod.name,
                reservation.interface,
                addresses.join(" ")
            )
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    ensure!(
        reservations
            == [
                "lone eth0 172.31.199.188",
                "moved eth0 172.31.199.187",
                "web eth0 172.31.199.185",
                "web net1 10.9.0.1",
            ],
        "{reservations:?}"
    );

    // The remaining addresses: that of a pod that is gone, and one that nobody had.
    let got = BTreeSet::from([agent.add("new-0", LONG)?, agent.add("new-1", LONG)?]);
    ensure!(
        got == addresses(&["172.31.199.186", "172.31.199.189"]),
        "{got:?}"
    );
    let full = agent.add("new-2", SHORT);
    ensure!(full.is_err(), "new-2 got a running pod's address: {full:?}");
    let got = BTreeSet::from([agent.add("net-0", LONG)?, agent.add("net-1", LONG)?]);
    ensure!(got == addresses(&["10.9.0.3", "10.9.0.4"]), "{got:?}");
    let full = agent.add("net-2", SHORT);
    ensure!(full.is_err(), "net-2 got a running pod's address: {full:?}");

    // The same after a restart without the API server.
    drop(agent);
    cluster.stop_api_server()?;
    let agent = start()?;
    agent.is_open()?;
    let full = agent.add("new-2", SHORT);
    ensure!(full.is_err(), "after a restart: {full:?}");
    cluster.start_api_server()?;

    // The pod is deleted: its addresses are released, and Spiderpool's object is deleted.
    delete(&cluster, "web")?;
    let got = add_in_the_end(&agent, "new-2")?;
    ensure!(
        BTreeSet::from([got]) == addresses(&["172.31.199.185"]),
        "{got}"
    );
    cluster.kubectl(&["delete", "spiderendpoint", "web", "--wait=false"])?;
    cluster.wait_until(&["spiderendpoints"], |list| {
        let names = list["items"].as_array().into_iter().flatten();
        names.map(|each| &each["metadata"]["name"]).eq(["far"])
    })?;
    cluster.wait_until(&["spiderippool", "shared"], |pool| {
        let text = pool["status"]["allocatedIPs"].as_str().unwrap_or_default();
        text.contains("10.9.0.2") && !text.contains("10.9.0.1\"")
    })?;
    Ok(())
}

#[test]
fn nothing_is_handed_out_before_it_is_known_what_spiderpools_pods_have() -> Result<()> {
    let Some(mut cluster) = spiderpools_cluster()? else {
        return Ok(());
    };
    // An agent that knows pools and pods, as an interrupted first start leaves it.
    let state = tempfile::tempdir()?;
    let kubeconfig = cluster.kubeconfig();
    let start = || Member::start(&kubeconfig, state.path(), "node-a", NO_REST);
    let _controller = Controller::start(&kubeconfig, "controller")?;
    let first = start()?;
    first.is_open()?;
    first.knows_pool("mine")?;
    first.add("new-0", LONG)?;
    first.del("new-0")?;
    drop(first);
    std::fs::remove_file(state.path().join("spiderpool-taken-over"))?;
    cluster.stop_api_server()?;
    let agent = start()?;
    agent.knows_pool("mine")?;
    let refused = agent.add("new-0", SHORT);
    ensure!(refused.is_err(), "handed out: {refused:?}");
    cluster.start_api_server()?;
    agent.is_open()?;
    agent.add("new-0", LONG)?;
    Ok(())
}
