//! Traffic of every kind, with the pods' real programs at both ends.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    edge::Listener,
    path::{Exchange, Hop, Path, crooked, forget_earlier_connections},
    plan::{Family, Plan},
    tap::{Direction, Mark, Place, Seen, Taps},
    traffic::Protocol,
};
use nix::libc::{IPPROTO_TCP, IPPROTO_UDP};

use super::{
    datagram::{self, PORT},
    http::{self, Answer},
    stage::{HOST_PORT, POD_PORT, Pod, Stage},
};

/// The first of the load balancer's ports.
const LISTENERS: u16 = 10_000;

/// Returns the address of a pod's web server.
pub(super) fn web(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.address, POD_PORT)
}

/// Checks that each node reaches its pods, which see one of its own addresses.
pub(super) fn node_to_pod(stage: &Stage) -> Result<String> {
    let mut asked = 0;
    for host in stage.pods("host")? {
        let pods: Vec<Pod> = on(stage.web()?, &host.node);
        let servers: Vec<SocketAddr> = pods.iter().map(web).collect();
        for (pod, answer) in pods.iter().zip(stage.ask(&host, &servers)?) {
            is_of_node(stage, &answer, &host.node)?;
            is_from(&answer, &[pod])?;
            asked += 1;
        }
    }
    Ok(format!("{asked} of {asked}"))
}

/// Checks that each pod reaches its node at the addresses of both NICs, which sees the pod's own address.
pub(super) fn pod_to_node(stage: &Stage) -> Result<String> {
    let mut asked = 0;
    for pod in stage.web()? {
        let nics = stage.cloud.nics();
        let servers: Vec<SocketAddr> = nics
            .map(|nic| stage.vpc.nic(&pod.node, nic).primary(Family::V4))
            .map(|address| SocketAddr::new(address, HOST_PORT))
            .to_vec();
        for answer in stage.ask(&pod, &servers)? {
            is_itself(&answer, &pod)?;
            asked += 1;
        }
        let pinged = stage.script(&pod, &format!("ping?{}", servers[0].ip()))?;
        ensure!(pinged.contains("answered"), "{}: {pinged}", pod.name);
    }
    Ok(format!("{asked} of {asked}, and ping"))
}

/// Checks that each pod reaches each other one, on other NICs and nodes, which sees the pod's own address.
pub(super) fn pod_to_pod(stage: &Stage) -> Result<String> {
    let pods = stage.web()?;
    let mut asked = 0;
    for pod in &pods {
        let others: Vec<&Pod> = pods.iter().filter(|other| *other != pod).collect();
        let servers: Vec<SocketAddr> = others.iter().map(|pod| web(pod)).collect();
        for (other, answer) in others.iter().zip(stage.ask(pod, &servers)?) {
            is_itself(&answer, pod)?;
            is_from(&answer, &[other])?;
            asked += 1;
        }
    }
    Ok(format!("{asked} of {asked}, client address kept"))
}

/// Checks that both pods of the other app answer each pod at their ClusterIP.
pub(super) fn cluster_ip(stage: &Stage) -> Result<String> {
    let mut asked = 0;
    let [first, second] = stage.cloud.apps().map(|app| app.name);
    for (from, to) in [(first, second), (second, first)] {
        let service = stage.cluster.get(&["service", to])?;
        let address = service["spec"]["clusterIP"]
            .as_str()
            .context("no clusterIP")?;
        let server = SocketAddr::new(address.parse()?, 80);
        let targets = stage.pods(to)?;
        for pod in stage.pods(from)? {
            let answers = until_all_answered(stage, &pod, server, &targets)?;
            for answer in &answers {
                is_itself(answer, &pod)?;
                is_from(answer, &targets.iter().collect::<Vec<_>>())?;
            }
            asked += answers.len();
        }
    }
    Ok(format!("{asked} of {asked}, by all backends"))
}

/// Sends requests to a Service until each of its pods has answered: kube-proxy chooses at random.
fn until_all_answered(
    stage: &Stage,
    pod: &Pod,
    server: SocketAddr,
    targets: &[Pod],
) -> Result<Vec<Answer>> {
    let mut answers: Vec<Answer> = Vec::new();
    // One pod alone answers 40 times once in 10^12 runs.
    for _ in 0..10 {
        answers.extend(stage.ask(pod, &[server; 4])?);
        let answered = |target: &Pod| answers.iter().any(|answer| answer.server == target.name);
        if targets.iter().all(answered) {
            return Ok(answers);
        }
    }
    bail!(
        "{} was answered by one pod of {server} alone: {answers:?}",
        pod.name
    )
}

/// Checks that each pod reaches the API server by its Service, whose backend is neither a pod nor on a node.
pub(super) fn api_server(stage: &Stage) -> Result<String> {
    let pods = stage.web()?;
    for pod in &pods {
        let answer = stage.script(pod, "api")?;
        ensure!(answer.contains("answered"), "{}: {answer}", pod.name);
    }
    Ok(format!("{} of {}", pods.len(), pods.len()))
}

/// Checks that each pod reaches a server outside, which sees the NAT gateway.
pub(super) fn outside(stage: &Stage) -> Result<String> {
    let pods = stage.web()?;
    for pod in &pods {
        for answer in stage.ask(pod, &[Stage::outside()])? {
            ensure!(
                answer.seen.ip() == Plan::NAT,
                "{} was seen as {}",
                pod.name,
                answer.seen
            );
        }
    }
    Ok(format!(
        "{} of {}, by the NAT gateway",
        pods.len(),
        pods.len()
    ))
}

/// A port of the load balancer, for an outside client.
struct Offer {
    listener: Listener,
    node: String,
    nic: &'static str,
    /// The pods that may answer.
    pods: Vec<Pod>,
    kept: bool,
}

/// Checks a load balancer with the pods' own addresses as targets.
pub(super) fn balanced_to_pods(stage: &Stage) -> Result<String> {
    let mut offers = Vec::new();
    for pod in stage.web()? {
        let (nic, _) = stage.place(&pod)?;
        offers.push((pod.node.clone(), nic, web(&pod), vec![pod], true));
    }
    serve(stage, Protocol::Tcp, LISTENERS, offers)
}

/// Checks NodePorts with policy Cluster, at each NIC of each node: either pod answers and sees the node's address.
pub(super) fn node_port_cluster(stage: &Stage) -> Result<String> {
    let mut offers = Vec::new();
    for app in stage.cloud.apps() {
        for (node, nic, target) in ports(stage, app.cluster) {
            offers.push((node, nic, target, stage.pods(app.name)?, false));
        }
    }
    serve(stage, Protocol::Tcp, LISTENERS + 100, offers)
}

/// Checks NodePorts with policy Local, at each NIC of each node: the node's own pod answers and sees the client's
/// address, and its answer leaves by the NIC that the request came in on.
pub(super) fn node_port_local(stage: &Stage, run: u16) -> Result<String> {
    let mut offers = Vec::new();
    for app in stage.cloud.apps() {
        for (node, nic, target) in ports(stage, app.local) {
            let pod = stage.pod(app.name, &node)?;
            offers.push((node, nic, target, vec![pod], true));
        }
    }
    serve(stage, Protocol::Tcp, LISTENERS + 200 + 100 * run, offers)
}

/// Checks that the pod answers at its node's NodePort with policy Local.
pub(super) fn answers_locally(stage: &Stage, pod: &Pod) -> Result<()> {
    let port = stage.app(pod)?.local;
    let [first, _] = stage.cloud.nics();
    let address = stage.vpc.nic(&pod.node, first).primary(Family::V4);
    let from = stage.vpc.node(Plan::CONTROL);
    let server = SocketAddr::new(address, port);
    let (_, answer) = http::get(from, None, server, "who", Duration::from_secs(5))?;
    is_from(&answer.parse()?, &[pod])
}

/// Node, NIC and address of a request; the pods that may answer; whether they see the client's address.
pub(super) type Wanted = (String, &'static str, SocketAddr, Vec<Pod>, bool);

/// Returns a port at each NIC of each node.
pub(super) fn ports(stage: &Stage, port: u16) -> Vec<(String, &'static str, SocketAddr)> {
    let nodes = stage.nodes();
    nodes
        .flat_map(|node| stage.cloud.nics().map(|nic| (node, nic)))
        .map(|(node, nic)| {
            let address = stage.vpc.nic(node, nic).primary(Family::V4);
            (node.to_owned(), nic, SocketAddr::new(address, port))
        })
        .collect()
}

/// Sends requests from the outside client to each, by the load balancer at ports from `first` on.
pub(super) fn serve(
    stage: &Stage,
    protocol: Protocol,
    first: u16,
    wanted: Vec<Wanted>,
) -> Result<String> {
    let offers: Vec<Offer> = (first..)
        .zip(wanted)
        .map(|(port, (node, nic, target, pods, kept))| Offer {
            listener: Listener {
                protocol,
                port,
                target,
            },
            node,
            nic,
            pods,
            kept,
        })
        .collect();
    let listeners: Vec<Listener> = offers.iter().map(|offer| offer.listener).collect();
    stage.vpc.edge.listen(&listeners)?;
    let taps = Taps::on_all_wires(&stage.vpc)?;
    for offer in &offers {
        ask(stage, &taps, offer)
            .with_context(|| format!("{}/{}, {}", offer.node, offer.nic, offer.listener.target))?;
    }
    let kept = match offers.iter().all(|offer| offer.kept) {
        true => ", client address kept, back by the same NIC",
        false => ", back by the same NIC",
    };
    Ok(format!("{} of {}{kept}", offers.len(), offers.len()))
}

/// Waits until no packet of an exchange is on the wires: the last ones come late.
fn settle(stage: &Stage, taps: &Taps, serving: &[u16]) -> Result<()> {
    for _ in 0..50 {
        let mark = taps.mark()?;
        thread::sleep(Duration::from_millis(100));
        let of_exchange = |port| serving.contains(&port);
        let seen = since(stage, taps, mark)?;
        if !seen
            .iter()
            .any(|packet| of_exchange(packet.source_port) || of_exchange(packet.destination_port))
        {
            return Ok(());
        }
    }
    bail!("the wires do not become silent")
}

/// Returns what was on the wires, without what the agents ask the metadata service, which has a web server's port.
fn since(stage: &Stage, taps: &Taps, mark: Mark) -> Result<Vec<Seen>> {
    let service = stage.cloud.metadata().address().ip();
    let mut seen = taps.since(mark)?;
    seen.retain(|packet| ![packet.source, packet.destination].contains(&service));
    Ok(seen)
}

fn ask(stage: &Stage, taps: &Taps, offer: &Offer) -> Result<()> {
    let serving = [offer.listener.target.port(), POD_PORT, PORT];
    settle(stage, taps, &serving)?;
    let mark = taps.mark()?;
    let client = Plan::client(Family::V4);
    let (world, server) = (&stage.vpc.world, offer.listener.address());
    let (local, answer) = match offer.listener.protocol {
        Protocol::Tcp => http::ask(world, client, server)?,
        Protocol::Udp => datagram::ask(world, client, server)?,
    };
    is_from(&answer, &offer.pods.iter().collect::<Vec<_>>())?;
    if offer.kept {
        ensure!(
            answer.seen == local,
            "the client {local} was seen as {}",
            answer.seen
        );
    } else {
        is_of_node(stage, &answer, &offer.node)?;
    }
    let mut seen = since(stage, taps, mark)?;
    let number = match offer.listener.protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    };
    seen.retain(|packet| i32::from(packet.protocol) == number);
    forget_earlier_connections(&mut seen);
    let taken = Exchange::of(&seen, &serving);
    let hop = |direction| Hop {
        place: Place::Wire {
            node: offer.node.clone(),
            nic: offer.nic.to_owned(),
        },
        direction,
    };
    if let Some(packet) = crooked(&seen, &serving) {
        bail!("wrong addresses: {packet}");
    }
    ensure!(
        taken.is_symmetric() && taken.request.0.contains(&hop(Direction::In)),
        "took {taken}"
    );
    let only = Path(vec![hop(Direction::In)]);
    ensure!(
        !offer.kept || taken.request.same_hops(&only),
        "took {taken}, not {only}"
    );
    Ok(())
}

fn on(pods: Vec<Pod>, node: &str) -> Vec<Pod> {
    pods.into_iter().filter(|pod| pod.node == node).collect()
}

pub(super) fn is_itself(answer: &Answer, pod: &Pod) -> Result<()> {
    ensure!(
        answer.seen.ip() == pod.address,
        "{} ({}) was seen as {} by {}",
        pod.name,
        pod.address,
        answer.seen.ip(),
        answer.server
    );
    Ok(())
}

pub(super) fn is_from(answer: &Answer, pods: &[&Pod]) -> Result<()> {
    ensure!(
        pods.iter().any(|pod| pod.name == answer.server),
        "answered by {}, which is none of {:?}",
        answer.server,
        pods.iter().map(|pod| &pod.name).collect::<Vec<_>>()
    );
    Ok(())
}

fn is_of_node(stage: &Stage, answer: &Answer, node: &str) -> Result<()> {
    let nics = stage.vpc.plan.node(node).map(|node| node.nics.as_slice());
    let mut nics = nics.unwrap_or_default().iter();
    ensure!(
        nics.any(|nic| nic.primary(Family::V4) == answer.seen.ip()),
        "{} saw {}, which is none of {node}'s addresses",
        answer.server,
        answer.seen.ip()
    );
    Ok(())
}
