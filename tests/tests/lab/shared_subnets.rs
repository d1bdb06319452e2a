//! Nodes that share their subnets, with NICs named like the pods' interfaces, as in Alibaba Cloud.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    path::Exchange,
    plan::{Family, Plan},
    pod::Pod,
    traffic::{Client, Protocol, Server},
};

const PORT: u16 = 8080;

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
