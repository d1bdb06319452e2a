//! Nodes that share their subnets, with NICs named like the pods' interfaces, as in Alibaba Cloud.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    path::Exchange,
    patience::IMPATIENCE,
    plan::{Family, Plan},
    pod::Pod,
    proxy::{self, Backend, ExternalTrafficPolicy, Service, Settings},
    traffic::{Client, Protocol, Server},
};

const PORT: u16 = 8080;
/// The ports of Services on the nodes: of a pod on each NIC.
const NODE_PORTS: [u16; 2] = [30_010, 30_011];

#[test]
fn pods_on_nics_called_eth0_and_eth1_reach_pods_nodes_and_the_world() -> Result<()> {
    let lab = Lab::start(Plan::alibaba())?;
    lab.filter_loosely()?;
    lab.route_by_source()?;
    let mut pods = Vec::new();
    for (node, nic, name) in [
        ("master", "eth0", "a"),
        ("master", "eth1", "b"),
        ("worker", "eth0", "c"),
        ("worker", "eth1", "d"),
    ] {
        pods.push(lab.pod(node, nic, name).context(name)?);
    }
    let mut servers = Vec::new();
    for pod in &pods {
        servers.extend(Server::on_any(&pod.netns, PORT)?);
    }
    for nic in lab.vpc.plan.nics() {
        for family in Family::BOTH {
            // An unbound UDP socket answers with the first address.
            servers.extend(Server::on(
                lab.vpc.node(&nic.node),
                nic.primary(family),
                PORT,
            )?);
        }
    }
    servers.extend(Server::on_any(&lab.vpc.world, PORT)?);

    for from in &pods {
        for family in Family::BOTH {
            let own = from.address(family);
            let others = pods.iter().filter(|other| other.name != from.name);
            let mut targets: Vec<_> = others.map(|other| other.address(family)).collect();
            for nic in lab.vpc.plan.nics() {
                targets.push(nic.primary(family));
            }
            for target in targets {
                for protocol in Protocol::BOTH {
                    let client = Client::new(&from.netns, protocol);
                    let answer = client.ask(SocketAddr::new(target, PORT))?;
                    ensure!(answer.seen_as.ip() == own, "{answer:?}, not {own}");
                }
            }
            let world = SocketAddr::new(Plan::web_server(family), PORT);
            Client::new(&from.netns, Protocol::Tcp).ask(world)?;
        }
    }

    // By the NIC of the pod's address, through the router, to the NIC of the other's.
    let (a, d) = (&pods[0], &pods[3]);
    let mark = lab.taps.mark()?;
    let server = SocketAddr::new(d.address(Family::V4), PORT);
    Client::new(&a.netns, Protocol::Tcp).ask(server)?;
    let taken = Exchange::of(&lab.taps.since(mark)?, &[PORT]).to_string();
    ensure!(
        taken.contains("master/eth0 → vpc → worker/eth1"),
        "took {taken}"
    );
    lab.vpc.assert_no_violations()?;
    pods.into_iter().try_for_each(Pod::delete)
}

/// A Service of policy Cluster, asked at each NIC of a node, for a pod on each NIC of the other: what comes in by the
/// second NIC may have to leave by it, too, although the main table leads to the client by the first.
#[test]
fn node_ports_of_each_nic_lead_to_pods_of_the_other_node_on_each_nic() -> Result<()> {
    let lab = Lab::start(Plan::alibaba())?;
    let here = lab.pod("master", "eth1", "here")?;
    let pods = ["eth0", "eth1"].map(|nic| lab.pod("worker", nic, nic));
    let pods = pods.into_iter().collect::<Result<Vec<Pod>>>()?;
    let mut servers = Vec::new();
    let mut services = Vec::new();
    for (pod, node_port) in pods.iter().zip(NODE_PORTS) {
        servers.extend(Server::on_any(&pod.netns, PORT)?);
        services.extend(spread(pod, node_port)?);
    }
    let master = lab.vpc.node("master");
    proxy::install(master, "master", &Settings::default(), &services)?;

    let mut wrong = Vec::new();
    for (nic, pod) in ["eth0", "eth1"].iter().zip(&pods) {
        // From elsewhere, and from the NIC's own subnet.
        for netns in [lab.vpc.edge.netns(), &pod.netns] {
            for (family, node_port) in Family::BOTH
                .into_iter()
                .flat_map(|family| NODE_PORTS.map(|port| (family, port)))
            {
                let node = lab.vpc.nic("master", nic).primary(family);
                let asked = SocketAddr::new(node, node_port);
                for protocol in Protocol::BOTH {
                    let client = Client::new(netns, protocol).timeout(IMPATIENCE);
                    if let Err(error) = client.ask(asked) {
                        let from = netns.name();
                        wrong.push(format!("{from} to {asked}, {protocol}: {error:#}"));
                    }
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    lab.vpc.assert_no_violations()?;
    here.delete()?;
    pods.into_iter().try_for_each(Pod::delete)
}

/// A Service of policy Cluster, asked at each NIC of a node by pods in the subnets of both, for a pod on each NIC of each
/// node. The main table leads straight to a client in the other NIC's subnet: a route that nobody made for this answer.
#[test]
fn node_ports_of_each_nic_answer_clients_in_the_subnet_of_the_nodes_other_nic() -> Result<()> {
    let lab = Lab::start(Plan::alibaba())?;
    lab.filter_loosely()?;
    let places = [
        ("master", "eth0", "a"),
        ("master", "eth1", "b"),
        ("worker", "eth0", "c"),
        ("worker", "eth1", "d"),
    ];
    let pods = places.map(|(node, nic, name)| lab.pod(node, nic, name));
    let pods = pods.into_iter().collect::<Result<Vec<Pod>>>()?;
    let mut servers = Vec::new();
    let mut services = Vec::new();
    for (pod, node_port) in pods.iter().zip(30_010..) {
        servers.extend(Server::on_any(&pod.netns, PORT)?);
        services.extend(spread(pod, node_port)?);
    }
    let master = lab.vpc.node("master");
    proxy::install(master, "master", &Settings::default(), &services)?;

    let mut wrong = Vec::new();
    for client in &pods[2..] {
        for (nic, family) in ["eth0", "eth1"]
            .into_iter()
            .flat_map(|nic| Family::BOTH.map(|family| (nic, family)))
        {
            let node = lab.vpc.nic("master", nic).primary(family);
            for (backend, node_port) in pods.iter().zip(30_010..) {
                let asked = SocketAddr::new(node, node_port);
                for protocol in Protocol::BOTH {
                    let asking = Client::new(&client.netns, protocol).timeout(IMPATIENCE);
                    if let Err(error) = asking.ask(asked) {
                        let (from, to) = (&client.name, &backend.name);
                        wrong.push(format!("{from} to {to} by {asked}, {protocol}: {error:#}"));
                    }
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    lab.vpc.assert_no_violations()?;
    pods.into_iter().try_for_each(Pod::delete)
}

/// Returns the Services of policy Cluster that lead to a pod.
fn spread(pod: &Pod, node_port: u16) -> Result<Vec<Service>> {
    let mut services = Vec::new();
    for (family, cluster) in Family::BOTH
        .into_iter()
        .zip(["10.96.0.10", "fd00:10:96::10"])
    {
        let cluster = SocketAddr::new(cluster.parse()?, node_port);
        let backend = Backend {
            address: pod.socket(family, PORT),
            node: pod.node.clone(),
        };
        services.extend(Protocol::BOTH.map(|protocol| Service {
            name: format!("{node_port}-{protocol}-{family}"),
            protocol,
            cluster,
            node_port: Some(node_port),
            policy: ExternalTrafficPolicy::Cluster,
            masquerade: true,
            backends: vec![backend.clone()],
        }));
    }
    Ok(services)
}
