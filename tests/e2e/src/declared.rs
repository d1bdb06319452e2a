//! Pools that people declare beside networks whose addresses the cloud's metadata tell.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{plan::Family, traffic::Protocol};

use super::{objects, stage::Stage, told, traffic, traffic::Wanted};

/// The first of the load balancer's ports.
const LISTENERS: u16 = 11_800;
/// The label of the pods.
const APP: &str = "declared";
const NETWORK: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: declared, namespace: @NAMESPACE@}
spec:
  cniType: ipvlan
  ipvlan: {master: [@NIC@]}
"#;
/// As in the guides.
const POOL: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: @POOL@}
spec:
  subnet: @SUBNET@
  ips: [@FIRST@-@LAST@]
  gateway: @GATEWAY@
  default: true
  nodeName: [@NODE@]
  multusName: [@NETWORK@]
"#;
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: declared-@NODE@
  labels: {app: declared}
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

/// Returns the name of a node's pool.
pub(super) fn pool(node: &str) -> String {
    format!("{node}-declared")
}

/// Returns the network, as pods name it.
pub(super) fn network(stage: &Stage) -> String {
    format!("{}/declared", stage.cloud.namespace())
}

/// Checks pods of a network with a declared pool for each node. The addresses are the second NIC's, which has another
/// network with those that the metadata tell: these stay without the declared ones.
pub(super) fn beside(stage: &Stage) -> Result<String> {
    let [_, nic] = stage.cloud.nics();
    let manifest = NETWORK
        .replace("@NAMESPACE@", stage.cloud.namespace())
        .replace("@NIC@", nic);
    stage.cluster.apply(&manifest)?;
    let mut told = Vec::new();
    for (number, node) in (1..).zip(stage.nodes()) {
        let name = stage.pool(node, nic);
        let before = told::pool(stage, node, &name)?["total"].take();
        told.push((node, name, before));
        declare(stage, node, nic, number)?;
    }
    let nodes = stage.nodes().count();
    stage.until("the pods of declared pools are ready", || {
        stage.are_ready("app=declared", nodes)
    })?;
    let (mut wanted, mut shown): (Vec<Wanted>, Vec<String>) = Default::default();
    for pod in stage.pods(APP)? {
        stage.until("the declared pool's status tells of its pod", || {
            objects::allocated(stage, &pod, &pool(&pod.node), 2)
        })?;
        shown.push(pod.address.to_string());
        let target = traffic::web(&pod);
        wanted.push((pod.node.clone(), nic, target, vec![pod], true));
    }
    let served = traffic::serve(stage, Protocol::Tcp, LISTENERS, wanted)?;
    for (node, name, before) in told {
        let now = told::pool(stage, node, &name)?;
        ensure!(now["total"] == before, "{now} had {before}");
    }
    Ok(format!("{}: {served}", shown.join(" ")))
}

/// Declares a pool of two addresses, assigns them to the NIC, and starts a pod.
fn declare(stage: &Stage, node: &str, nic: &str, number: usize) -> Result<()> {
    let subnet = stage.vpc.nic(node, nic).subnet(Family::V4);
    let of = |place| told::further(stage, node, nic, 2 * number + place);
    let both: [IpAddr; 2] = [of(0)?, of(1)?];
    let name = pool(node);
    let manifest = POOL
        .replace("@POOL@", &name)
        .replace("@SUBNET@", &subnet.primary.trunc().to_string())
        .replace("@FIRST@", &both[0].to_string())
        .replace("@LAST@", &both[1].to_string())
        .replace("@GATEWAY@", &subnet.gateway.to_string())
        .replace("@NODE@", node)
        .replace("@NETWORK@", &network(stage));
    stage.cluster.apply(&manifest)?;
    stage.until("the agent knows the declared pool", || {
        told::pool(stage, node, &name).map(drop)
    })?;
    for address in both {
        stage.vpc.assign(node, nic, address)?;
    }
    stage.until("the agent believes what was assigned", || {
        told::ebbtidectl(stage, node, &["cloud", "refresh"])?;
        for address in both {
            let block = told::block(stage, node, nic, address)?;
            ensure!(block["state"] == "usable", "{block}");
        }
        Ok(())
    })?;
    let pod = POD
        .replace("@NODE@", node)
        .replace("@NETWORK@", &network(stage));
    let applied = stage.cluster.apply(&pod);
    applied
        .with_context(|| format!("a pod on {node}"))
        .map(drop)
}
