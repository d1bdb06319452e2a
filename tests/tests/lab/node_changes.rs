//! A node that changes under its running pods: NICs, addresses, gateways and MTUs come and go.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    agent::Agent,
    edge::Listener,
    lab::Lab,
    manifests,
    netlink::VethEnd,
    netns::Netns,
    patience::{IMPATIENCE, PATIENCE, eventually},
    plan::{Family, Plan},
    pod::Pod,
    proxy::{self, Backend, ExternalTrafficPolicy, Service, Settings},
    snapshot::{Snapshot, ip},
    tap::Place,
    traffic::{Client, Protocol, Server},
};
use ipnet::IpNet;
use serde_json::{Value, json};

pub(crate) const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;

/// Moves a NIC from the node to a namespace where nobody sees it.
fn unplug(lab: &Lab, node: &str, nic: &str) -> Result<Netns> {
    let drawer = Netns::new("drawer")?;
    let path = drawer.path();
    ip(
        lab.vpc.node(node),
        &["link", "set", nic, "netns", path_of(&path)?],
    )?;
    Ok(drawer)
}

/// Removes a NIC as a hypervisor does: the device is gone, and its children with it.
fn remove(lab: &Lab, node: &str, nic: &str) -> Result<()> {
    lab.taps.remove(
        |place| matches!(place, Place::Wire { node: n, nic: name } if n == node && name == nic),
    );
    ip(lab.vpc.node(node), &["link", "del", nic]).map(drop)
}

/// Creates the NIC again, up and with its addresses.
fn make_again(lab: &Lab, node: &str, nic: &str) -> Result<()> {
    make_down(lab, node, nic, nic)?;
    configure(lab, node, nic)
}

/// Creates the NIC and the VPC's end of its wire again, without strictness there. The NIC is down and called `name`.
fn make_down(lab: &Lab, node: &str, nic: &str, name: &str) -> Result<()> {
    let nic = lab.vpc.nic(node, nic);
    let (router, port) = (&lab.vpc.router, nic.port());
    let netlink = router.netlink()?;
    // A NIC that is moved into the node is down, like one that nobody has configured.
    let drawer = Netns::new("drawer")?;
    netlink.add_veth(
        &VethEnd {
            netns: router,
            name: &port,
            mac: nic.port_mac(),
        },
        &VethEnd {
            netns: &drawer,
            name,
            mac: nic.mac,
        },
        lab.vpc.plan.mtu,
    )?;
    let path = lab.vpc.node(node).path();
    ip(&drawer, &["link", "set", name, "netns", path_of(&path)?])?;
    for family in Family::BOTH {
        let subnet = nic.subnet(family);
        let gateway = IpNet::new(subnet.gateway, subnet.primary.prefix_len())?;
        netlink.add_address(&port, gateway)?;
        netlink.add_neighbours(&port, subnet.addresses(), nic.mac)?;
    }
    Ok(())
}

/// Moves the NIC into the node, with the node's own addresses.
fn plug_in(lab: &Lab, drawer: &Netns, node: &str, nic: &str) -> Result<()> {
    let path = lab.vpc.node(node).path();
    ip(drawer, &["link", "set", nic, "netns", path_of(&path)?])?;
    configure(lab, node, nic)
}

fn configure(lab: &Lab, node: &str, nic: &str) -> Result<()> {
    lab.vpc.node(node).netlink()?.set_up(nic)?;
    add_addresses(lab, node, nic)
}

fn add_addresses(lab: &Lab, node: &str, nic: &str) -> Result<()> {
    let netlink = lab.vpc.node(node).netlink()?;
    for family in Family::BOTH {
        let subnet = lab.vpc.nic(node, nic).subnet(family);
        netlink.add_address(nic, subnet.primary)?;
    }
    Ok(())
}

fn path_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path")
}

/// Checks that the namespace reaches the world, by both families.
pub(crate) fn reaches_the_world(netns: &Netns, patience: Duration) -> Result<()> {
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            let web = SocketAddr::new(Plan::web_server(family), PORT);
            let client = Client::new(netns, protocol).timeout(patience);
            client
                .ask(web)
                .with_context(|| format!("{protocol} to {web}"))?;
        }
    }
    Ok(())
}

/// Waits until CHECK succeeds: nothing announces that the agent has finished its repairs.
pub(crate) fn checked(pod: &Pod) -> Result<()> {
    eventually("CHECK", || pod.call("CHECK")).map(drop)
}

pub(crate) fn serve_the_world(lab: &Lab) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for family in Family::BOTH {
        servers.extend(Server::on(&lab.vpc.world, Plan::web_server(family), PORT)?);
    }
    Ok(servers)
}

/// Adds a NodePort with policy Local for the pod, and a listener of the load balancer for each of the node's addresses.
pub(crate) fn expose(lab: &Lab, pod: &Pod, addresses: &[IpAddr]) -> Result<()> {
    let mut services = Vec::new();
    let mut listeners = Vec::new();
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let cluster = match family {
                Family::V4 => "10.96.0.70:80",
                Family::V6 => "[fd00:10:96::70]:80",
            };
            services.push(Service {
                name: format!("{protocol}-{family}"),
                protocol,
                cluster: cluster.parse()?,
                node_port: Some(NODE_PORT),
                masquerade: false,
                policy: ExternalTrafficPolicy::Local,
                backends: vec![Backend {
                    address: pod.socket(family, PORT),
                    node: pod.node.clone(),
                }],
            });
        }
        for (number, address) in addresses.iter().enumerate() {
            listeners.push(Listener {
                protocol,
                port: public_port(number),
                target: SocketAddr::new(*address, NODE_PORT),
            });
        }
    }
    let node = lab.vpc.node(&pod.node);
    proxy::install(node, &pod.node, &Settings::default(), &services)?;
    lab.vpc.edge.listen(&listeners)
}

fn public_port(number: usize) -> u16 {
    8200 + u16::try_from(number).unwrap_or(0)
}

/// Sends a request to the `number`th of the addresses given to [`expose`]. Returns the wires by which the answers, from
/// `address`, left.
pub(crate) fn ask_node_port(lab: &Lab, number: usize, address: IpAddr) -> Result<Vec<String>> {
    let family = Family::of(address);
    let mut wires = Vec::new();
    for protocol in Protocol::BOTH {
        let mark = lab.taps.mark()?;
        let public = SocketAddr::new(Plan::load_balancer(family), public_port(number));
        let client = Client::new(&lab.vpc.world, protocol).from_ip(Plan::client(family));
        let answer = client
            .timeout(IMPATIENCE)
            .ask(public)
            .with_context(|| format!("{protocol} to the NodePort at {address}"))?;
        ensure!(
            answer.seen_as.ip() == Plan::client(family),
            "{}",
            answer.seen_as
        );
        for seen in lab.taps.since(mark)? {
            if let Place::Wire { node, nic } = seen.place
                && seen.source == address
                && seen.source_port == NODE_PORT
            {
                wires.push(format!("{node}/{nic}"));
            }
        }
    }
    wires.sort();
    wires.dedup();
    Ok(wires)
}

#[test]
fn a_nic_that_is_plugged_in_carries_pods_and_answers_node_ports_at_once() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    let drawer = unplug(&lab, "master", "ens6")?;
    lab.start_agents()?;
    let _world = serve_the_world(&lab)?;
    let before = lab.pod("master", "ens5", "before")?;
    plug_in(&lab, &drawer, "master", "ens6")?;
    // Without waiting: ADD does not use outdated facts.
    let pod = lab.pod("master", "ens6", "after")?;
    reaches_the_world(&pod.netns, PATIENCE)?;
    checked(&pod)?;
    let _server = Server::on_any(&pod.netns, PORT)?;
    let addresses = Family::BOTH.map(|family| lab.vpc.nic("master", "ens6").primary(family));
    expose(&lab, &pod, &addresses)?;
    for (number, address) in addresses.into_iter().enumerate() {
        eventually("NodePort at the new NIC", || {
            let wires = ask_node_port(&lab, number, address)?;
            ensure!(wires == ["master/ens6"], "answered by {wires:?}");
            Ok(())
        })?;
        // The earlier pod reaches the new address through its node.
        let _server = Server::on(lab.vpc.node("master"), address, PORT)?;
        eventually("the node's new address", || {
            let client = Client::new(&before.netns, Protocol::Tcp);
            let answer = client
                .timeout(IMPATIENCE)
                .ask(SocketAddr::new(address, PORT))?;
            ensure!(answer.seen_as.ip() == before.address(Family::of(address)));
            Ok(())
        })?;
    }
    checked(&before)?;
    lab.vpc.assert_no_violations()?;
    pod.delete()?;
    before.delete()
}

#[test]
fn an_address_of_the_node_comes_to_running_pods_and_goes_again() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let _server = Server::on_any(&pod.netns, PORT)?;
    let node = lab.vpc.node("master");
    // The VPC knows them on ens6, and no pod has them yet.
    let new: Vec<IpAddr> = Family::BOTH
        .iter()
        .filter_map(|family| {
            lab.vpc
                .nic("master", "ens6")
                .subnet(*family)
                .secondary
                .last()
        })
        .copied()
        .collect();
    expose(&lab, &pod, &new)?;
    for (number, address) in new.iter().copied().enumerate() {
        let net = format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 });
        ip(node, &["address", "add", &net, "dev", "ens6"])?;
        let way = format!("{address} via");
        eventually("a route in the pod", || {
            ensure!(Snapshot::of(&pod.netns)?.mentions(&way), "no {way}");
            Ok(())
        })?;
        eventually("a NodePort at the new address", || {
            let wires = ask_node_port(&lab, number, address)?;
            ensure!(wires == ["master/ens6"], "answered by {wires:?}");
            Ok(())
        })?;
        let _server = Server::on(node, address, PORT)?;
        let client = Client::new(&pod.netns, Protocol::Udp);
        let answer = client.ask(SocketAddr::new(address, PORT))?;
        ensure!(answer.seen_as.ip() == pod.address(Family::of(address)));
        checked(&pod)?;
        ip(node, &["address", "del", &net, "dev", "ens6"])?;
        eventually("the route goes with the address", || {
            ensure!(!Snapshot::of(&pod.netns)?.mentions(&way), "still {way}");
            Ok(())
        })?;
        checked(&pod)?;
    }
    lab.vpc.assert_no_violations()?;
    pod.delete()
}

#[test]
fn a_pool_s_new_gateway_is_used_by_running_pods() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let _world = serve_the_world(&lab)?;
    let pod = lab.pod("master", "ens6", "c")?;
    reaches_the_world(&pod.netns, PATIENCE)?;
    let port = lab.vpc.nic("master", "ens6").port();
    let mut plan = Plan::default();
    for family in Family::BOTH {
        let subnet = lab.vpc.nic("master", "ens6").subnet(family).clone();
        let prefix = subnet.primary.prefix_len();
        let other: IpAddr = match family {
            Family::V4 => "210.22.16.2".parse()?,
            Family::V6 => "fd00:2116::2".parse()?,
        };
        let [old, new] = [subnet.gateway, other].map(|gateway| format!("{gateway}/{prefix}"));
        ip(&lab.vpc.router, &["address", "add", &new, "dev", &port])?;
        ip(&lab.vpc.router, &["address", "del", &old, "dev", &port])?;
        for nic in plan.nodes.iter_mut().flat_map(|node| &mut node.nics) {
            for side in [&mut nic.v4, &mut nic.v6] {
                if side.gateway == subnet.gateway {
                    side.gateway = other;
                }
            }
        }
    }
    // The kernel would remember for a while who had the old address.
    ip(
        lab.vpc.node("master"),
        &["neighbour", "flush", "dev", "ens6"],
    )?;
    ip(
        lab.vpc.node("master"),
        &["-6", "neighbour", "flush", "dev", "ens6"],
    )?;
    ensure!(
        reaches_the_world(&pod.netns, IMPATIENCE).is_err(),
        "the old gateway is gone"
    );
    let file = lab.agent("master").manifests().join("plan.yaml");
    std::fs::write(file, manifests::yaml(&plan))?;
    eventually("by the new gateway", || {
        reaches_the_world(&pod.netns, IMPATIENCE)
    })?;
    checked(&pod)?;
    pod.delete()
}

#[test]
fn the_mtu_of_the_nic_is_its_pods_mtu_on_every_link_whenever_it_changes() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens6", "c")?;
    let node = lab.vpc.node("master");
    let mtu = |netns: &Netns, path: &str| -> Result<String> {
        netns.run(|| Ok(std::fs::read_to_string(path)?.trim().to_owned()))
    };
    let shown = |netns: &Netns, link: &str| -> Result<String> {
        let text = ip(netns, &["-o", "link", "show", "dev", link])?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
        Ok(words.nth(1).unwrap_or_default().to_owned())
    };
    for now in ["9001", "1500", "1400", "9001"] {
        ip(node, &["link", "set", "ens6", "mtu", now])?;
        eventually(now, || {
            let found = [
                shown(&pod.netns, "eth0")?,
                shown(&pod.netns, "veth0")?,
                shown(node, &pod.host_interface)?,
                mtu(&pod.netns, "/proc/sys/net/ipv6/conf/eth0/mtu")?,
                mtu(&pod.netns, "/proc/sys/net/ipv6/conf/veth0/mtu")?,
            ];
            ensure!(found.iter().all(|found| found == now), "{found:?}");
            Ok(())
        })?;
        checked(&pod)?;
    }
    pod.delete()
}

#[test]
fn a_nic_that_is_gone_is_reported_and_its_pods_live_again_when_it_is_back() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let _world = serve_the_world(&lab)?;
    let stays = lab.pod("master", "ens5", "stays")?;
    let deleted = lab.pod("master", "ens6", "deleted")?;
    let waits = lab.pod("master", "ens6", "waits")?;
    reaches_the_world(&waits.netns, PATIENCE)?;
    for pod in ["deleted", "waits"] {
        lab.taps
            .remove(|place| matches!(place, Place::Pod { pod: name, .. } if name == pod));
    }
    remove(&lab, "master", "ens6")?;
    eventually("nothing of ours speaks of it", || {
        let now = Snapshot::of(lab.vpc.node("master"))?;
        ensure!(!now.mentions("ens6"), "{now:#?}");
        Ok(())
    })?;
    for pod in ["deleted", "waits"] {
        eventually("reported", || {
            let status = lab.agent("master").control(&["status"])?;
            let names_it = |line: &str| line.contains(pod) && line.contains("ens6");
            ensure!(status.lines().any(names_it), "{status}");
            Ok(())
        })?;
    }
    let error = waits
        .call("CHECK")
        .err()
        .context("CHECK of a pod without its NIC")?;
    ensure!(error.to_string().contains("eth0 is missing"), "{error:#}");
    deleted.delete()?;
    reaches_the_world(&stays.netns, PATIENCE)?;
    checked(&stays)?;
    make_again(&lab, "master", "ens6")?;
    eventually("back with the NIC", || {
        reaches_the_world(&waits.netns, IMPATIENCE)
    })?;
    checked(&waits)?;
    eventually("reported no more", || {
        let status = lab.agent("master").control(&["status"])?;
        ensure!(!status.contains("problem"), "{status}");
        Ok(())
    })?;
    lab.vpc.assert_no_violations()?;
    waits.delete()?;
    stays.delete()
}

/// The time in which the agent reacts to events, without being triggered again.
const SOME_LOOKS: Duration = Duration::from_secs(3);

/// The state of a NIC when it comes back, and what makes it its pods' NIC again.
struct Return {
    what: &'static str,
    comes: fn(&Lab) -> Result<()>,
    /// What the kernel refuses meanwhile, if anything.
    refused: Option<&'static str>,
    is_freed: fn(&Lab) -> Result<()>,
}

const RETURNS: [Return; 2] = [
    Return {
        what: "down",
        comes: |lab| {
            make_down(lab, "master", "ens6", "ens6")?;
            add_addresses(lab, "master", "ens6")
        },
        refused: None,
        is_freed: |lab| lab.vpc.node("master").netlink()?.set_up("ens6"),
    },
    // Never free for a moment: under its name it is the bridge's port from the beginning.
    Return {
        what: "a port of a bridge",
        comes: |lab| {
            make_down(lab, "master", "ens6", "arrives")?;
            for command in [
                &["link", "add", "theirs", "type", "bridge"][..],
                &["link", "set", "arrives", "master", "theirs"],
                &["link", "set", "arrives", "name", "ens6"],
            ] {
                ip(lab.vpc.node("master"), command)?;
            }
            configure(lab, "master", "ens6")
        },
        refused: Some("it is a port of the bridge theirs"),
        is_freed: |lab| ip(lab.vpc.node("master"), &["link", "set", "ens6", "nomaster"]).map(drop),
    },
];

#[test]
fn a_nic_that_comes_back_but_cannot_be_used_carries_its_pods_when_it_can() -> Result<()> {
    for Return {
        what,
        comes,
        refused,
        is_freed,
    } in RETURNS
    {
        let mut lab = Lab::start(Plan::default())?;
        let _world = serve_the_world(&lab)?;
        let waits = lab.pod("master", "ens6", "waits")?;
        reaches_the_world(&waits.netns, PATIENCE)?;
        lab.taps
            .remove(|place| matches!(place, Place::Pod { pod, .. } if pod == "waits"));
        remove(&lab, "master", "ens6")?;
        eventually("nothing of ours speaks of it", || {
            let now = Snapshot::of(lab.vpc.node("master"))?;
            ensure!(!now.mentions("ens6"), "{now:#?}");
            Ok(())
        })?;
        comes(&lab)?;
        std::thread::sleep(SOME_LOOKS);
        if let Some(refused) = refused {
            is_failing(lab.agent("master"), refused)?;
        }
        is_freed(&lab)?;
        eventually("back with the NIC", || {
            reaches_the_world(&waits.netns, IMPATIENCE)
        })
        .with_context(|| format!("{what}: {}", lab.logs()))?;
        checked(&waits)?;
        is_cured(lab.agent("master"), refused)?;
        waits.delete()?;
    }
    Ok(())
}

/// Checks that `ebbtidectl status` shows the pod's interface as failing, and the reason.
fn is_failing(agent: &Agent, refused: &str) -> Result<()> {
    eventually("a second attempt", || {
        let status = agent.control_json(&["status"])?;
        let failing = status["failing"].as_array().context("a list")?;
        let waits = |item: &&Value| item["key"] == "default/waits/eth0";
        let item = failing.iter().find(waits).context("not in it")?;
        ensure!(item["attempts"].as_u64() > Some(1), "{item}");
        let error = item["lastError"].as_str().unwrap_or_default();
        ensure!(error.contains(refused), "{item}");
        ensure!(item["since"].as_u64() > Some(0), "{item}");
        Ok(())
    })?;
    let table = agent.control(&["status"])?;
    let mut lines = table.lines();
    let shows = |line: &str| line.contains("default/waits/eth0") && line.contains(refused);
    ensure!(lines.any(shows), "{table}");
    Ok(())
}

/// Checks that nothing is failing any more, and that the log has a line for the beginning and one for the end of a
/// refusal.
fn is_cured(agent: &Agent, refused: Option<&str>) -> Result<()> {
    eventually("nothing is failing", || {
        let status = agent.control_json(&["status"])?;
        ensure!(status["failing"] == json!([]), "{status}");
        Ok(())
    })?;
    let Some(refused) = refused else {
        return Ok(());
    };
    let log = agent.log();
    for said in [refused, "reconciled again"] {
        let of_pod = |line: &&str| line.contains("default/waits") && line.contains(said);
        let lines: Vec<&str> = log.lines().filter(of_pod).collect();
        ensure!(lines.len() == 1, "{said}: {lines:#?}");
    }
    Ok(())
}

const MORE_BEHIND_THE_NODE: &str = "\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderCoordinator
metadata: {name: default}
spec: {hijackCIDR: [192.0.2.0/24, \"2001:db8:7::/64\"]}
";

#[test]
fn what_is_declared_to_be_behind_the_node_is_reached_there_by_running_pods() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens6", "c")?;
    let goes_by = |nic: &str| {
        for (family, destination) in [("-4", "192.0.2.9"), ("-6", "2001:db8:7::9")] {
            let route = ip(&pod.netns, &[family, "route", "get", destination])?;
            ensure!(route.contains(&format!("dev {nic} ")), "{route}");
        }
        Ok(())
    };
    goes_by("eth0")?;
    let file = lab.agent("master").manifests().join("coordinator.yaml");
    std::fs::write(&file, MORE_BEHIND_THE_NODE)?;
    eventually("declared", || goes_by("veth0"))?;
    checked(&pod)?;
    std::fs::remove_file(&file)?;
    eventually("not declared any more", || goes_by("eth0"))?;
    checked(&pod)?;
    pod.delete()
}
