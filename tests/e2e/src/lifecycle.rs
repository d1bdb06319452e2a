//! Events in the life of a cluster: a new version of an app, and a node that is removed.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::plan::Family;

use super::{
    addresses::Addresses,
    declared, objects,
    stage::{AGENTS, NAMESPACE, Stage},
    traffic,
};

/// A pool that nodes share, with a pod on one of them. The VPC does not know its addresses: it is leased, but no packet
/// leaves.
const SHARED: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: shared}
spec:
  subnet: @SUBNET@
  ips: [@FIRST@-@LAST@]
  gateway: @GATEWAY@
---
apiVersion: v1
kind: Pod
metadata:
  name: lessee
  labels: {app: lessee}
  annotations:
    v1.multus-cni.io/default-network: @NETWORK@
    ipam.spidernet.io/ippool: '{"ipv4": ["shared"]}'
spec:
  nodeName: @NODE@
  terminationGracePeriodSeconds: 1
  containers: [{name: sleep, image: 'localhost/busybox:1', imagePullPolicy: Never}]
"#;

/// Checks that all pods of a Deployment are replaced. The new ones have other addresses, since the old ones cool down,
/// and the old addresses are accounted for.
pub(super) fn rollout(stage: &Stage) -> Result<String> {
    let [app, _] = stage.cloud.apps();
    let before = stage.pods(app.name)?;
    let deployment = format!("deployment/{}", app.name);
    let cluster = &stage.cluster;
    cluster.kubectl(&["rollout", "restart", &deployment])?;
    cluster.kubectl(&["rollout", "status", &deployment, "--timeout=300s"])?;
    stage.until("the old pods are gone", || stage.all_ready())?;
    let after = stage.pods(app.name)?;
    for pod in &after {
        ensure!(
            before
                .iter()
                .all(|old| old.name != pod.name && old.address != pod.address),
            "{pod:?} was there before: {before:?}"
        );
        stage.until("the pool tells of the new pod alone", || {
            objects::counted(stage, pod)
        })?;
        stage.until("the Service proxy knows the new pod", || {
            traffic::answers_locally(stage, pod)
        })?;
    }
    for old in &before {
        let told = agent_of(
            stage,
            &old.node,
            &["ebbtidectl", "ip", &old.address.to_string()],
        )?;
        ensure!(
            told.contains(&format!("default/{}", old.name)),
            "of {old:?}: {told}"
        );
    }
    let shown = |address: Vec<IpAddr>| {
        let words: Vec<String> = address.iter().map(ToString::to_string).collect();
        words.join(" ")
    };
    Ok(format!(
        "{} rest, {} are out",
        shown(before.iter().map(|pod| pod.address).collect()),
        shown(after.iter().map(|pod| pod.address).collect())
    ))
}

/// Returns the output of a command in the agent of a node.
fn agent_of(stage: &Stage, node: &str, command: &[&str]) -> Result<String> {
    let on_node = format!("spec.nodeName={node}");
    let own = ["-n", NAMESPACE];
    // The controller's pods are in the same namespace.
    let select = ["get", "pods", "-l", AGENTS, "--field-selector", &on_node];
    let pod = stage
        .cluster
        .kubectl(&[&own[..], &select, &["-o", "name"]].concat())?;
    let exec = ["exec", pod.trim(), "--"];
    stage.cluster.kubectl(&[&own[..], &exec, command].concat())
}

/// Checks that after a node was switched off and deleted its pools are empty, and its lease of a shared pool is free.
pub(super) fn node_gone(stage: &Stage) -> Result<String> {
    let node = stage.nodes().last().context("a node")?;
    let pools = match stage.addresses {
        Addresses::Told => vec![declared::pool(node)],
        Addresses::Declared => stage.cloud.nics().map(|nic| stage.pool(node, nic)).into(),
    };
    lease(stage, node)?;
    stage.switch_off(node);
    stage.cluster.kubectl(&["delete", "node", node])?;
    stage.until("nothing of the node is left", || {
        for pool in &pools {
            let status = stage.cluster.get(&["spiderippool", pool])?["status"].take();
            ensure!(
                status["allocatedIPCount"] == 0 && status["allocatedIPs"].is_null(),
                "{pool}: {status}"
            );
        }
        let endpoints = stage.cluster.get(&["spiderendpoints", "-A"])?;
        let mut endpoints = endpoints["items"].as_array().into_iter().flatten();
        let left = endpoints.find(|each| each["status"]["current"]["node"] == node);
        ensure!(left.is_none(), "{left:?}");
        ensure!(!is_leased(stage, node)?, "{node} has a lease of `shared`");
        Ok(())
    })?;
    Ok(format!(
        "nothing is out in {}; its lease is free",
        pools.join(" and ")
    ))
}

fn lease(stage: &Stage, node: &str) -> Result<()> {
    let [_, nic] = stage.cloud.nics();
    let subnet = stage.vpc.nic(node, nic).subnet(Family::V4);
    let net = subnet.primary.trunc();
    // A network of the metadata has no other addresses.
    let network = match stage.addresses {
        Addresses::Told => declared::network(stage),
        Addresses::Declared => stage.cloud.network(nic),
    };
    let mut unused = net.hosts().skip(230);
    let (first, last) = (unused.next(), unused.nth(8));
    let (first, last) = first.zip(last).context("a subnet with 239 addresses")?;
    let manifests = SHARED
        .replace("@SUBNET@", &net.to_string())
        .replace("@FIRST@", &first.to_string())
        .replace("@LAST@", &last.to_string())
        .replace("@GATEWAY@", &subnet.gateway.to_string())
        .replace("@NETWORK@", &network)
        .replace("@NODE@", node);
    stage.cluster.apply(&manifests)?;
    stage.until("a pod has an address of the shared pool", || {
        stage.are_ready("app=lessee", 1)
    })?;
    let address = stage.pod("lessee", node)?.address;
    ensure!((first..=last).contains(&address), "{address}");
    ensure!(is_leased(stage, node)?, "{node} has no lease of `shared`");
    Ok(())
}

fn is_leased(stage: &Stage, node: &str) -> Result<bool> {
    let of = ["-n", NAMESPACE, "configmap", "ebbtide-leases.shared"];
    let leases = stage.cluster.get(&of)?;
    Ok(!leases["data"][node].is_null())
}
