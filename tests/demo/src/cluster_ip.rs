//! The rows of ClusterIPs: backends in pods and in hosts, near and far, masqueraded and not.

use ebbtide_vpc::{
    path::Path,
    patience::PATIENCE,
    tap::Direction::{In, Out},
};

use super::{
    check::{Check, SeenAs, Transport},
    offers::{
        CLUSTER_NEAR, FAR, HOST_OFFERS, HostOffer, NEAR, Offer, PLAIN_FAR, PLAIN_NEAR, SERVICE_PORT,
    },
    scenario::{HOST_PORT, POD_PORT, Scenario},
    table::{both, by_nic, by_veth, title, wire},
};

pub(super) fn checks(scenario: &Scenario) -> Vec<Check> {
    let masqueraded = [("a", &FAR), ("c", &FAR), ("a", &NEAR), ("c", &NEAR)];
    let plain = [
        ("a", &PLAIN_FAR),
        ("c", &PLAIN_FAR),
        ("a", &PLAIN_NEAR),
        ("c", &PLAIN_NEAR),
    ];
    // kube-proxy masquerades traffic of a pod to itself, whatever the cluster CIDR.
    let hairpin = [("b", &NEAR), ("c", &CLUSTER_NEAR), ("b", &PLAIN_NEAR)];
    let from_node = [&FAR, &CLUSTER_NEAR].map(|offer| node_to_pod(scenario, offer));
    let to_hosts = ["a", "c"].map(|from| HOST_OFFERS.iter().map(move |offer| (from, offer)));
    masqueraded
        .map(|(from, offer)| to_pod(scenario, from, offer))
        .into_iter()
        .chain(from_node)
        .chain(plain.map(|(from, offer)| plain_to_pod(scenario, from, offer)))
        .chain(hairpin.map(|(pod, offer)| to_itself(scenario, pod, offer)))
        .chain(
            to_hosts
                .into_iter()
                .flatten()
                .map(|(from, offer)| to_host(scenario, from, offer)),
        )
        .collect()
}

fn to_pod(scenario: &Scenario, from: &str, offer: &Offer) -> Check {
    let (from, to) = (scenario.pod(from), scenario.pod(offer.pod));
    let mut path = vec![by_veth(from, Out)];
    if from.node == to.node {
        path.push(by_veth(to, In));
    } else {
        // The node itself forwards it, by its default route.
        path.push(wire(&from.node, "ens5", Out));
        path.push(wire(&to.node, &to.nic, In));
        path.push(by_nic(to, In));
    }
    Check {
        traffic: "pod → ClusterIP",
        from: title(from),
        to: format!("ClusterIP of {}", title(to)),
        client: from.netns.clone(),
        source: None,
        server: both(|family| offer.cluster(family)),
        serving: vec![SERVICE_PORT, POD_PORT],
        transports: Transport::WITH_PORTS,
        families: scenario.families,
        patience: PATIENCE,
        seen_as: SeenAs::Node(from.node.clone()),
        path: Path(path),
        back: None,
    }
}

/// Returns the row from the node itself (its kubelet, and what runs in its namespace), which is translated in OUTPUT.
fn node_to_pod(scenario: &Scenario, offer: &Offer) -> Check {
    let to = scenario.pod(offer.pod);
    let path = match to.node.as_str() {
        "master" => vec![by_veth(to, In)],
        _ => vec![
            wire("master", "ens5", Out),
            wire(&to.node, &to.nic, In),
            by_nic(to, In),
        ],
    };
    Check {
        traffic: "node → ClusterIP",
        from: "node".into(),
        client: scenario.master.clone(),
        seen_as: SeenAs::Node("master".into()),
        path: Path(path),
        ..to_pod(scenario, "a", offer)
    }
}

/// Returns the row of a ClusterIP without masquerading: the backend sees the pod itself. What leaves the node has the
/// pod's address, so it leaves by the pod's NIC.
fn plain_to_pod(scenario: &Scenario, from: &str, offer: &Offer) -> Check {
    let (pod, to) = (scenario.pod(from), scenario.pod(offer.pod));
    let mut check = to_pod(scenario, from, offer);
    if pod.node != to.node {
        check.path.0[1] = wire(&pod.node, &pod.nic, Out);
    }
    Check {
        traffic: "pod → ClusterIP, not masqueraded",
        seen_as: SeenAs::Itself,
        ..check
    }
}

/// Returns the row of a pod that reaches itself through its Service. The node masquerades it.
fn to_itself(scenario: &Scenario, name: &str, offer: &Offer) -> Check {
    let pod = scenario.pod(name);
    Check {
        traffic: "pod → ClusterIP → itself",
        path: Path(vec![by_veth(pod, Out), by_veth(pod, In)]),
        ..to_pod(scenario, name, offer)
    }
}

/// Returns the row of a backend in a host's own namespace. Packets are masqueraded where they leave the node, so
/// packets for this node itself keep the pod's address either way.
fn to_host(scenario: &Scenario, from: &str, offer: &HostOffer) -> Check {
    let from = scenario.pod(from);
    let same_node = from.node == offer.node;
    let mut path = vec![by_veth(from, Out)];
    if !same_node {
        let nic = if offer.masquerade { "ens5" } else { &from.nic };
        path.push(wire(&from.node, nic, Out));
        path.push(wire(offer.node, offer.nic, In));
    }
    Check {
        traffic: if offer.masquerade {
            "pod → ClusterIP of a host"
        } else {
            "pod → ClusterIP of a host, not masqueraded"
        },
        from: title(from),
        to: format!("ClusterIP of {}/{}", offer.node, offer.nic),
        client: from.netns.clone(),
        source: None,
        server: both(|family| offer.cluster(family)),
        serving: vec![SERVICE_PORT, HOST_PORT],
        transports: Transport::WITH_PORTS,
        families: scenario.families,
        patience: PATIENCE,
        seen_as: if offer.masquerade && !same_node {
            SeenAs::Node(from.node.clone())
        } else {
            SeenAs::Itself
        },
        path: Path(path),
        back: None,
    }
}
