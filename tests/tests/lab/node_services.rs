//! Services of the node that pods use: node-local DNS, the cloud's metadata service, and the API server at its node's
//! address.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    iptables,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    pod::{NODE_SIDE, Pod},
    snapshot::run,
    tap::Place,
    traffic::{Client, Protocol, Server},
};

const NODES: [&str; 2] = ["master", "worker1"];

/// The addresses of NodeLocal DNSCache: its own, and that of the Service that it replaces.
const DNS: [&str; 2] = ["169.254.20.10", "10.96.0.10"];

/// The address of clouds' metadata services.
const METADATA: &str = "169.254.169.254";

/// Returns the rules that it adds: packets to and from the address are not tracked, and a firewall accepts them.
fn untracked(address: &str) -> String {
    let of = |protocol: &str| {
        let (to, from) = (
            format!("-d {address}/32 -p {protocol} -m {protocol} --dport 53"),
            format!("-s {address}/32 -p {protocol} -m {protocol} --sport 53"),
        );
        let raw = format!(
            "-A PREROUTING {to} -j CT --notrack\n-A OUTPUT {to} -j CT --notrack\n-A OUTPUT {from} -j CT --notrack\n"
        );
        let filter = format!("-A INPUT {to} -j ACCEPT\n-A OUTPUT {from} -j ACCEPT\n");
        (raw, filter)
    };
    let (udp, tcp) = (of("udp"), of("tcp"));
    format!(
        "*raw\n{}{}COMMIT\n*filter\n{}{}COMMIT\n",
        udp.0, tcp.0, udp.1, tcp.1
    )
}

/// Creates a dummy interface with these addresses.
fn dummy(netns: &Netns, name: &str, addresses: &[&str]) -> Result<()> {
    run(netns, "ip", &["link", "add", name, "type", "dummy"])?;
    run(netns, "ip", &["link", "set", name, "up"])?;
    for address in addresses {
        let address = format!("{address}/32");
        run(netns, "ip", &["address", "add", &address, "dev", name])?;
    }
    Ok(())
}

/// Starts agents that route link-local addresses through the node, which is the default.
fn as_shipped(plan: Plan) -> Result<Lab> {
    let config = format!(
        "viaHostCIDRs: [169.254.0.0/16]\nexemptFromMasquerade: {}\n",
        plan.exempt
    );
    let mut lab = Lab::start(plan)?;
    for node in NODES {
        let agent = lab.agent(node);
        agent.stop()?;
        agent.configure(&config)?;
        agent.launch()?;
        agent.wait_ready()?;
    }
    Ok(lab)
}

/// Creates a pod on each NIC of each node.
fn pods(lab: &Lab) -> Result<Vec<Pod>> {
    let nics = NODES
        .iter()
        .flat_map(|node| ["ens5", "ens6"].map(|nic| (*node, nic)));
    nics.map(|(node, nic)| lab.pod(node, nic, &format!("{node}-{nic}")))
        .collect()
}

/// Sends requests by both protocols, by the interface to the node, and checks that the pod is seen with its own
/// address. Requests to the node's own services are on no wire; others leave by the pod's own NIC, or the VPC would
/// drop them.
fn ask(lab: &Lab, pod: &Pod, server: SocketAddr) -> Result<()> {
    let who = || format!("{} asks {server}", pod.name);
    let mark = lab.taps.mark()?;
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let answer = Client::new(&pod.netns, protocol)
            .ask(server)
            .with_context(who)?;
        ensure!(
            answer.seen_as.ip() == pod.address(Family::of(server.ip())),
            "{}, and is seen as {}",
            who(),
            answer.seen_as
        );
    }
    if !server.ip().to_string().starts_with("169.254.") {
        return Ok(());
    }
    let seen = lab.taps.since(mark)?;
    let by = |place: &Place| match place {
        Place::Pod { interface, .. } => interface == NODE_SIDE,
        Place::Wire { .. } => server.ip().to_string() == METADATA,
    };
    let mut its = seen
        .iter()
        .filter(|packet| [packet.source, packet.destination].contains(&server.ip()));
    let crooked = its.find(|packet| !by(&packet.place));
    ensure!(crooked.is_none(), "{}: {crooked:?}", who());
    Ok(())
}

fn serve(netns: &Netns, address: IpAddr, port: u16) -> Result<[Server; 2]> {
    Server::on(netns, address, port)
}

/// Checks a plan, and reports all failures at once.
fn are_answered(plan: Plan) -> Result<()> {
    let lab = as_shipped(plan)?;
    let mut servers = Vec::new();
    for node in NODES {
        let netns = lab.vpc.node(node);
        dummy(netns, "nodelocaldns", &DNS)?;
        for address in DNS {
            iptables::restore(netns, Family::V4, &untracked(address))?;
            servers.push(serve(netns, address.parse()?, 53)?);
        }
        for family in Family::BOTH {
            let first = lab.vpc.nic(node, "ens5").primary(family);
            servers.push(serve(netns, first, 6443)?);
        }
    }
    dummy(&lab.vpc.router, "metadata", &[METADATA])?;
    servers.push(serve(&lab.vpc.router, METADATA.parse()?, 80)?);

    let pods = pods(&lab)?;
    let mut asked: Vec<SocketAddr> = Vec::new();
    for address in DNS {
        asked.push(SocketAddr::new(address.parse()?, 53));
    }
    asked.push(SocketAddr::new(METADATA.parse()?, 80));
    for node in NODES {
        for family in Family::BOTH {
            let first = lab.vpc.nic(node, "ens5").primary(family);
            asked.push(SocketAddr::new(first, 6443));
        }
    }
    let mut wrong = Vec::new();
    for pod in &pods {
        for server in &asked {
            if let Err(error) = ask(&lab, pod, *server) {
                wrong.push(format!("{error:#}"));
            }
        }
    }
    if let Err(error) = lab.vpc.assert_no_violations() {
        wrong.push(format!("{error:#}"));
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    drop(servers);
    pods.into_iter().try_for_each(Pod::delete)
}

#[test]
fn node_local_dns_metadata_and_the_api_server_answer_pods_of_every_nic() -> Result<()> {
    are_answered(Plan::default())
}

#[test]
fn and_so_they_do_where_pods_go_past_the_hosts_netfilter() -> Result<()> {
    are_answered(Plan {
        exempt: true,
        ..Plan::default()
    })
}
