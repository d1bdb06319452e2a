//! The shipped image and manifests on a real node: containerd, kubelet, kube-proxy.
//!
//! This kernel need not have ipvlan: the tests prove the DaemonSet, not the pods' network.

use std::{
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_cluster::{Binaries, ControlPlane, Node, Options, Place, ProxyMode, Runtime, images};
use ebbtide_vpc::{
    plan::{Family, Plan},
    vpc::Vpc,
};

use crate::setup::DEPLOY;

const NAMESPACE: &str = "ebbtide-system";

/// Objects that the node could serve, in a kernel with ipvlan.
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

/// Checks two things that a runtime may do: name the namespace by another user's process (cri-dockerd), and use another
/// plugin for `ipam`.
/// Without ipvlan there is no interface, so the test asserts how far the agent came.
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
    // A plugin that only reports that it was called.
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

/// A cluster with one node, `master`, that has the image and no network.
struct Site {
    node: Node,
    cluster: ControlPlane,
    _vpc: Vpc,
}

impl Site {
    /// Starts the cluster. Returns `None`, after a skip, if programs are missing.
    fn start(proxy: ProxyMode) -> Result<Option<Self>> {
        if !Binaries::find().is_some_and(|binaries| binaries.serve_nodes()) {
            return Ok(None);
        }
        let vpc = Vpc::build(Plan::default())?;
        let place = Place {
            netns: vpc.node("master").clone(),
            address: vpc.nic("master", "ens5").primary(Family::V4),
        };
        let options = Options {
            controllers: true,
            place: Some(place.clone()),
            proxy,
            ..Options::default()
        };
        let Some(cluster) = ControlPlane::start(options)? else {
            return Ok(None);
        };
        let archives = [cluster.busybox_image()?, images::ebbtide()?];
        let node = Node::join(&cluster, &place.netns, "master", place.address, &archives)?;
        let site = Self {
            node,
            cluster,
            _vpc: vpc,
        };
        ensure!(site.is_ready("1s").is_err(), "ready without a network");
        Ok(Some(site))
    }

    /// Applies the shipped manifests.
    fn install(&self) -> Result<()> {
        let deploy = Path::new(DEPLOY);
        self.cluster.install_crds(&deploy.join("crds"))?;
        let manifests = deploy.join("ebbtide.yaml").display().to_string();
        self.cluster.kubectl(&["apply", "-f", &manifests]).map(drop)
    }

    /// Waits until `look` succeeds; the error has all logs.
    fn until(&self, what: &str, look: impl Fn() -> Result<()>) -> Result<()> {
        until(what, look).with_context(|| {
            let pods = self.cluster.kubectl(&["-n", NAMESPACE, "describe", "pods"]);
            format!("{pods:?}\n{:?}\n{}", self.log(), self.node.log("kubelet"))
        })
    }

    fn is_ready(&self, timeout: &str) -> Result<()> {
        let timeout = format!("--timeout={timeout}");
        let wait = ["wait", "--for=condition=Ready", "node/master", &timeout];
        self.cluster.kubectl(&wait).map(drop)
    }

    /// Runs a kubectl command (`rollout status`) on the DaemonSet.
    fn with_the_daemonset(&self, verbs: &[&str], options: &[&str]) -> Result<()> {
        let object: &[&str] = &["daemonset/ebbtide"];
        let arguments = [&["-n", NAMESPACE], verbs, object, options].concat();
        self.cluster.kubectl(&arguments).map(drop)
    }

    fn is_rolled_out(&self) -> Result<()> {
        self.with_the_daemonset(&["rollout", "status"], &["--timeout=10s"])
    }

    fn log(&self) -> Result<String> {
        let log = ["-n", NAMESPACE, "logs", "daemonset/ebbtide"];
        self.cluster.kubectl(&log)
    }
}

#[test]
fn the_daemonset_makes_a_node_ready_and_leaves_it_ready_when_it_is_replaced() -> Result<()> {
    let Some(site) = Site::start(ProxyMode::default())? else {
        return Ok(());
    };
    let Site { node, cluster, .. } = &site;
    site.install()?;
    site.until("the agent is ready", || site.is_rolled_out())?;
    if cluster.runtime()? >= Runtime::new(2, 0) {
        site.until("the runtime asks for STATUS, and the kubelet tells", || {
            let node = cluster.get(&["node", "master"])?.to_string();
            ensure!(node.contains("no network is declared"), "{node}");
            Ok(())
        })?;
    }
    cluster.apply(OBJECTS)?;
    site.until("the node is ready", || site.is_ready("10s"))?;
    let installed = on(node, "ls -l /opt/cni/bin/ebbtide; cat /etc/cni/net.d/*")?;
    ensure!(installed.contains("\"agentSocket\""), "{installed}");
    let log = site.log()?;
    ensure!(!log.contains("ERROR"), "{log}");

    namespaces_by_process_and_other_plugins_can_be_reached(node)
        .with_context(|| format!("{:?}", site.log()))?;

    let files = "stat -c '%i %Y' /etc/cni/net.d/00-ebbtide.conflist /opt/cni/bin/ebbtide";
    let before = on(node, files)?;
    site.with_the_daemonset(&["rollout", "restart"], &[])?;
    site.until("the next agent is ready", || site.is_rolled_out())?;
    let after = on(node, files)?;
    ensure!(before == after, "reinstalled: {before} {after}");
    site.is_ready("10s")?;

    site.with_the_daemonset(&["delete"], &[])?;
    let controller = ["delete", "deployment/ebbtide-controller"];
    cluster.kubectl(&[&["-n", NAMESPACE], &controller[..]].concat())?;
    let uninstall = Path::new(DEPLOY)
        .join("uninstall.yaml")
        .display()
        .to_string();
    cluster.kubectl(&["apply", "-f", &uninstall])?;
    let done = [
        "--for=condition=complete",
        "job/ebbtide-uninstall",
        "--timeout=10s",
    ];
    let wait = [&["-n", NAMESPACE, "wait"], &done[..]].concat();
    site.until("all nodes are uninstalled", || {
        cluster.kubectl(&wait).map(drop)
    })?;
    let left = on(
        node,
        "ls /etc/cni/net.d /opt/cni/bin; ls -d /run/ebbtide /sys/fs/bpf/ebbtide 2>/dev/null; \
         ip link; ip rule; ip -6 rule; ip route show table all",
    )?;
    ensure!(
        !left.contains("ebbtide") && !left.contains("proto 235"),
        "{left}"
    );
    let left = cluster.get(&["spiderippools"])?.to_string();
    ensure!(!left.contains("spiderpool.spidernet.io\"]"), "{left}");
    Ok(())
}

/// There is no kube-proxy, as with a network plugin that serves Services and itself waits for the pods' network: nobody
/// serves the API server's Service.
#[test]
fn without_a_service_proxy_the_agent_asks_the_api_server_by_its_own_address() -> Result<()> {
    let Some(site) = Site::start(ProxyMode::Nobody)? else {
        return Ok(());
    };
    site.install()?;
    let server: SocketAddr = site
        .cluster
        .server_for_nodes()
        .trim_start_matches("https://")
        .parse()?;
    // The effect of the chart's value `agent.apiServer`.
    let host = format!("KUBERNETES_SERVICE_HOST={}", server.ip());
    let port = format!("KUBERNETES_SERVICE_PORT={}", server.port());
    site.with_the_daemonset(&["set", "env"], &[&host, &port])?;
    site.cluster.apply(OBJECTS)?;
    site.until("the agent is ready", || site.is_rolled_out())?;
    site.until("the node is ready", || site.is_ready("10s"))?;
    let log = site.log()?;
    ensure!(!log.contains("ERROR"), "{log}");
    Ok(())
}
