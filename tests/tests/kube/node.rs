//! The shipped image and manifests on a real node: containerd, kubelet, kube-proxy.
//!
//! This kernel need not have ipvlan: what is proven is the DaemonSet, not the pods' network.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_tests::{
    cluster::{Binaries, ControlPlane, Node, Options, Place, Runtime, images},
    plan::{Family, Plan},
    vpc::Vpc,
};

use crate::setup::DEPLOY;

const NAMESPACE: &str = "ebbtide-system";

/// What the node could serve, in another kernel.
const OBJECTS: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: ipvlan-ens5, namespace: default}
spec: {cniType: ipvlan, ipvlan: {master: [ens5]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: one}
spec: {subnet: 172.31.16.0/20, ips: [172.31.16.4-172.31.16.8], nodeName: [master], default: true}
";
const PATIENCE: Duration = Duration::from_secs(180);

fn until(what: &str, look: impl Fn() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while let Err(trouble) = look() {
        if start.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} until {what}: {trouble:#}");
        }
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn on(node: &Node, script: &str) -> Result<String> {
    let output = node.command("sh").args(["-c", script]).output()?;
    ensure!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A runtime may name the namespace by a process of another user's (cri-dockerd), and `ipam` may be another plugin.
///
/// This kernel need not have ipvlan, so no interface comes of it: what is asserted is how far the agent came.
fn namespaces_by_process_and_other_plugins_can_be_reached(node: &Node) -> Result<()> {
    let add = |ipam: &str| {
        on(
            node,
            &format!(
                r#"
unshare --net -- setpriv --reuid=65535 --regid=65535 --clear-groups sleep 60 &
pid=$!
trap 'kill $pid' EXIT
until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ] && grep -q 'Uid:.*65535' /proc/$pid/status; do sleep 0.1; done
export CNI_COMMAND=ADD CNI_CONTAINERID=probe CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin CNI_ARGS=
export CNI_NETNS=/proc/$pid/ns/net
echo '{{"cniVersion": "1.0.0", "name": "probe", "type": "ebbtide", "master": "ens5", "ipam": {{"type": "{ipam}"}}}}' |
    /opt/cni/bin/ebbtide || true
"#
            ),
        )
    };
    let said = add("ebbtide")?;
    ensure!(
        said.contains("\"code\"") && !said.contains("network namespace"),
        "{said}"
    );
    // One that only says where it was.
    on(
        node,
        "printf '%s' '#!/none' >/opt/cni/bin/probe-ipam; chmod +x /opt/cni/bin/probe-ipam",
    )?;
    let said = add("probe-ipam")?;
    ensure!(
        said.contains("/opt/cni/bin/probe-ipam") && !said.contains("is not in CNI_PATH"),
        "{said}"
    );
    on(node, "rm /opt/cni/bin/probe-ipam").map(drop)
}

#[test]
fn the_daemonset_makes_a_node_ready_and_leaves_it_ready_when_it_is_replaced() -> Result<()> {
    if !Binaries::find().is_some_and(|binaries| binaries.serve_nodes()) {
        return Ok(());
    }
    let vpc = Vpc::build(Plan::default())?;
    let place = Place {
        netns: vpc.node("master").clone(),
        address: vpc.nic("master", "ens5").primary(Family::V4),
    };
    let options = Options {
        controllers: true,
        place: Some(place.clone()),
        ..Options::default()
    };
    let Some(cluster) = ControlPlane::start(options)? else {
        return Ok(());
    };
    let archives = [cluster.busybox_image()?, images::ebbtide()?];
    let node = Node::join(&cluster, &place.netns, "master", place.address, &archives)?;
    ensure!(
        cluster
            .kubectl(&[
                "wait",
                "--for=condition=Ready",
                "node/master",
                "--timeout=1s"
            ])
            .is_err(),
        "ready without a network"
    );
    let deploy = Path::new(DEPLOY);
    cluster.install_crds(&deploy.join("crds"))?;
    let manifests = deploy.join("ebbtide.yaml").display().to_string();
    cluster.kubectl(&["apply", "-f", &manifests])?;
    let tell = || {
        let pods = cluster.kubectl(&["-n", NAMESPACE, "describe", "pods"]);
        let log = cluster.kubectl(&["-n", NAMESPACE, "logs", "daemonset/ebbtide"]);
        format!("{pods:?}\n{log:?}\n{}", node.log("kubelet"))
    };
    let rollout = [
        "-n",
        NAMESPACE,
        "rollout",
        "status",
        "daemonset/ebbtide",
        "--timeout=10s",
    ];
    until("the agent is ready", || cluster.kubectl(&rollout).map(drop)).with_context(tell)?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "node/master",
        "--timeout=10s",
    ];
    if cluster.runtime()? >= Runtime::new(2, 0) {
        until("the runtime asks for STATUS, and the kubelet tells", || {
            let node = cluster.get(&["node", "master"])?.to_string();
            ensure!(node.contains("no network is declared"), "{node}");
            Ok(())
        })
        .with_context(tell)?;
    }
    cluster.apply(OBJECTS)?;
    until("the node is ready", || cluster.kubectl(&ready).map(drop)).with_context(tell)?;
    let installed = on(&node, "ls -l /opt/cni/bin/ebbtide; cat /etc/cni/net.d/*")?;
    ensure!(installed.contains("\"agentSocket\""), "{installed}");
    let log = cluster.kubectl(&["-n", NAMESPACE, "logs", "daemonset/ebbtide"])?;
    ensure!(!log.contains("ERROR"), "{log}");

    namespaces_by_process_and_other_plugins_can_be_reached(&node).with_context(tell)?;

    let before = on(
        &node,
        "stat -c '%i %Y' /etc/cni/net.d/00-ebbtide.conflist /opt/cni/bin/ebbtide",
    )?;
    cluster.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/ebbtide"])?;
    until("the next agent is ready", || {
        cluster.kubectl(&rollout).map(drop)
    })
    .with_context(tell)?;
    let after = on(
        &node,
        "stat -c '%i %Y' /etc/cni/net.d/00-ebbtide.conflist /opt/cni/bin/ebbtide",
    )?;
    ensure!(before == after, "reinstalled: {before} {after}");
    cluster.kubectl(&ready)?;

    cluster.kubectl(&["-n", NAMESPACE, "delete", "daemonset", "ebbtide"])?;
    let uninstall = deploy.join("uninstall.yaml").display().to_string();
    cluster.kubectl(&["apply", "-f", &uninstall])?;
    until("nothing is left", || {
        let left = on(&node, "ls /etc/cni/net.d /opt/cni/bin")?;
        ensure!(!left.contains("ebbtide"), "{left}");
        Ok(())
    })
    .with_context(tell)
}
