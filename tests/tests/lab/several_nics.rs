//! A pod with an interface on each of two NICs: requests are answered by the interface that they came in by, and
//! connections of the pod leave by the NIC that has their source.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    edge::Listener,
    foreign::addresses,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    pod::Pod,
    proxy::{self, Backend, ExternalTrafficPolicy, Service, Settings},
    snapshot::{Snapshot, ip},
    tap::{Direction, Mark, Place},
    traffic::{Answer, Client, Protocol, Server},
};
use serde_json::Value;

const PORT: u16 = 8080;

/// A pod with `eth0` on ens5 and `net1` on ens6.
struct TwoNics {
    second: Sandbox,
    config: String,
    plugin: Plugin,
    first: Pod,
    others: Vec<IpAddr>,
}

impl TwoNics {
    fn create(lab: &mut Lab) -> Result<Self> {
        Self::on(lab, ["ens5", "ens6"])
    }

    fn on(lab: &mut Lab, nics: [&str; 2]) -> Result<Self> {
        let first = lab.pod("master", nics[0], "two")?;
        let plugin = lab.agent("master").plugin();
        let second = Sandbox {
            interface: "net1".into(),
            ..first.sandbox.clone()
        };
        let config = plugin
            .config(&format!("default/ipvlan-{}", nics[1]))
            .to_string();
        let result = plugin.call("ADD", Some(&second), &config)?.success()?;
        Ok(Self {
            others: addresses(&result)?,
            second,
            config,
            plugin,
            first,
        })
    }

    /// Returns its address on `ens5` or on `ens6`.
    fn address(&self, nic: &str, family: Family) -> Result<IpAddr> {
        let own = match nic {
            "ens5" | "eth0" => &self.first.addresses,
            _ => &self.others,
        };
        let found = own.iter().find(|address| Family::of(**address) == family);
        found.copied().context("the pod has no such address")
    }

    fn netns(&self) -> &Netns {
        &self.first.netns
    }

    fn call_second(&self, command: &str) -> Result<Value> {
        self.plugin
            .call(command, Some(&self.second), &self.config)?
            .success()
    }

    fn delete(self) -> Result<()> {
        self.call_second("DEL")?;
        self.first.delete()
    }
}

/// Returns the wires by which packets from `source` left a node since `mark`, in the connection of the client with this
/// port: an earlier connection may still be closing.
fn left_by(lab: &Lab, mark: Mark, source: IpAddr, client: SocketAddr) -> Result<Vec<String>> {
    let port = client.port();
    let mut wires: Vec<String> = lab
        .taps
        .since(mark)?
        .into_iter()
        .filter(|seen| seen.source == source && seen.direction == Direction::Out)
        .filter(|seen| [seen.source_port, seen.destination_port].contains(&port))
        .filter_map(|seen| match seen.place {
            Place::Wire { node, nic } => Some(format!("{node}/{nic}")),
            Place::Pod { .. } => None,
        })
        .collect();
    wires.sort();
    wires.dedup();
    Ok(wires)
}

fn ask(client: &Client<'_>, server: SocketAddr, protocol: Protocol) -> Result<Answer> {
    client
        .ask(server)
        .with_context(|| format!("{protocol} to {server}"))
}

#[test]
fn each_address_is_answered_where_the_request_came_in() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = TwoNics::create(&mut lab)?;
    let mut servers = Vec::new();
    let mut listeners = Vec::new();
    let mut services = Vec::new();
    for family in Family::BOTH {
        for (number, nic) in [(0_u16, "ens5"), (1, "ens6")] {
            let address = pod.address(nic, family)?;
            // Bound to the address: a wildcard UDP server with two addresses must choose its source itself, on any
            // host.
            servers.extend(Server::on(pod.netns(), address, PORT)?);
            for protocol in Protocol::BOTH {
                let target = SocketAddr::new(address, PORT);
                let port = 8100 + number;
                listeners.push(Listener {
                    protocol,
                    port,
                    target,
                });
                let node_port = 30080 + number;
                let node = lab.vpc.nic("master", "ens5").primary(family);
                listeners.push(Listener {
                    protocol,
                    port: node_port,
                    target: SocketAddr::new(node, node_port),
                });
                let cluster = match family {
                    Family::V4 => format!("10.96.0.{}:80", 60 + number),
                    Family::V6 => format!("[fd00:10:96::{}]:80", 60 + number),
                };
                services.push(Service {
                    name: format!("{nic}-{protocol}-{family}"),
                    protocol,
                    cluster: cluster.parse()?,
                    node_port: Some(node_port),
                    masquerade: false,
                    policy: ExternalTrafficPolicy::Local,
                    backends: vec![Backend {
                        address: target,
                        node: "master".into(),
                    }],
                });
            }
        }
    }
    let cluster_cidr = vec!["10.244.0.0/16".parse()?, "fd00:10:244::/56".parse()?];
    proxy::install(
        lab.vpc.node("master"),
        "master",
        &Settings {
            cluster_cidr,
            ..Settings::default()
        },
        &services,
    )?;
    lab.vpc.edge.listen(&listeners)?;
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            for (number, nic) in [(0_u16, "ens5"), (1, "ens6")] {
                let own = pod.address(nic, family)?;
                let what = format!("{family} {protocol} to {own} on {nic}");
                let world = Client::new(&lab.vpc.world, protocol).from_ip(Plan::client(family));
                let public = |port| SocketAddr::new(Plan::load_balancer(family), port);
                // Directly: in and out by the NIC that has the address.
                let mark = lab.taps.mark()?;
                let answer =
                    ask(&world, public(8100 + number), protocol).with_context(|| what.clone())?;
                let seen = answer.seen_as.ip();
                ensure!(seen == Plan::client(family), "{what}: the pod saw {seen}");
                let wires = left_by(&lab, mark, own, answer.local)?;
                ensure!(
                    wires == [format!("master/{nic}")],
                    "{what} left by {wires:?}"
                );
                // Through the node: in and out by ens5, with the node's address.
                let mark = lab.taps.mark()?;
                let answer = ask(&world, public(30080 + number), protocol)
                    .with_context(|| format!("{what}, NodePort"))?;
                let seen = answer.seen_as.ip();
                ensure!(
                    seen == Plan::client(family),
                    "{what}, NodePort: the pod saw {seen}"
                );
                ensure!(
                    left_by(&lab, mark, own, answer.local)?.is_empty(),
                    "{what}, NodePort: left untranslated"
                );
                // From the node itself.
                let node = Client::new(lab.vpc.node("master"), protocol);
                ask(&node, SocketAddr::new(own, PORT), protocol)
                    .with_context(|| format!("{what}, from the node"))?;
            }
        }
    }
    lab.vpc.assert_no_violations()?;
    drop(servers);
    pod.delete()
}

/// The on-link route of one interface must not attract packets with the other one's source.
#[test]
fn who_is_in_the_subnet_of_one_interface_is_answered_by_the_other_too() -> Result<()> {
    const NICS: [&str; 2] = ["eth0", "eth1"];
    let mut lab = Lab::start(Plan::alibaba())?;
    lab.filter_loosely()?;
    lab.route_by_source()?;
    let pod = TwoNics::on(&mut lab, NICS)?;
    let mut others = Vec::new();
    for node in ["master", "worker"] {
        for nic in NICS {
            let name = format!("{node}-{nic}");
            others.push(lab.pod(node, nic, &name).context(name)?);
        }
    }
    let mut servers = Vec::new();
    for family in Family::BOTH {
        for nic in NICS {
            servers.extend(Server::on(pod.netns(), pod.address(nic, family)?, PORT)?);
        }
    }
    for other in &others {
        servers.extend(Server::on_any(&other.netns, PORT)?);
    }
    for interface in ["eth0", "net1"] {
        let place = Place::Pod {
            pod: "two".into(),
            interface: interface.into(),
        };
        lab.taps
            .add(pod.netns(), interface, place, Direction::Out)?;
    }
    let worker = |nic, family| lab.vpc.nic("worker", nic).primary(family);
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            for (nic, interface) in NICS.into_iter().zip(["eth0", "net1"]) {
                let own = pod.address(nic, family)?;
                let nodes = NICS.map(|from| (lab.vpc.node("worker"), worker(from, family)));
                let pods = others.iter().map(|pod| (&pod.netns, pod.address(family)));
                for (netns, from) in nodes.into_iter().chain(pods) {
                    let what = format!("{family} {protocol} from {from} to {own}");
                    let mark = lab.taps.mark()?;
                    let client = Client::new(netns, protocol).from_ip(from);
                    let answer = ask(&client, SocketAddr::new(own, PORT), protocol)
                        .with_context(|| what.clone())?;
                    ensure!(answer.seen_as.ip() == from, "{what}: seen as {answer:?}");
                    let seen = lab.taps.since(mark)?.into_iter();
                    let mut replies: Vec<String> = seen
                        .filter(|seen| (seen.source, seen.destination) == (own, from))
                        .filter(|seen| seen.direction == Direction::Out)
                        .filter_map(|seen| match seen.place {
                            Place::Pod { interface, .. } => Some(interface),
                            Place::Wire { .. } => None,
                        })
                        .collect();
                    replies.dedup();
                    ensure!(replies == [interface], "{what}: answered by {replies:?}");
                }
            }
            // Packets without a source address leave to each subnet by the interface that is in it.
            for other in &others {
                let server = SocketAddr::new(other.address(family), PORT);
                let seen = ask(&Client::new(pod.netns(), protocol), server, protocol)?.seen_as;
                let nic = other.name.rsplit('-').next().unwrap_or_default();
                let own = pod.address(nic, family)?;
                ensure!(seen.ip() == own, "{server} has seen {seen}, not {own}");
            }
        }
    }
    lab.vpc.assert_no_violations()?;
    drop(servers);
    others.into_iter().try_for_each(Pod::delete)?;
    pod.delete()
}

#[test]
fn what_the_pod_starts_follows_its_source_and_one_nic_has_the_default_route() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = TwoNics::create(&mut lab)?;
    let mut servers = Vec::new();
    for family in Family::BOTH {
        servers.extend(Server::on(&lab.vpc.world, Plan::web_server(family), PORT)?);
        let node = lab.vpc.nic("master", "ens6").primary(family);
        servers.extend(Server::on(lab.vpc.node("master"), node, PORT)?);
    }
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            for nic in ["ens5", "ens6"] {
                let own = pod.address(nic, family)?;
                let what = format!("{family} {protocol} from {own} on {nic}");
                let client = Client::new(pod.netns(), protocol).from_ip(own);
                let mark = lab.taps.mark()?;
                let web = SocketAddr::new(Plan::web_server(family), PORT);
                let answer = ask(&client, web, protocol).with_context(|| what.clone())?;
                let wires = left_by(&lab, mark, own, answer.local)?;
                ensure!(
                    wires == [format!("master/{nic}")],
                    "{what} left by {wires:?}"
                );
                // To its own node: by the veth, whichever source they have.
                let mark = lab.taps.mark()?;
                let node = lab.vpc.nic("master", "ens6").primary(family);
                let answer = ask(&client, SocketAddr::new(node, PORT), protocol)
                    .with_context(|| format!("{what} to the node"))?;
                let seen = answer.seen_as.ip();
                ensure!(seen == own, "{what}: the node saw {seen}");
                ensure!(
                    left_by(&lab, mark, own, answer.local)?.is_empty(),
                    "{what} to the node: on a wire"
                );
            }
            let mark = lab.taps.mark()?;
            let web = SocketAddr::new(Plan::web_server(family), PORT);
            let answer = ask(&Client::new(pod.netns(), protocol), web, protocol)?;
            let own = pod.address("ens5", family)?;
            let wires = left_by(&lab, mark, own, answer.local)?;
            ensure!(wires == ["master/ens5"], "by default it left by {wires:?}");
        }
    }
    lab.vpc.assert_no_violations()?;
    drop(servers);
    pod.delete()
}

#[test]
fn both_interfaces_are_checked_repaired_and_removed_each_for_itself() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let before = Snapshot::of(lab.vpc.node("master"))?;
    let pod = TwoNics::create(&mut lab)?;
    let first = pod.first.call("ADD")?;
    ensure!(first == pod.first.result, "planned again: {first}");
    let again = addresses(&pod.call_second("ADD")?)?;
    ensure!(again == pod.others, "{again:?}");
    ip(pod.netns(), &["rule", "del", "pref", "1001"])?;
    pod.first.call("CHECK")?;
    match pod.call_second("CHECK") {
        Ok(_) => bail!("CHECK found nothing"),
        Err(error) => ensure!(error.to_string().contains("rule 1001"), "{error:#}"),
    }
    lab.agent("master").kill()?;
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    pod.first.call("CHECK")?;
    pod.call_second("CHECK").context("a new agent repairs it")?;
    pod.call_second("DEL")?;
    pod.first.call("CHECK").context("the first stays")?;
    ensure!(!Snapshot::of(pod.netns())?.mentions("net1"));
    pod.delete()?;
    before.comes_back(lab.vpc.node("master"))
}
