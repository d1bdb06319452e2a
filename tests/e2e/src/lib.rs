//! End-to-end tests: a real cluster with Ebbtide as its network, from its image and by its manifests.
//!
//! Two nodes are machines of their own (user-mode Linux, which has ipvlan) with two NICs each in the strict VPC.
//! containerd, kubelet, kube-proxy and the control plane are the real ones.

mod cloud;
mod datagram;
mod host_port;
mod hostile;
mod http;
mod interfaces;
mod lifecycle;
mod objects;
mod report;
mod stage;
mod traffic;
mod troubles;

use std::time::Instant;

use anyhow::{Context as _, Result};
use ebbtide_vpc::progress::{print, seconds, step};

pub use cloud::Cloud;
pub use datagram::serve as serve_datagrams;
pub use report::{Report, Row};
pub use stage::Stage;

type Look = fn(&Stage) -> Result<String>;

/// The rows, in this order: some change what later ones check.
const ROWS: &[(&str, &str, Look)] = &[
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
    ("pools", "kubectl get spiderippool", objects::pools),
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
    (
        "a node gone: its addresses back",
        "switched off, kubectl delete node",
        lifecycle::node_gone,
    ),
    (
        "what a cloud would have dropped",
        "the VPC's counters",
        |stage| {
            stage.vpc.assert_no_violations()?;
            Ok("nothing".into())
        },
    ),
];

/// The options of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The cloud.
    pub cloud: Cloud,
    /// Whether the cluster keeps running until standard input ends.
    pub stay: bool,
}

/// Builds the cluster, checks every row, and prints progress. Returns `None`, after a [`skip`](ebbtide_vpc::skip), if
/// this machine has no Kubernetes binaries.
///
/// # Errors
/// If the cluster does not start. A row that fails is in the report and is not an error.
pub fn run(options: Options) -> Result<Option<Report>> {
    let begin = Instant::now();
    print(&format!("\n{}\n", options.cloud));
    let built = step("VPC and control plane", || Stage::build(options.cloud))?;
    let Some(stage) = built else {
        return Ok(None);
    };
    let mut report = Report {
        cloud: options.cloud,
        ..Report::default()
    };
    let ready = ready(&stage);
    match ready {
        Ok(()) => {
            for (row, how, look) in ROWS {
                report.rows.push(look_at(&stage, row, how, *look));
            }
        }
        Err(error) => {
            print(&format!("{error:#}\n{}\n", stage.logs()));
            let result = format!("{error:#}");
            let (row, how) = ("a cluster with ready pods".into(), "kubectl apply".into());
            report.rows.push(Row {
                row,
                how,
                result,
                ok: false,
                seconds: 0.0,
            });
        }
    }
    report.finish(begin.elapsed());
    print(&report.text());
    if !report.ok {
        print(&stage.logs());
    }
    if options.stay {
        print(&format!(
            "\nThe cluster stays until standard input ends. Meanwhile, elsewhere:\n{} get pods -A -o wide\n",
            stage.kubectl_command()?
        ));
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
            .context("waiting for the end of standard input")?;
    }
    Ok(Some(report))
}

fn ready(stage: &Stage) -> Result<()> {
    step("two nodes with two NICs each", || stage.boot())?;
    step(stage.installation(), || stage.install())?;
    step("networks, pools, Deployments, Services", || stage.deploy())
}

fn look_at(stage: &Stage, row: &str, how: &str, look: Look) -> Row {
    let start = Instant::now();
    let seen = look(stage);
    let took = start.elapsed();
    let (ok, result) = match seen {
        Ok(result) => (true, result),
        Err(error) => (false, format!("{error:#}")),
    };
    let verdict = if ok { "ok" } else { "FAILED" };
    print(&format!("{row} ... {verdict}, {}\n", seconds(took)));
    if !ok {
        // The table is printed at the end, and rows may take minutes.
        print(&format!("    {result}\n"));
    }
    Row {
        row: row.into(),
        how: how.into(),
        result,
        ok,
        seconds: took.as_secs_f64(),
    }
}
