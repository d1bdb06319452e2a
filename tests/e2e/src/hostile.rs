//! A pod with CAP_NET_RAW and CAP_NET_ADMIN that tries to take foreign addresses.

use anyhow::{Context as _, Result, ensure};

use super::{
    objects,
    stage::{Pod, Stage},
    traffic,
};
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: hostile
  labels: {app: hostile}
  annotations:
    v1.multus-cni.io/default-network: @NETWORK@
spec:
  nodeName: @NODE@
  terminationGracePeriodSeconds: 1
  containers:
    - name: web
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [httpd, -f, -p, "80", -h, /www]
      readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 2, timeoutSeconds: 5}
      securityContext: {capabilities: {add: [NET_RAW, NET_ADMIN]}}
"#;

/// The commands that it runs. The kernel refuses some of them; none may harm others.
const DEEDS: &str = "\
busybox arping -q -c 2 -U -I eth0 -s @GATEWAY@ @GATEWAY@
busybox arping -q -c 2 -U -I veth0 -s @GATEWAY@ @GATEWAY@
ip address add @NODE@/32 dev eth0
ip address add @GATEWAY@/32 dev eth0
ip address add @OTHER@/32 dev eth0
ip address add @OUTSIDE@/32 dev eth0
ip address add @NODE@/32 dev veth0
busybox tc qdisc del dev eth0 clsact
ip route replace default dev veth0
ping -c 1 -W 1 -I @OTHER@ @NODE@
ip link set veth0 address 02:00:00:00:00:09
ip link set veth0 mtu 1300
true";

/// Checks that another pod, the node and the gateway keep their addresses, and that the pod's interface has only its
/// own.
pub(super) fn pod(stage: &Stage) -> Result<String> {
    let node = stage.nodes().next().context("a node")?;
    let [nic, _] = stage.cloud.nics();
    let pod = POD
        .replace("@NETWORK@", &stage.cloud.network(nic))
        .replace("@NODE@", node);
    stage.cluster.apply(&pod)?;
    let harmless = is_harmless(stage, node, nic);
    stage
        .cluster
        .kubectl(&["delete", "pod", "hostile", "--wait=false"])?;
    stage.until("the pod is gone", || stage.are_ready("app=hostile", 0))?;
    objects::pools(stage).context("when the pod was gone")?;
    harmless
}

fn is_harmless(stage: &Stage, node: &str, nic: &str) -> Result<String> {
    stage.until("the hostile pod is ready", || {
        stage.are_ready("app=hostile", 1)
    })?;
    let own = stage.pod("hostile", node)?;
    let subnet = &stage.vpc.nic(node, nic).v4;
    let mut near = stage.web()?.into_iter();
    let other = near.find(|pod: &Pod| pod.node == node && subnet.primary.contains(&pod.address));
    let other = other.context("another pod on the NIC")?;
    let taken = [
        subnet.primary.addr(),
        subnet.gateway,
        other.address,
        Stage::outside().ip(),
    ]
    .map(|address| address.to_string());
    let [its_node, gateway, others, outside] = &taken;
    let deeds = DEEDS
        .replace("@NODE@", its_node)
        .replace("@GATEWAY@", gateway)
        .replace("@OTHER@", others)
        .replace("@OUTSIDE@", outside);
    let inside = |command: &str| {
        let exec = ["exec", "hostile", "--", "sh", "-c", command];
        stage.cluster.kubectl(&exec)
    };
    inside(&deeds)?;
    stage.until("what the pod took is taken back", || {
        let there = inside("ip -o address show dev eth0")?;
        for address in &taken {
            ensure!(!there.contains(&format!(" {address}/")), "{there}");
        }
        ensure!(there.contains(&format!(" {}/", own.address)), "{there}");
        Ok(())
    })?;
    traffic::node_to_pod(stage)?;
    traffic::pod_to_node(stage)?;
    traffic::pod_to_pod(stage)?;
    traffic::outside(stage)?;
    Ok(format!(
        "{} deeds, all as before",
        deeds.lines().count() - 1
    ))
}
