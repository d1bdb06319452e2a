//! `hostPort`: served by the plugin portmap on nodes that have it, reported by an Event on others.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    plan::{Family, Plan},
    traffic::Protocol,
};

use super::{
    http,
    stage::Stage,
    traffic::{self, Wanted},
};

/// The first of the load balancer's ports.
const LISTENERS: u16 = 11_400;
/// The port on the nodes.
const PORT: u16 = 8090;
/// The reason of the Event if it is not served.
const REASON: &str = "HostPortIgnored";
const SHORT: Duration = Duration::from_secs(3);
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: port-@NODE@
  labels: {app: port}
  annotations: {v1.multus-cni.io/default-network: @NETWORK@}
spec:
  nodeName: @NODE@
  terminationGracePeriodSeconds: 1
  containers:
    - name: web
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [httpd, -f, -p, "80", -h, /www]
      ports: [{containerPort: 80, hostPort: @PORT@}]
      readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 2, timeoutSeconds: 5}
      volumeMounts: [{name: who, mountPath: /www/cgi-bin}]
  volumes: [{name: who, configMap: {name: who, defaultMode: 0755}}]
"#;

/// Checks a pod with a `hostPort` on each node, on the second NIC. It is reached at both of the node's NICs, by their
/// own wires and with the client's address, and no longer after it was deleted. The last node has no portmap.
pub(super) fn by_portmap(stage: &Stage) -> Result<String> {
    let [_, nic] = stage.cloud.nics();
    for node in stage.nodes() {
        let pod = POD
            .replace("@NODE@", node)
            .replace("@PORT@", &PORT.to_string())
            .replace("@NETWORK@", &stage.cloud.network(nic));
        stage.cluster.apply(&pod)?;
    }
    let reached = reached(stage);
    let all = ["delete", "pod", "-l", "app=port", "--wait=false"];
    stage.cluster.kubectl(&all)?;
    stage.until("the pods with a hostPort are gone", || {
        stage.are_ready("app=port", 0)
    })?;
    let reached = reached?;
    stage.until("nobody serves the hostPort", || {
        match stage.nodes().find(|node| is_served(stage, node)) {
            Some(node) => bail!("{node} still does"),
            None => Ok(()),
        }
    })?;
    Ok(reached)
}

fn at(stage: &Stage, node: &str, nic: &str) -> SocketAddr {
    SocketAddr::new(stage.vpc.nic(node, nic).primary(Family::V4), PORT)
}

/// Whether the port answers from another machine of the VPC.
fn is_served(stage: &Stage, node: &str) -> bool {
    let from = stage.vpc.node(Plan::CONTROL);
    let [first, _] = stage.cloud.nics();
    http::get(from, None, at(stage, node, first), "who", SHORT).is_ok()
}

fn reached(stage: &Stage) -> Result<String> {
    stage.until("the pods with a hostPort are ready", || {
        stage.are_ready("app=port", stage.nodes().count())
    })?;
    let last = stage.nodes().last().context("no node")?.to_owned();
    let mut wanted: Vec<Wanted> = Vec::new();
    for pod in stage.pods("port")? {
        if pod.node == last {
            continue;
        }
        ensure!(is_served(stage, &pod.node), "not from the VPC's inside");
        for nic in stage.cloud.nics() {
            let target = at(stage, &pod.node, nic);
            wanted.push((pod.node.clone(), nic, target, vec![pod.clone()], true));
        }
    }
    let served = traffic::serve(stage, Protocol::Tcp, LISTENERS, wanted)?;
    ensure!(
        !is_served(stage, &last),
        "{last} has no portmap, and serves"
    );
    stage.until("an Event says that nobody serves it", || {
        let selector = format!("involvedObject.name=port-{last},reason={REASON}");
        let events = stage
            .cluster
            .get(&["events", "--field-selector", &selector])?;
        ensure!(events["items"][0].is_object(), "no {REASON} on port-{last}");
        Ok(())
    })?;
    Ok(format!("{served}; without portmap: {REASON}"))
}
