//! The rows of the table: clients, servers, and the expected paths.

use std::net::SocketAddr;

use ebbtide_vpc::{
    path::{Hop, Path},
    patience::PATIENCE,
    plan::{Family, Plan},
    pod::{NIC_SIDE, NODE_SIDE, Pod},
    tap::{
        Direction::{self, In, Out},
        Place,
    },
};

use super::{
    check::{Check, SeenAs, Transport},
    cluster_ip,
    offers::{CLUSTER_FAR, CLUSTER_NEAR, LOCAL_OTHER, LOCAL_SAME, Offer},
    scenario::{ARRIVED, BY_ENS6, HOST_BY_ENS6, HOST_PORT, IP_TARGETS, POD_PORT, Scenario},
};

pub(super) fn checks(scenario: &Scenario) -> Vec<Check> {
    let mut checks = vec![
        node_to_pod("pod ↔ own node", "node", scenario, "a"),
        node_to_pod("pod ↔ own node", "node", scenario, "c"),
        pod_to_node(scenario, "a", "ens5"),
        pod_to_node(scenario, "c", "ens5"),
        pod_to_node(scenario, "c", "ens6"),
    ];
    for (from, to) in [("a", "b"), ("a", "c"), ("a", "d"), ("a", "e"), ("e", "c")] {
        checks.push(pod_to_pod(scenario, from, to));
    }
    checks.extend(cluster_ip::checks(scenario));
    for from in ["a", "c", "e"] {
        checks.push(outside(scenario, from));
    }
    for (pod, port) in IP_TARGETS {
        checks.push(load_balancer_to_pod(scenario, pod, port));
    }
    for nic in ["ens5", "ens6"] {
        checks.push(node_port_cluster(scenario, &CLUSTER_FAR, nic));
        checks.push(node_port_cluster(scenario, &CLUSTER_NEAR, nic));
    }
    for nic in ["ens5", "ens6"] {
        checks.push(node_port_local(scenario, &LOCAL_SAME, nic));
        checks.push(node_port_local(scenario, &LOCAL_OTHER, nic));
    }
    checks.push(Check {
        transports: &[Transport::Tcp],
        ..node_to_pod("probe, hostNetwork → pod", "kubelet", scenario, "c")
    });
    checks
}

fn node_to_pod(traffic: &'static str, from: &str, scenario: &Scenario, pod: &str) -> Check {
    let pod = scenario.pod(pod);
    Check {
        traffic,
        from: from.to_owned(),
        to: title(pod),
        client: scenario.master.clone(),
        source: None,
        server: both(|family| server_of(pod, family)),
        serving: vec![POD_PORT],
        transports: Transport::ALL,
        families: scenario.families,
        patience: PATIENCE,
        seen_as: SeenAs::Itself,
        path: Path(vec![by_veth(pod, In)]),
        back: None,
    }
}

fn pod_to_node(scenario: &Scenario, pod: &str, nic: &str) -> Check {
    let pod = scenario.pod(pod);
    Check {
        traffic: "pod ↔ own node",
        from: title(pod),
        to: format!("node, {nic}"),
        client: pod.netns.clone(),
        source: None,
        server: both(|family| SocketAddr::new(scenario.nic("master", nic, family), HOST_PORT)),
        serving: vec![HOST_PORT],
        transports: Transport::ALL,
        families: scenario.families,
        patience: PATIENCE,
        seen_as: SeenAs::Itself,
        path: Path(vec![by_veth(pod, Out)]),
        back: None,
    }
}

fn pod_to_pod(scenario: &Scenario, from: &str, to: &str) -> Check {
    let (from, to) = (scenario.pod(from), scenario.pod(to));
    let same_nic = (&from.node, &from.nic) == (&to.node, &to.nic);
    let mut path = vec![by_nic(from, Out)];
    if !same_nic {
        path.push(wire(&from.node, &from.nic, Out));
        path.push(wire(&to.node, &to.nic, In));
    }
    path.push(by_nic(to, In));
    Check {
        traffic: match (same_nic, from.node == to.node) {
            (true, _) => "pod ↔ pod, same NIC",
            (false, true) => "pod ↔ pod, other NIC",
            (false, false) => "pod ↔ pod, other node",
        },
        from: title(from),
        to: title(to),
        client: from.netns.clone(),
        source: None,
        server: both(|family| server_of(to, family)),
        serving: vec![POD_PORT],
        transports: Transport::ALL,
        families: scenario.families,
        patience: PATIENCE,
        seen_as: SeenAs::Itself,
        path: Path(path),
        back: None,
    }
}

fn outside(scenario: &Scenario, from: &str) -> Check {
    let from = scenario.pod(from);
    Check {
        traffic: "pod → outside",
        from: title(from),
        to: "web server".into(),
        client: from.netns.clone(),
        source: None,
        server: both(|family| SocketAddr::new(Plan::web_server(family), HOST_PORT)),
        serving: vec![HOST_PORT],
        transports: Transport::ALL,
        families: scenario.families,
        patience: PATIENCE,
        seen_as: SeenAs::Outside,
        path: Path(vec![by_nic(from, Out), wire(&from.node, &from.nic, Out)]),
        back: None,
    }
}

fn load_balancer_to_pod(scenario: &Scenario, pod: &str, port: u16) -> Check {
    let pod = scenario.pod(pod);
    Check {
        traffic: "load balancer, IP mode",
        path: Path(vec![wire(&pod.node, &pod.nic, In), by_nic(pod, In)]),
        ..by_load_balancer(scenario, title(pod), port)
    }
}

/// Returns the rows of a pod whose address was assigned while the demonstration ran.
pub(super) fn arrived(scenario: &Scenario, pod: &str) -> [Check; 2] {
    [
        load_balancer_to_pod(scenario, pod, ARRIVED),
        outside(scenario, pod),
    ]
    .map(|check| Check {
        traffic: "address assigned meanwhile",
        ..check
    })
}

fn node_port_cluster(scenario: &Scenario, offer: &Offer, nic: &str) -> Check {
    let pod = scenario.pod(offer.pod);
    let mut path = vec![wire("master", nic, In)];
    if pod.node == "master" {
        path.push(by_veth(pod, In));
    } else {
        // The node itself forwards it, by its default route, as it would without an agent.
        path.push(wire("master", "ens5", Out));
        path.push(wire(&pod.node, &pod.nic, In));
        path.push(by_nic(pod, In));
    }
    Check {
        traffic: "NodePort, policy Cluster",
        seen_as: SeenAs::Node("master".into()),
        path: Path(path),
        ..by_node_port_of(scenario, pod, offer, nic)
    }
}

/// Returns the row that Ebbtide is made for.
pub(super) fn node_port_local(scenario: &Scenario, offer: &Offer, nic: &str) -> Check {
    let pod = scenario.pod(offer.pod);
    Check {
        traffic: "NodePort, policy Local",
        path: Path(vec![wire("master", nic, In), by_veth(pod, In)]),
        ..by_node_port_of(scenario, pod, offer, nic)
    }
}

/// Returns the rows of [`Scenario::by_enforcement`].
pub(super) fn by_enforcement(scenario: &Scenario) -> [Check; 2] {
    let (pod, serving) = (
        scenario.pod(LOCAL_OTHER.pod),
        vec![LOCAL_OTHER.node_port, POD_PORT],
    );
    [
        Check {
            traffic: "load balancer → node",
            serving: vec![HOST_PORT],
            path: Path(vec![wire("master", "ens6", In)]),
            ..by_load_balancer(scenario, "node, ens6".into(), HOST_BY_ENS6)
        },
        Check {
            traffic: "NodePort, no programs in the pod",
            path: Path(vec![wire("master", "ens5", In), by_veth(pod, In)]),
            back: Some(Path(vec![by_nic(pod, Out), wire("master", "ens5", Out)])),
            serving,
            ..by_load_balancer(scenario, by_node_port(pod, "ens5"), LOCAL_OTHER.node_port)
        },
    ]
}

fn by_node_port_of(scenario: &Scenario, pod: &Pod, offer: &Offer, nic: &str) -> Check {
    let port = match nic {
        "ens6" => offer.node_port + BY_ENS6,
        _ => offer.node_port,
    };
    Check {
        serving: vec![offer.node_port, POD_PORT],
        ..by_load_balancer(scenario, by_node_port(pod, nic), port)
    }
}

fn by_load_balancer(scenario: &Scenario, to: String, port: u16) -> Check {
    Check {
        traffic: "",
        from: "outside client".into(),
        to,
        client: scenario.world.clone(),
        source: Some(Family::BOTH.map(Plan::client)),
        server: both(|family| SocketAddr::new(Plan::load_balancer(family), port)),
        serving: vec![port, POD_PORT],
        transports: Transport::WITH_PORTS,
        families: scenario.families,
        patience: PATIENCE,
        seen_as: SeenAs::Itself,
        path: Path::default(),
        back: None,
    }
}

pub(super) fn title(pod: &Pod) -> String {
    format!("{} {}/{}", pod.name, pod.node, pod.nic)
}

fn by_node_port(pod: &Pod, nic: &str) -> String {
    format!("NodePort at {nic} → {}", title(pod))
}

/// Returns the address of a pod's server; that of no host in a family that the pod does not have.
fn server_of(pod: &Pod, family: Family) -> SocketAddr {
    let mut own = pod.addresses.iter();
    let own = own.find(|address| Family::of(**address) == family);
    SocketAddr::new(own.copied().unwrap_or(family.any()), POD_PORT)
}

pub(super) fn both<T>(of: impl Fn(Family) -> T) -> [T; 2] {
    Family::BOTH.map(of)
}

pub(super) fn wire(node: &str, nic: &str, direction: Direction) -> Hop {
    Hop {
        place: Place::Wire {
            node: node.to_owned(),
            nic: nic.to_owned(),
        },
        direction,
    }
}

pub(super) fn by_veth(pod: &Pod, direction: Direction) -> Hop {
    by(pod, NODE_SIDE, direction)
}

pub(super) fn by_nic(pod: &Pod, direction: Direction) -> Hop {
    by(pod, NIC_SIDE, direction)
}

fn by(pod: &Pod, interface: &str, direction: Direction) -> Hop {
    Hop {
        place: Place::Pod {
            pod: pod.name.clone(),
            interface: interface.to_owned(),
        },
        direction,
    }
}
