//! What the agents know of the cloud's addresses, and what becomes of addresses that come and go.

use std::{net::IpAddr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{plan::Family, progress::seconds, traffic::Protocol};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    cloud::Cloud,
    objects,
    stage::{Pod, Stage},
    traffic,
};

/// The first of the load balancer's ports.
const LISTENERS: u16 = 11_600;
/// The place of the further address among the hosts of its subnet.
const FURTHER: usize = 199;
/// The pod whose address is assigned while it waits, and taken away while it has it.
const NAME: &str = "late";
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: late
  labels: {app: late}
  annotations: {v1.multus-cni.io/default-network: @NETWORK@}
spec:
  nodeName: @NODE@
  terminationGracePeriodSeconds: 1
  containers:
    - name: web
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [httpd, -f, -p, "80", -h, /www]
      readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 2, timeoutSeconds: 5}
      volumeMounts: [{name: who, mountPath: /www/cgi-bin}]
  volumes: [{name: who, configMap: {name: who, defaultMode: 0755}}]
"#;

/// Returns what the agent of a node answers to `ebbtidectl`. A shell on the node asks it: an exec takes seconds in
/// user-mode Linux.
pub(super) fn ebbtidectl(stage: &Stage, node: &str, words: &[&str]) -> Result<Value> {
    let host = stage.pod("host", node)?;
    let page = format!("ebbtidectl?{}+-o+json", words.join("+"));
    let text = stage.script(&host, &page)?;
    serde_json::from_str(&text)
        .with_context(|| format!("ebbtidectl {} on {node}: {text}", words.join(" ")))
}

/// Returns the line of `ebbtidectl pools` on a node about a pool.
pub(super) fn pool(stage: &Stage, node: &str, name: &str) -> Result<Value> {
    let pools = ebbtidectl(stage, node, &["pools"])?;
    let mut pools = pools.as_array().into_iter().flatten();
    let found = pools.find(|pool| pool["name"] == name).cloned();
    found.with_context(|| format!("{node} has no pool {name}"))
}

/// Checks that a pod's pool has one address in use, of as many as the cloud has assigned, and that it is this pod's.
pub(super) fn counted(stage: &Stage, pod: &Pod) -> Result<()> {
    let (nic, name) = stage.place(pod)?;
    let assigned = stage.vpc.assigned(&pod.node, nic).len();
    let line = pool(stage, &pod.node, &name)?;
    ensure!(line["used"] == 1 && line["total"] == assigned, "{line}");
    ensure!(line["source"].is_string(), "{line}");
    let block = block(stage, &pod.node, nic, pod.address)?;
    ensure!(block["state"] == "usable" && is_of(&block, pod), "{block}");
    Ok(())
}

/// Returns the lines of `ebbtidectl cloud` on a node about what was assigned to a NIC.
fn blocks(stage: &Stage, node: &str, nic: &str) -> Result<Vec<Value>> {
    let report = ebbtidectl(stage, node, &["cloud"])?;
    let mut nics = report["nics"].as_array().into_iter().flatten();
    let of_nic = nics.find(|line| line["link"] == nic);
    let of_nic = of_nic.with_context(|| format!("{node} is not told of {nic}: {report}"))?;
    let blocks = of_nic["blocks"].as_array();
    Ok(blocks.cloned().unwrap_or_default())
}

/// Returns the line about an address.
pub(super) fn block(stage: &Stage, node: &str, nic: &str, address: IpAddr) -> Result<Value> {
    let text = IpNet::from(address).to_string();
    let blocks = blocks(stage, node, nic)?;
    let found = blocks.iter().find(|line| line["block"] == *text).cloned();
    found.with_context(|| format!("{text} is not among {blocks:?}"))
}

/// Whether a line says that this pod has the address.
fn is_of(block: &Value, pod: &Pod) -> bool {
    let expected = format!("default/{} ({})", pod.name, pod.address);
    let mut pods = block["pods"].as_array().into_iter().flatten();
    pods.any(|one| *one == expected)
}

/// The first node and its second NIC.
fn place(stage: &Stage) -> Result<(&str, &'static str)> {
    let [_, nic] = stage.cloud.nics();
    Ok((stage.nodes().next().context("a node")?, nic))
}

/// Returns an address of a NIC's subnet that nobody has.
pub(super) fn further(stage: &Stage, node: &str, nic: &str, number: usize) -> Result<IpAddr> {
    let subnet = stage.vpc.nic(node, nic).subnet(Family::V4).primary.trunc();
    let mut hosts = subnet.hosts().skip(FURTHER + number);
    hosts.next().context("a subnet with so many addresses")
}

/// Checks that a pod that finds no address says how to assign one, and has it soon after it was assigned.
pub(super) fn assigned(stage: &Stage) -> Result<String> {
    let (node, nic) = place(stage)?;
    leave_none(stage, node, nic)?;
    let pod = POD
        .replace("@NODE@", node)
        .replace("@NETWORK@", &stage.cloud.network(nic));
    stage.cluster.apply(&pod)?;
    let more = match stage.cloud {
        Cloud::Aws => "aws ec2 assign-private-ip-addresses --network-interface-id eni-",
        Cloud::Alibaba => "aliyun ecs AssignPrivateIpAddresses --NetworkInterfaceId eni-",
    };
    stage.until("an Event says how to assign another address", || {
        let told = objects::event(stage, NAME, "NoNetwork")?;
        ensure!(told.contains(more), "{told}");
        Ok(())
    })?;
    let address = further(stage, node, nic, 0)?;
    stage.vpc.assign(node, nic, address)?;
    let begin = Instant::now();
    stage.until("the pod is ready", || stage.are_ready("app=late", 1))?;
    let took = seconds(begin.elapsed());
    let pod = stage.pod(NAME, node)?;
    ensure!(pod.address == address, "{pod:?} has not {address}");
    let wanted = (node.to_owned(), nic, traffic::web(&pod), vec![pod], true);
    let served = traffic::serve(stage, Protocol::Tcp, LISTENERS, vec![wanted])?;
    Ok(format!("{address} in a pod after {took}; {served}"))
}

/// Takes from a NIC what no pod has.
fn leave_none(stage: &Stage, node: &str, nic: &str) -> Result<()> {
    let blocks = blocks(stage, node, nic)?;
    let is_nobodys = |block: &&Value| block["pods"].as_array().is_none_or(Vec::is_empty);
    for block in blocks.iter().filter(is_nobodys) {
        let block: IpNet = block["block"].as_str().context("no block")?.parse()?;
        stage.vpc.unassign(node, nic, block)?;
    }
    let name = stage.pool(node, nic);
    stage.until("the agent knows that nothing is left", || {
        ebbtidectl(stage, node, &["cloud", "refresh"])?;
        let pool = pool(stage, node, &name)?;
        ensure!(pool["total"] == pool["used"], "{pool}");
        Ok(())
    })
}

/// Checks that a pod whose address the cloud takes away lives on with it, that an Event says so, and that nobody gets the
/// address afterwards.
pub(super) fn withdrawn(stage: &Stage) -> Result<String> {
    let (node, nic) = place(stage)?;
    let before = stage.pod(NAME, node)?;
    let address = before.address;
    stage.vpc.unassign(node, nic, address)?;
    stage.until("an Event says so", || {
        objects::event(stage, NAME, "AddressWithdrawn").map(drop)
    })?;
    let held = block(stage, node, nic, address)?;
    ensure!(held["state"] == "held" && is_of(&held, &before), "{held}");
    stage.are_ready("app=late", 1)?;
    let now = stage.pod(NAME, node)?;
    ensure!(now == before, "{before:?} became {now:?}");
    // Over the pod's veth. In the VPC nobody reaches it any more.
    let host = stage.pod("host", node)?;
    for answer in stage.ask(&host, &[traffic::web(&before)])? {
        traffic::is_from(&answer, &[&before])?;
    }
    let arguments = ["delete", "pod", NAME, "--wait=false"];
    stage.cluster.kubectl(&arguments)?;
    stage.until("the pod is gone", || stage.are_ready("app=late", 0))?;
    stage.until("nobody can have its address", || {
        // It is forgotten after some minutes.
        let Ok(block) = block(stage, node, nic, address) else {
            return Ok(());
        };
        let is_nobodys = block["pods"].as_array().is_none_or(Vec::is_empty);
        ensure!(block["state"] == "held" && is_nobodys, "{block}");
        Ok(())
    })?;
    Ok(format!(
        "AddressWithdrawn, and the pod lived on with {address}; nobody gets it"
    ))
}
