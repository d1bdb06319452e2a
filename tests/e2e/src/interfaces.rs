//! A pod on both NICs of its node.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{plan::Family, traffic::Protocol};

use super::{
    objects,
    stage::{POD_PORT, Pod, Stage},
    traffic::{self, Wanted},
};

/// The first of the load balancer's ports.
const LISTENERS: u16 = 11_200;
/// A pod whose first network is named by the cluster's own kind of annotation, the second one by Multus'.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: both
  labels: {app: both}
  annotations:
    v1.multus-cni.io/default-network: @FIRST@
    k8s.v1.cni.cncf.io/networks: @SECOND@
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

/// Checks that it has an address of each NIC, is reached at both by the NIC of the address, and that its addresses are
/// released with it.
pub(super) fn two(stage: &Stage) -> Result<String> {
    let node = stage.nodes().next().context("a node")?;
    let [first, second] = stage.cloud.nics().map(|nic| stage.cloud.network(nic));
    let pod = POD
        .replace("@FIRST@", &first)
        .replace("@SECOND@", &second)
        .replace("@NODE@", node);
    stage.cluster.apply(&pod)?;
    let reached = reached(stage, node);
    stage
        .cluster
        .kubectl(&["delete", "pod", "both", "--wait=false"])?;
    stage.until("the pod is gone", || stage.are_ready("app=both", 0))?;
    objects::pools(stage).context("when the pod was gone")?;
    reached
}

fn reached(stage: &Stage, node: &str) -> Result<String> {
    stage.until("the pod with two interfaces is ready", || {
        stage.are_ready("app=both", 1)
    })?;
    let pod = stage.pod("both", node)?;
    let addresses = addresses(stage, &pod)?;
    ensure!(
        addresses[0] == pod.address,
        "{addresses:?}, but {}",
        pod.address
    );

    let nics = stage.cloud.nics();
    let servers = addresses.map(|address| SocketAddr::new(address, POD_PORT));
    let wanted = nics
        .iter()
        .zip(servers)
        .map(|(nic, server)| -> Wanted { (node.to_owned(), nic, server, vec![pod.clone()], true) });
    let balanced = traffic::serve(stage, Protocol::Tcp, LISTENERS, wanted.collect())?;
    let mut asked = 0;
    for other in stage.web()? {
        let second = stage.vpc.nic(node, nics[1]).subnet(Family::V4).primary;
        let is_near = second.contains(&other.address);
        for answer in stage.ask(&other, &servers)? {
            traffic::is_itself(&answer, &other)?;
            traffic::is_from(&answer, &[&pod])?;
            asked += 1;
        }
        let back = SocketAddr::new(other.address, POD_PORT);
        // Servers in the second NIC's own subnet are reached by it, all others by the first.
        let own = addresses[usize::from(is_near)];
        for answer in stage.ask(&pod, &[back])? {
            ensure!(
                answer.seen.ip() == own,
                "the pod was seen as {}, not {own}, by {}",
                answer.seen.ip(),
                other.address
            );
            traffic::is_from(&answer, &[&other])?;
            asked += 1;
        }
    }
    Ok(format!(
        "{} {}: {balanced}; pods: {asked} of {asked}",
        addresses[0], addresses[1]
    ))
}

/// Returns the pod's addresses by its network status, after comparing them with the VPC's addresses for its node's NICs
/// and with its SpiderEndpoint.
fn addresses(stage: &Stage, pod: &Pod) -> Result<[IpAddr; 2]> {
    let status = stage.network_status(pod)?;
    let endpoint = stage.cluster.get(&["spiderendpoint", &pod.name])?;
    let ips = &endpoint["status"]["current"]["ips"];
    let mut found = Vec::new();
    for (place, (nic, interface)) in stage.cloud.nics().iter().zip(["eth0", "net1"]).enumerate() {
        let told = &status[place];
        ensure!(
            told["name"] == stage.cloud.network(nic) && told["interface"] == interface,
            "{status}"
        );
        let address: IpAddr = told["ips"][0].as_str().context("no address")?.parse()?;
        let given = stage.vpc.nic(&pod.node, nic).subnet(Family::V4);
        ensure!(
            given.secondary.contains(&address),
            "{address} is none of {:?}",
            given.secondary
        );
        let written = ips[place]["ipv4"].as_str().unwrap_or_default();
        ensure!(
            written.starts_with(&format!("{address}/")) && ips[place]["interface"] == interface,
            "{ips}"
        );
        found.push(address);
    }
    ensure!(
        status.as_array().is_some_and(|all| all.len() == 2),
        "{status}"
    );
    Ok([found[0], found[1]])
}
