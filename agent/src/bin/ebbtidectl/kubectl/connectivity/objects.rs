//! The objects that the test makes.

use serde_json::{Value, json};

use super::plan::{Policy, TestPod};

/// The label of everything that the test makes, and its value.
pub(super) const LABEL_KEY: &str = "app.kubernetes.io/name";
pub(super) const LABEL: &str = "ebbtide-connectivity";

/// The name of the pods' container.
pub(super) const CONTAINER: &str = "probe";

/// The servers' port in pods.
pub(super) const PORT: u16 = 8080;

/// How long a pod may run if nobody removes it, in seconds.
const LONGEST: u32 = 3600;

/// What pods are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) pull_policy: String,
}

/// Returns the namespace. Its pods need none of what is forbidden to them.
pub(super) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {
                LABEL_KEY: LABEL,
                "pod-security.kubernetes.io/enforce": "restricted",
            },
        },
    })
}

/// Returns a pod's name: its numbers among nodes and networks, since names of theirs may be too long together.
pub(super) fn pod_names(pods: &[TestPod]) -> Vec<(String, TestPod)> {
    let name = |(number, pod): (usize, &TestPod)| (format!("probe-{number}"), pod.clone());
    pods.iter().enumerate().map(name).collect()
}

/// Returns the names of a network's Services.
pub(super) fn service_name(number: usize, policy: Policy) -> String {
    match policy {
        Policy::Cluster => format!("network-{number}"),
        Policy::Local => format!("network-{number}-local"),
    }
}

/// Returns pods and Services.
pub(super) fn objects(
    namespace: &str,
    pods: &[(String, TestPod)],
    networks: &[String],
    image: &Image,
) -> Vec<Value> {
    let number = |network: &str| networks.iter().position(|each| each == network);
    let mut items: Vec<Value> = pods
        .iter()
        .map(|(name, pod)| {
            let app = format!("network-{}", number(&pod.network).unwrap_or_default());
            test_pod(namespace, name, &app, pod, image)
        })
        .collect();
    for number in 0..networks.len() {
        for policy in [Policy::Cluster, Policy::Local] {
            items.push(service(namespace, number, policy));
        }
    }
    items
}

fn test_pod(namespace: &str, name: &str, app: &str, pod: &TestPod, image: &Image) -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {LABEL_KEY: LABEL, "app": app},
            "annotations": {"v1.multus-cni.io/default-network": pod.network},
        },
        "spec": {
            // By the scheduler, as a DaemonSet's: resources and cordons count.
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [
                    {"key": "metadata.name", "operator": "In", "values": [pod.node]},
                ]}],
            }}},
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Always",
            "activeDeadlineSeconds": LONGEST,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
                // For echoes; one of the sysctls that the kubelet allows to everybody.
                "sysctls": [{"name": "net.ipv4.ping_group_range", "value": "0 65535"}],
            },
            "containers": [{
                "name": CONTAINER,
                "image": image.name,
                "imagePullPolicy": image.pull_policy,
                "command": ["ebbtide-agent"],
                "args": ["probe", "serve", "--port", PORT.to_string()],
                "env": [
                    {"name": "POD_NAME", "valueFrom": field("metadata.name")},
                    {"name": "NODE_NAME", "valueFrom": field("spec.nodeName")},
                ],
                "ports": [
                    {"name": "tcp", "containerPort": PORT, "protocol": "TCP"},
                    {"name": "udp", "containerPort": PORT, "protocol": "UDP"},
                ],
                "resources": {
                    "requests": {"cpu": "1m", "memory": "8Mi"},
                    "limits": {"memory": "128Mi"},
                },
                "securityContext": {
                    "readOnlyRootFilesystem": true,
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

fn service(namespace: &str, number: usize, policy: Policy) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(number, policy),
            "namespace": namespace,
            "labels": {LABEL_KEY: LABEL},
        },
        "spec": {
            "type": "NodePort",
            "externalTrafficPolicy": format!("{policy:?}"),
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": format!("network-{number}")},
            "ports": [
                {"name": "tcp", "port": PORT, "protocol": "TCP"},
                {"name": "udp", "port": PORT, "protocol": "UDP"},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{super::plan::tests::topology, *};
    use crate::kubectl::connectivity::plan;

    #[test]
    fn the_pods_are_what_a_restricted_namespace_takes() {
        let image = Image {
            name: "i".into(),
            pull_policy: "Never".into(),
        };
        let names = pod_names(&plan::pods(&topology(1)));
        let networks = [
            "default/ipvlan-ens5".to_owned(),
            "default/ipvlan-ens6".to_owned(),
        ];
        let items = objects("ns", &names, &networks, &image);
        assert_eq!(items.len(), 2 + 4);
        let pod = &items[0];
        assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
        let container = &pod["spec"]["containers"][0]["securityContext"];
        assert_eq!(container["capabilities"]["drop"][0], "ALL");
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(items[1]["metadata"]["labels"]["app"], "network-1");
        assert_eq!(items[3]["spec"]["externalTrafficPolicy"], "Local");
    }
}
