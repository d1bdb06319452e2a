//! The sources of the Services' networks, with a real API server, each as clusters have it.

use anyhow::{Result, ensure};
use ebbtide_cluster::Controller;
use serde_json::Value;

use crate::setup::cluster;

/// A static pod of a control plane, as the API server shows it.
const STATIC_POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver-a, namespace: kube-system, labels: {component: kube-apiserver}}
spec:
  nodeName: a
  containers:
    - name: kube-apiserver
      image: none
      command: [kube-apiserver, --allow-privileged=true, "--service-cluster-ip-range=10.97.0.0/16,fd97::/112"]
"#;

const KUBEADM: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: kubeadm-config, namespace: kube-system}
data:
  ClusterConfiguration: |
    apiVersion: kubeadm.k8s.io/v1beta2
    kind: ClusterConfiguration
    networking: {dnsDomain: cluster.local, podSubnet: 10.244.0.0/16, serviceSubnet: 10.98.0.0/16}
"#;

#[test]
fn the_most_truthful_place_that_tells_is_believed_and_none_is_said_to_be_none() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    cluster
        .kubectl(&["create", "namespace", "kube-system"])
        .ok();
    // Since 1.33 ServiceCIDR objects exist, which take precedence over all other sources.
    let objects = cluster.get(&["servicecidrs"]).is_ok();
    let objects = objects.then(|| (vec!["10.96.0.0/16"], "ServiceCIDR objects"));
    // Debian's API server of 1.20 does not name its range when it refuses a Service in a dry run.
    for (there, service, pod, reason) in [
        ("", vec![], Vec::<String>::new(), "set serviceCIDRs"),
        (
            STATIC_POD,
            vec!["10.97.0.0/16", "fd97::/112"],
            vec![],
            "the flags of the control plane's pods",
        ),
        (
            KUBEADM,
            vec!["10.98.0.0/16"],
            vec!["10.244.0.0/16".to_owned()],
            "kubeadm-config",
        ),
    ] {
        let (service, reason) = objects.clone().unwrap_or((service, reason));
        if !there.is_empty() {
            cluster.apply(there)?;
        }
        // A controller discovers the networks when it is elected; one of the same name is elected at once.
        let controller = Controller::start(&cluster.kubeconfig(), "controller")?;
        let told = |object: &Value, field: &str| -> Vec<String> {
            let nets = object["status"][field].as_array().into_iter().flatten();
            nets.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let list = cluster.wait_until(&["spidercoordinators"], |list| {
            let object = &list["items"][0];
            object["status"]["reason"]
                .as_str()
                .is_some_and(|found| found.contains(reason))
                // The existing status may be that of the previous case.
                && told(object, "overlayPodCIDR") == pod
        })?;
        let object = &list["items"][0];
        ensure!(told(object, "serviceCIDR") == service, "{object:#}");
        drop(controller);
    }
    Ok(())
}
