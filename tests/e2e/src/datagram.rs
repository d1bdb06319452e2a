//! UDP: a server in pods that answers with the client's address, and NodePorts that lead to it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{netns::Netns, plan::Plan, traffic::Protocol, workspace};

use super::{
    http::Answer,
    stage::{Pod, Stage},
    traffic::{self, Wanted},
};

/// The time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The port of the servers in pods.
pub(super) const PORT: u16 = 5300;
/// The NodePorts with policy Cluster and with policy Local.
const CLUSTER: u16 = 30_053;
const LOCAL: u16 = 30_054;
/// The first of the load balancer's ports.
const LISTENERS: u16 = 11_000;
const APP: &str = "udp";
/// The manifests of the servers. busybox has no UDP server, so the pods run this program from their node's disk.
const MANIFESTS: &str = include_str!("udp.yaml");

/// Answers every datagram with the sender's address and port and the pod's name, until the process ends.
///
/// # Errors
/// If the port is taken.
pub fn serve(port: u16) -> Result<()> {
    let name = std::env::var("HOSTNAME").unwrap_or_default();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("serving UDP port {port}"))?;
    let mut buffer = [0; 64];
    loop {
        // An error here is about an earlier answer that nobody received.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let answer = format!("{} {} {name}\n", peer.ip(), peer.port());
            let _ = socket.send_to(answer.as_bytes(), peer);
        }
    }
}

/// Sends a request to a server, from `source` in a namespace. Returns the answer and the client's own address and port.
/// The socket is connected, so it receives no answer from another address.
pub(super) fn ask(
    netns: &Netns,
    source: IpAddr,
    server: SocketAddr,
) -> Result<(SocketAddr, Answer)> {
    let asked = || -> Result<_> {
        let socket = UdpSocket::bind((source, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(server)?;
        socket.send(b"who am I?\n")?;
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        Ok((socket.local_addr()?, text.parse()?))
    };
    netns
        .run(asked)
        .with_context(|| format!("asking {server} by UDP in {}", netns.name()))
}

/// Checks UDP NodePorts with either policy, at each NIC of each node, for pods on the second NIC.
pub(super) fn node_ports(stage: &Stage) -> Result<String> {
    let [_, nic] = stage.cloud.nics();
    let program = workspace::E2E.file("ebbtide-e2e")?;
    let manifests = MANIFESTS
        .replace("@PROGRAM@", &program.display().to_string())
        .replace("@PORT@", &PORT.to_string())
        .replace("@CLUSTER@", &CLUSTER.to_string())
        .replace("@LOCAL@", &LOCAL.to_string())
        .replace("@NETWORK@", &stage.cloud.network(nic));
    stage.cluster.apply(&manifests)?;
    let asked = asked(stage);
    let objects = ["deployment/udp", "service/udp", "service/udp-local"];
    stage
        .cluster
        .kubectl(&[&["delete", "--wait=false"], &objects[..]].concat())?;
    stage.until("the UDP servers are gone", || stage.are_ready("app=udp", 0))?;
    asked
}

fn asked(stage: &Stage) -> Result<String> {
    stage.until("the UDP servers are there", || {
        stage.are_ready("app=udp", stage.nodes().count())
    })?;
    let pods = stage.pods(APP)?;
    let control = stage.vpc.node(Plan::CONTROL);
    let from = stage.vpc.nic(Plan::CONTROL, "ens5").v4.primary.addr();
    let answered = |server: SocketAddr, by: &Pod| -> Result<()> {
        let (_, answer) = ask(control, from, server)?;
        ensure!(answer.server == by.name, "{} answered", answer.server);
        Ok(())
    };
    let (mut cluster, mut local): (Vec<Wanted>, Vec<Wanted>) = Default::default();
    for pod in &pods {
        let at_node = |port| traffic::ports(stage, port).into_iter().filter(on(pod));
        for (node, nic, target) in at_node(LOCAL) {
            stage.until("the Service proxy knows the UDP servers", || {
                answered(target, pod)
            })?;
            local.push((node, nic, target, vec![pod.clone()], true));
        }
        for (node, nic, target) in at_node(CLUSTER) {
            cluster.push((node, nic, target, pods.clone(), false));
        }
    }
    let cluster = traffic::serve(stage, Protocol::Udp, LISTENERS, cluster)?;
    let local = traffic::serve(stage, Protocol::Udp, LISTENERS + 100, local)?;
    Ok(format!("Cluster: {cluster}; Local: {local}"))
}

fn on(pod: &Pod) -> impl Fn(&(String, &'static str, SocketAddr)) -> bool {
    |(node, ..)| *node == pod.node
}
