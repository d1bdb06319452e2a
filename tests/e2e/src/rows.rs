//! The rows of the test, in order.

use anyhow::Result;

use super::{
    addresses::Addresses, cloud::Cloud, connectivity, datagram, declared, helm, host_port, hostile,
    interfaces, lifecycle, objects, stage::Stage, told, traffic, troubles,
};

/// What a row asserts, how it is checked, and the check, which returns what was seen.
pub(super) type Checked = (&'static str, &'static str, fn(&Stage) -> Result<String>);

/// Returns the rows: some change what later ones check.
pub(super) fn rows(cloud: Cloud, addresses: Addresses) -> Vec<Checked> {
    let mut rows: Vec<Checked> = vec![
        (
            "networks",
            "kubectl get network-attachment-definitions",
            objects::attachments,
        ),
        (
            "pods on both NICs of both nodes",
            "kubectl get pods -o wide",
            objects::addresses,
        ),
        ("pools", addresses.shown_by(), objects::pools),
        (
            "endpoints",
            "kubectl get spiderendpoint",
            objects::endpoints,
        ),
        (
            "network-status",
            "kubectl get pod -o yaml",
            objects::network_status,
        ),
        (
            "the Services' networks",
            "kubectl get spidercoordinator",
            objects::services,
        ),
        (
            "node → its pods",
            "wget, hostNetwork pod",
            traffic::node_to_pod,
        ),
        (
            "pod → its node, both NICs",
            "wget, ping",
            traffic::pod_to_node,
        ),
        (
            "pod ↔ pod, other NIC, other node",
            "wget",
            traffic::pod_to_pod,
        ),
        ("pod → ClusterIP", "wget", traffic::cluster_ip),
        ("pod → the API server's Service", "nc", traffic::api_server),
        ("pod → outside", "wget", traffic::outside),
        (
            "the user's own test",
            "kubectl ebbtide connectivity",
            connectivity::all_is_well,
        ),
        (
            "the user's own test, a NIC blocked",
            "ip rule; kubectl ebbtide connectivity",
            connectivity::blocked,
        ),
    ];
    if cloud.values().is_some() {
        rows.push(("the chart's test", "helm test, kubectl logs", helm::test));
    }
    rows.extend::<Vec<Checked>>(vec![
        (
            "load balancer, IP mode",
            "outside client",
            traffic::balanced_to_pods,
        ),
        (
            "NodePort, policy Cluster",
            "outside client, each NIC",
            traffic::node_port_cluster,
        ),
        (
            "NodePort, policy Local",
            "outside client, each NIC",
            |stage| traffic::node_port_local(stage, 0),
        ),
        (
            "NodePort, UDP",
            "outside client, each NIC",
            datagram::node_ports,
        ),
        (
            "hostPort, with portmap and without",
            "outside client, each NIC; kubectl get events",
            host_port::by_portmap,
        ),
        (
            "a pod with two interfaces",
            "outside client, pods",
            interfaces::two,
        ),
        (
            "a pod with NET_RAW and NET_ADMIN",
            "kubectl exec: arping, ip, tc",
            hostile::pod,
        ),
        (
            "a pod deleted: its address back",
            "kubectl delete pod",
            troubles::deletion,
        ),
        ("agents killed: nothing lost", "kill -9", troubles::killed),
        (
            "a pod deleted without an agent",
            "kill -9, kubectl delete pod",
            troubles::deleted_meanwhile,
        ),
        (
            "no address: an Event says why",
            "kubectl get events",
            troubles::hungry,
        ),
        (
            "a Deployment rolled out",
            "kubectl rollout restart",
            lifecycle::rollout,
        ),
    ]);
    if addresses == Addresses::Told {
        rows.extend::<[Checked; 3]>([
            (
                "an address assigned at run time",
                "the VPC assigns, a pod waits",
                told::assigned,
            ),
            (
                "an address taken from a running pod",
                "the VPC withdraws",
                told::withdrawn,
            ),
            (
                "declared pools beside it",
                "kubectl get spiderippool; outside client",
                declared::beside,
            ),
        ]);
    }
    rows.push((
        "a node gone: its addresses back",
        "switched off, kubectl delete node",
        lifecycle::node_gone,
    ));
    if cloud.values().is_some() {
        rows.push((
            "the removal, without a trace",
            "helm uninstall; ip, ls on the nodes",
            helm::uninstall,
        ));
    }
    rows.push((
        "what a cloud would have dropped",
        "the VPC's counters",
        |stage| {
            stage.vpc.assert_no_violations()?;
            Ok("nothing".into())
        },
    ));
    rows
}
