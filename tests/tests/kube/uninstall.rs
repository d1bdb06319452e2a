//! `ebbtide-agent uninstall-cluster`, against a real API server: what controller and agents wrote goes, and what people
//! declared stays and can be deleted.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::{ControlPlane, Controller};
use ebbtide_vpc::agent::binary;
use serde_json::{Value, json};

use crate::setup::cluster;

const OBJECTS: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: ipvlan-ens5, namespace: default}
spec: {cniType: ipvlan, ipvlan: {master: [ens5], ippools: {ipv4: [one]}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: another, namespace: default}
spec: {cniType: custom, customCNI: '{\"cniVersion\": \"0.3.1\", \"name\": \"another\", \"type\": \"bridge\"}'}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: by-hand, namespace: default}
spec: {config: '{\"cniVersion\": \"0.3.1\", \"name\": \"by-hand\", \"type\": \"ebbtide\"}'}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: one, finalizers: [example.org/others]}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.12], gateway: 10.0.0.1, nodeName: [node-a], default: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: shared}
spec: {subnet: 10.9.0.0/24, ips: [10.9.0.1-10.9.0.4], default: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: mine, annotations: {ebbtide.io/derived: by-hand}, labels: {ebbtide.io/node: node-b}}
spec: {subnet: 10.8.0.0/24, ips: [10.8.0.1], nodeName: [node-b]}
";

/// What a test of the chart that failed left, and what others call the same.
const LEFT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: default-connectivity, labels: {app.kubernetes.io/name: ebbtide-connectivity}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: ebbtide-connectivity, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: ebbtide-connectivity, labels: {app.kubernetes.io/name: ebbtide-connectivity}}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: ebbtide-connectivity, labels: {app.kubernetes.io/name: ebbtide-connectivity}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ebbtide-connectivity}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: ebbtide-connectivity, namespace: default, labels: {app.kubernetes.io/name: ebbtide-connectivity}}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: ebbtide-connectivity, namespace: default, labels: {app.kubernetes.io/name: ebbtide-connectivity}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: ebbtide-connectivity}
";

fn endpoint(name: &str, uid: &str) -> String {
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint",
        "metadata": {"name": name, "namespace": "default", "labels": {"ebbtide.io/node": "node-b"}},
        "status": {"current": {
            "uid": uid, "node": "node-b", "ips": [{"interface": "eth0", "ipv4": "10.0.0.10/24", "ipv4Pool": "one"}],
        }},
    })
    .to_string()
}

/// Runs the command, and returns its exit code and its report.
fn uninstall(cluster: &ControlPlane, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
    let output = Command::new(binary()?)
        .arg("uninstall-cluster")
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .args(["--namespace", "default", "-o", "json"])
        .args(arguments)
        .output()?;
    let report = serde_json::from_slice(&output.stdout);
    let report = report.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code(), report))
}

fn names(cluster: &ControlPlane, kind: &str) -> Result<BTreeSet<String>> {
    let list = cluster.get(&[kind, "-A"])?;
    let items = list["items"].as_array().into_iter().flatten();
    let names = items.filter_map(|each| each["metadata"]["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

#[test]
fn what_was_written_goes_and_what_was_declared_stays_and_can_be_deleted() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    // Of a cluster that never had Ebbtide there is nothing to remove.
    let (code, report) = uninstall(&cluster, &[])?;
    ensure!(
        code == Some(0) && report["removed"] == json!([]),
        "{report:#}"
    );

    cluster.apply(OBJECTS)?;
    cluster.apply(LEFT)?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"nodeName": "node-b", "containers": [{"name": "c", "image": "none"}]},
    });
    cluster.apply(&pod.to_string())?;
    let pod = cluster.get(&["pod", "web"])?;
    let uid = pod["metadata"]["uid"].as_str().context("a UID")?;
    cluster.apply(&endpoint("web", uid))?;
    cluster.apply(&endpoint("gone", "of-nobody"))?;
    let controller = Controller::start(&cluster.kubeconfig(), "controller")?;
    for pool in ["one", "shared"] {
        cluster.wait_until(&["spiderippool", pool], |pool| {
            let own = json!("spiderpool.spidernet.io");
            let mut all = pool["metadata"]["finalizers"]
                .as_array()
                .into_iter()
                .flatten();
            all.any(|each| *each == own)
        })?;
    }
    cluster.wait_until(&["configmaps", "-l", "ebbtide.io/leases"], |list| {
        list["items"][0].is_object()
    })?;
    let written = ["another", "by-hand", "ipvlan-ens5"].map(str::to_owned);
    cluster.wait_until(&["network-attachment-definitions"], |list| {
        list["items"]
            .as_array()
            .is_some_and(|all| all.len() == written.len())
    })?;

    // While a pod has an address; of the endpoint without its pod it is no question.
    for arguments in [&["--check"][..], &[]] {
        let (code, report) = uninstall(&cluster, arguments)?;
        ensure!(code == Some(3), "{report:#}");
        ensure!(
            report["left"] == json!(["pod default/web on node-b"]),
            "{report:#}"
        );
    }
    cluster.kubectl(&["delete", "pod", "web", "--force", "--grace-period=0"])?;
    let (code, report) = uninstall(&cluster, &["--check"])?;
    ensure!(code == Some(0), "{report:#}");
    // While the controller would write it all again.
    let (code, report) = uninstall(&cluster, &[])?;
    ensure!(code == Some(4), "{report:#}");
    drop(controller);
    let (code, planned) = uninstall(&cluster, &["--dry-run", "--wait", "60"])?;
    ensure!(code == Some(0), "{planned:#}");
    ensure!(
        names(&cluster, "spiderendpoints")?.contains("gone"),
        "a dry run removes"
    );

    let (code, done) = uninstall(&cluster, &[])?;
    ensure!(code == Some(0), "{done:#}");
    ensure!(
        done["removed"] == planned["removed"],
        "{planned:#}\n{done:#}"
    );
    let left = names(&cluster, "network-attachment-definitions")?;
    ensure!(
        left == BTreeSet::from(["another", "by-hand"].map(str::to_owned)),
        "{left:?}"
    );
    ensure!(names(&cluster, "spiderendpoints")?.is_empty());
    for kind in [
        "clusterroles",
        "clusterrolebindings",
        "roles",
        "rolebindings",
    ] {
        let left = names(&cluster, kind)?;
        ensure!(!left.contains("ebbtide-connectivity"), "{kind}: {left:?}");
    }
    let namespace = cluster.get(&[
        "namespaces",
        "-l",
        "app.kubernetes.io/name=ebbtide-connectivity",
    ])?;
    let mut namespaces = namespace["items"].as_array().into_iter().flatten();
    ensure!(
        namespaces.all(|each| each["metadata"]["deletionTimestamp"].is_string()),
        "{namespace:#}"
    );
    ensure!(
        names(&cluster, "serviceaccounts")?.contains("ebbtide-connectivity"),
        "an account without the chart's label is gone"
    );
    let maps = cluster.get(&["configmaps", "-A", "-l", "ebbtide.io/leases"])?;
    ensure!(maps["items"] == json!([]), "{maps:#}");
    ensure!(!names(&cluster, "leases")?.contains("ebbtide-agent"));
    let one = cluster.get(&["spiderippool", "one"])?;
    ensure!(
        one["metadata"]["finalizers"] == json!(["example.org/others"]),
        "{one:#}"
    );
    let pools = names(&cluster, "spiderippools")?;
    ensure!(
        pools.contains("mine"),
        "a pool that a person marked is gone: {pools:?}"
    );
    let networks = names(&cluster, "spidermultusconfigs")?;
    ensure!(networks.len() == 2, "{networks:?}");

    let (code, again) = uninstall(&cluster, &[])?;
    ensure!(
        code == Some(0) && again["removed"] == json!([]),
        "{again:#}"
    );
    // Nobody has to help.
    cluster.kubectl(&["delete", "spiderippool", "shared", "--timeout=20s"])?;
    Ok(())
}
