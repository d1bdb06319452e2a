//! Checks of a pod whose interface another plugin made.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    edge::Listener,
    foreign::Chained,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    proxy::{self, Backend, ExternalTrafficPolicy, Service, Settings},
    snapshot::{Snapshot, ip},
    tap::{Direction, Mark, Place},
    traffic::{Client, Protocol, Server},
};
use serde_json::{Value, json};

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
const NODE: &str = "master";

/// SpiderReservedIPs for addresses of ens5 that other plugins' IPAM may use.
pub const OTHERS: &str = "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {name: others-v4}
spec: {ips: [172.31.16.4-172.31.16.6]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {name: others-v6}
spec: {ips: ['fd00:16::4-fd00:16::6']}
";

/// Starts the lab. Its agents leave the first three addresses for pods on `master`'s ens5 to other plugins.
///
/// # Errors
/// As [`Lab::start`].
pub fn lab() -> Result<Lab> {
    let mut lab = Lab::without_agents(Plan::default())?;
    lab.start_agents_with(OTHERS)?;
    Ok(lab)
}

/// A range of host-local: a subnet, and its first address for pods.
pub type Range<'a> = (&'a str, &'a str);

/// Returns the configuration of the first plugin of a chain. It has an address of each range from host-local, which
/// keeps its files below `data`.
#[must_use]
pub fn first(kind: &str, fields: &Value, ranges: &[Range<'_>], data: &str) -> Value {
    let ranges: Vec<Value> = ranges
        .iter()
        .map(|(subnet, start)| json!([{"subnet": subnet, "rangeStart": start}]))
        .collect();
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": format!("chain-{kind}"),
        "type": kind,
        "ipam": {
            "type": "host-local",
            "dataDir": data,
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    if let (Some(config), Some(fields)) = (config.as_object_mut(), fields.as_object()) {
        config.extend(fields.clone());
    }
    config
}

/// Checks the paths of replies: to the node, by NodePort, and to a neighbour, whose requests come in by the interface
/// `neighbours`.
///
/// # Errors
/// If a path is wrong; the error names it.
pub fn prove(lab: &mut Lab, config: &Value, neighbours: &str) -> Result<()> {
    let node = lab.vpc.node(NODE).clone();
    let plugin = lab.agent(NODE).plugin();
    let before = Snapshot::of(&node)?;
    let pod = Chained::create(&node, &plugin, "served", config)?;
    ensure!(pod.result["ips"] == pod.first["ips"], "{}", pod.result);
    let names: Vec<&str> = pod.result["interfaces"]
        .as_array()
        .context("interfaces")?
        .iter()
        .filter_map(|interface| interface["name"].as_str())
        .collect();
    ensure!(
        names.contains(&"eth0") && names.contains(&"veth0"),
        "{names:?}"
    );
    if config["type"] == "macvlan" {
        // A cloud does not know the MAC address of a macvlan child and does not answer it, not even its ARP requests.
        // In networks that allow macvlan the gateway answers.
        let nic = lab.vpc.nic(NODE, "ens5");
        let mac = nic.port_mac().map(|byte| format!("{byte:02x}")).join(":");
        let entry = ["dev", "eth0", "lladdr", &mac, "nud", "permanent"];
        for address in &pod.addresses {
            let gateway = nic.subnet(Family::of(*address)).gateway.to_string();
            ip(
                &pod.netns,
                &[&["neighbour", "replace", &gateway], &entry[..]].concat(),
            )?;
        }
    }
    let _server = Server::on_any(&pod.netns, PORT)?;
    for interface in ["eth0", "veth0"] {
        let place = Place::Pod {
            pod: "served".into(),
            interface: interface.into(),
        };
        lab.taps.add(&pod.netns, interface, place, Direction::Out)?;
    }
    let other = Chained::create(&node, &plugin, "neighbour", config)?;
    for address in &pod.addresses {
        let asked = || format!("asking {address}");
        ways(lab, &node, *address, "veth0")
            .with_context(asked)
            .context("from the node")?;
        ways(lab, &other.netns, *address, neighbours)
            .with_context(asked)
            .context("from a neighbour")?;
        node_port(lab, &node, *address)
            .with_context(asked)
            .context("by NodePort")?;
    }
    ensure!(
        pod.ebbtide("ADD", &pod.first)? == pod.result,
        "ADD, repeated"
    );
    pod.ebbtide("CHECK", &pod.result)?;
    lab.agent(NODE).kill()?;
    lab.agent(NODE).launch()?;
    lab.agent(NODE).wait_ready()?;
    pod.ebbtide("CHECK", &pod.result).context("a new agent")?;
    let explained = lab.agent(NODE).control(&["explain", "served"])?;
    for address in &pod.addresses {
        ensure!(explained.contains(&address.to_string()), "{explained}");
    }
    other.delete()?;
    lab.taps.remove(|place| matches!(place, Place::Pod { .. }));
    let inside = pod.netns.clone();
    pod.ebbtide("DEL", &pod.result)?;
    let left = Snapshot::of(&inside)?;
    ensure!(
        !left.mentions("veth0") && !left.mentions("7700"),
        "{left:?}"
    );
    pod.delete()?;
    let after = Snapshot::of(&node)?;
    ensure!(
        after.links("veth") == before.links("veth"),
        "a veth is left"
    );
    Ok(())
}

/// Sends requests to the pod, and checks by which of its interfaces requests came in and replies left.
fn ways(lab: &Lab, client: &Netns, address: IpAddr, expected: &str) -> Result<()> {
    for protocol in Protocol::BOTH {
        let mark = lab.taps.mark()?;
        let answer = Client::new(client, protocol).ask(SocketAddr::new(address, PORT))?;
        same_way(lab, mark, answer.local.port(), expected).with_context(|| protocol.to_string())?;
    }
    Ok(())
}

/// Checks the interfaces of one client's packets. The last packets of an earlier client may still be under way.
fn same_way(lab: &Lab, mark: Mark, client_port: u16, expected: &str) -> Result<()> {
    let seen = lab.taps.since(mark)?;
    let interfaces = |direction: Direction, from: u16, to: u16| {
        let mut names: Vec<String> = seen
            .iter()
            .filter(|seen| seen.direction == direction)
            .filter(|seen| (seen.source_port, seen.destination_port) == (from, to))
            .filter_map(|seen| match &seen.place {
                Place::Pod { interface, .. } => Some(interface.clone()),
                Place::Wire { .. } => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    };
    let requests = interfaces(Direction::In, client_port, PORT);
    let replies = interfaces(Direction::Out, PORT, client_port);
    ensure!(
        requests == [expected] && replies == [expected],
        "requests came by {requests:?}, replies went by {replies:?}, not {expected}"
    );
    Ok(())
}

fn node_port(lab: &Lab, node: &Netns, address: IpAddr) -> Result<()> {
    let family = Family::of(address);
    let cluster = match family {
        Family::V4 => "10.96.0.90:80",
        Family::V6 => "[fd00:10:96::90]:80",
    };
    let mut services = Vec::new();
    let mut listeners = Vec::new();
    let target = lab.vpc.nic(NODE, "ens5").primary(family);
    for protocol in Protocol::BOTH {
        services.push(Service {
            name: protocol.to_string(),
            protocol,
            cluster: cluster.parse()?,
            node_port: Some(NODE_PORT),
            masquerade: false,
            policy: ExternalTrafficPolicy::Local,
            backends: vec![Backend {
                address: SocketAddr::new(address, PORT),
                node: NODE.into(),
            }],
        });
        listeners.push(Listener {
            protocol,
            port: NODE_PORT,
            target: SocketAddr::new(target, NODE_PORT),
        });
    }
    proxy::install(node, NODE, &Settings::default(), &services)?;
    lab.vpc.edge.listen(&listeners)?;
    for protocol in Protocol::BOTH {
        let mark = lab.taps.mark()?;
        let public = SocketAddr::new(Plan::load_balancer(family), NODE_PORT);
        let client = Plan::client(family);
        let answer = Client::new(&lab.vpc.world, protocol)
            .from_ip(client)
            .ask(public)?;
        ensure!(answer.seen_as.ip() == client, "seen as {}", answer.seen_as);
        same_way(lab, mark, answer.local.port(), "veth0").with_context(|| protocol.to_string())?;
    }
    Ok(())
}
