//! What is asked by whom: a pure function of nodes and networks.
//!
//! The number of checks grows with the number of nodes, not with its square: each node's pods ask those of their own node
//! and of the next one, in the order of names.

use std::{fmt, net::IpAddr, net::SocketAddr};

use ebbtide_agent::probe::Protocol::{self, Connect, Icmp, Tcp, Udp};
use serde::Serialize;

use super::topology::{Network, Node, Topology};

/// What a check is about: a line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Group {
    PodsStart,
    NodeToItsPods,
    PodToItsNode,
    SameNode,
    OtherNode,
    ClusterIp,
    ClusterFromNodes,
    ClusterFromPods,
    LocalFromNodes,
    LocalFromPods,
    ApiServer,
    Outside,
    ReplyNic,
}

impl Group {
    /// All of them, in the order in which they are checked.
    pub(super) const ALL: [Self; 13] = [
        Self::PodsStart,
        Self::NodeToItsPods,
        Self::PodToItsNode,
        Self::SameNode,
        Self::OtherNode,
        Self::ClusterIp,
        Self::ClusterFromNodes,
        Self::ClusterFromPods,
        Self::LocalFromNodes,
        Self::LocalFromPods,
        Self::ApiServer,
        Self::Outside,
        Self::ReplyNic,
    ];

    /// Returns its name in the table.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::PodsStart => "pods start with addresses",
            Self::NodeToItsPods => "node → its pods",
            Self::PodToItsNode => "pod → its node, each NIC's address",
            Self::SameNode => "pod → pod, same node, other NIC",
            Self::OtherNode => "pod → pod, other node, each NIC",
            Self::ClusterIp => "pod → ClusterIP",
            Self::ClusterFromNodes => "NodePort, policy Cluster, from nodes",
            Self::ClusterFromPods => "NodePort, policy Cluster, from pods",
            Self::LocalFromNodes => "NodePort, policy Local, from nodes",
            Self::LocalFromPods => "NodePort, policy Local, from pods",
            Self::ApiServer => "pod → the API server's Service",
            Self::Outside => "pod → outside",
            Self::ReplyNic => "replies leave by the right NIC (trace)",
        }
    }

    /// Whether it needs the Service proxy.
    pub(super) const fn is_of_services(self) -> bool {
        matches!(
            self,
            Self::ClusterIp
                | Self::ClusterFromNodes
                | Self::ClusterFromPods
                | Self::LocalFromNodes
                | Self::LocalFromPods
        )
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(super) enum Family {
    IPv4,
    IPv6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::IPv4, Self::IPv6];

    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::IPv4,
            IpAddr::V6(_) => Self::IPv6,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
}

/// A pod of the test: there is one for each network on each node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(super) struct TestPod {
    pub(super) node: String,
    pub(super) network: String,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Asker {
    /// A node, by its agent's pod: it is on the node's network.
    Node(String),
    Pod(TestPod),
}

/// `externalTrafficPolicy` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(super) enum Policy {
    Cluster,
    Local,
}

/// Whom it asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Target {
    Pod(TestPod),
    /// A server on the node's own network.
    Node {
        node: String,
        nic: String,
        address: IpAddr,
    },
    ClusterIp {
        network: String,
    },
    NodePort {
        network: String,
        policy: Policy,
        node: String,
        nic: String,
        address: IpAddr,
    },
    ApiServer,
    Outside(SocketAddr),
}

/// One row: a question and who asks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) group: Group,
    pub(super) from: Asker,
    pub(super) to: Target,
    pub(super) family: Family,
    pub(super) protocol: Protocol,
}

/// A trace of a pod, while another node's pod asks it in every way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Traced {
    pub(super) pod: TestPod,
    pub(super) client: TestPod,
}

impl fmt::Display for TestPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod of {} on {}", self.network, self.node)
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Pod(pod) => pod.fmt(f),
        }
    }
}

impl Asker {
    pub(super) fn node(&self) -> &str {
        match self {
            Self::Node(node) => node,
            Self::Pod(pod) => &pod.node,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(pod) => pod.fmt(f),
            Self::Node { node, nic, address } => write!(f, "node {node} at {address} ({nic})"),
            Self::ClusterIp { network } => write!(f, "ClusterIP of {network}"),
            Self::NodePort {
                network,
                policy,
                node,
                nic,
                address,
            } => write!(
                f,
                "NodePort of {network} ({policy:?}) at {address} ({nic} of {node})"
            ),
            Self::ApiServer => f.write_str("the API server's Service"),
            Self::Outside(address) => write!(f, "{address}"),
        }
    }
}

/// Returns the test's pods: one for each network on each node that has its NIC.
pub(super) fn pods(topology: &Topology) -> Vec<TestPod> {
    let of = |node: &Node| -> Vec<TestPod> { on(node, &topology.networks) };
    topology.nodes.iter().flat_map(of).collect()
}

fn on(node: &Node, networks: &[Network]) -> Vec<TestPod> {
    let networks = networks.iter().filter(|network| node.has(network));
    networks
        .map(|network| TestPod {
            node: node.name.clone(),
            network: network.name.clone(),
        })
        .collect()
}

/// Returns the node after this one in the ring; `None` if there is only one.
fn next(nodes: &[Node], index: usize) -> Option<&Node> {
    nodes
        .get((index + 1) % nodes.len())
        .filter(|_| nodes.len() > 1)
}

/// Returns all checks. What a family lacks is left out later, when the addresses of pods and Services are known.
pub(super) fn plan(topology: &Topology, outside: Option<SocketAddr>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |group, from: &Asker, to: Target, families: &[Family], protocols: &[Protocol]| {
        for family in families {
            checks.extend(protocols.iter().map(|protocol| Check {
                group,
                from: from.clone(),
                to: to.clone(),
                family: *family,
                protocol: *protocol,
            }));
        }
    };
    let both = &Family::ALL;
    for (index, node) in topology.nodes.iter().enumerate() {
        let own = on(node, &topology.networks);
        let next = next(&topology.nodes, index);
        let host = Asker::Node(node.name.clone());
        for pod in &own {
            let to = Target::Pod(pod.clone());
            add(Group::NodeToItsPods, &host, to, both, &[Tcp, Udp, Icmp]);
        }
        for pod in &own {
            let asker = Asker::Pod(pod.clone());
            for (nic, address) in node.addresses() {
                let to = Target::Node {
                    node: node.name.clone(),
                    nic: nic.to_owned(),
                    address,
                };
                let family = [Family::of(address)];
                add(Group::PodToItsNode, &asker, to, &family, &[Tcp, Udp, Icmp]);
            }
            for other in own.iter().filter(|other| *other != pod) {
                let to = Target::Pod(other.clone());
                add(Group::SameNode, &asker, to, both, &[Tcp, Udp, Icmp]);
            }
            let others = next.map(|next| on(next, &topology.networks));
            for other in others.iter().flatten() {
                let to = Target::Pod(other.clone());
                add(Group::OtherNode, &asker, to, both, &[Tcp, Udp, Icmp]);
            }
            for network in &topology.networks {
                let to = Target::ClusterIp {
                    network: network.name.clone(),
                };
                add(Group::ClusterIp, &asker, to, both, &[Tcp, Udp]);
            }
            add(
                Group::ApiServer,
                &asker,
                Target::ApiServer,
                both,
                &[Connect],
            );
            if let Some(outside) = outside {
                let (to, family) = (Target::Outside(outside), [Family::of(outside.ip())]);
                add(Group::Outside, &asker, to, &family, &[Connect]);
            }
        }
        let askers = own.iter().map(|pod| Asker::Pod(pod.clone()));
        let askers: Vec<Asker> = std::iter::once(host).chain(askers).collect();
        for asker in &askers {
            for server in [Some(node), next].into_iter().flatten() {
                for to in node_ports(server, &topology.networks) {
                    let Target::NodePort {
                        policy, address, ..
                    } = &to
                    else {
                        continue;
                    };
                    let group = match (policy, asker) {
                        (Policy::Cluster, Asker::Node(_)) => Group::ClusterFromNodes,
                        (Policy::Cluster, Asker::Pod(_)) => Group::ClusterFromPods,
                        (Policy::Local, Asker::Node(_)) => Group::LocalFromNodes,
                        (Policy::Local, Asker::Pod(_)) => Group::LocalFromPods,
                    };
                    let family = [Family::of(*address)];
                    add(group, asker, to, &family, &[Tcp, Udp]);
                }
            }
        }
    }
    checks.sort_by_key(|check| check.group);
    checks
}

/// Returns the NodePorts at each address of a node; with policy Local those of networks that are on the node.
pub(super) fn node_ports(node: &Node, networks: &[Network]) -> Vec<Target> {
    let mut targets = Vec::new();
    for network in networks {
        for policy in [Policy::Cluster, Policy::Local] {
            if policy == Policy::Local && !node.has(network) {
                continue;
            }
            targets.extend(node.addresses().map(|(nic, address)| Target::NodePort {
                network: network.name.clone(),
                policy,
                node: node.name.clone(),
                nic: nic.to_owned(),
                address,
            }));
        }
    }
    targets
}

/// Returns the traces: of each pod, with a client on the next node. Nobody asks by a NIC where there is one node alone.
pub(super) fn traces(topology: &Topology) -> Vec<Traced> {
    let mut traces = Vec::new();
    for (index, node) in topology.nodes.iter().enumerate() {
        let client = next(&topology.nodes, index);
        let client = client.and_then(|node| on(node, &topology.networks).into_iter().next());
        let Some(client) = client else {
            continue;
        };
        traces.extend(on(node, &topology.networks).into_iter().map(|pod| Traced {
            pod,
            client: client.clone(),
        }));
    }
    traces
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::topology::Nic, *};

    /// Nodes with two NICs and a network on each, as in the guides.
    pub(in super::super) fn topology(nodes: u8) -> Topology {
        let nic = |node: u8, number: u8| Nic {
            name: format!("ens{number}"),
            addresses: vec![
                IpAddr::from([10, number, 0, node]),
                format!("fd00:{number}::{node}").parse().unwrap(),
            ],
        };
        let network = |number: u8| Network {
            name: format!("default/ipvlan-ens{number}"),
            masters: vec![format!("ens{number}")],
        };
        Topology {
            nodes: (1..=nodes)
                .map(|number| Node {
                    name: format!("n{number}"),
                    agent: format!("ebbtide-{number}"),
                    nics: vec![nic(number, 5), nic(number, 6)],
                    ..Node::default()
                })
                .collect(),
            networks: vec![network(5), network(6)],
        }
    }

    fn count(checks: &[Check], group: Group) -> usize {
        let of = |check: &&Check| check.group == group && check.family == Family::IPv4;
        checks.iter().filter(of).count()
    }

    #[test]
    fn two_nodes_with_two_nics_are_asked_in_every_way() {
        let outside = "198.51.100.1:80".parse().unwrap();
        let checks = plan(&topology(2), Some(outside));
        for (group, expected) in [
            (Group::NodeToItsPods, 2 * 2 * 3),
            (Group::PodToItsNode, 4 * 2 * 3),
            (Group::SameNode, 4 * 3),
            (Group::OtherNode, 4 * 2 * 3),
            (Group::ClusterIp, 4 * 2 * 2),
            // Two networks at two NICs of two nodes, by TCP and UDP.
            (Group::ClusterFromNodes, 2 * 8 * 2),
            (Group::ClusterFromPods, 4 * 8 * 2),
            (Group::LocalFromNodes, 2 * 8 * 2),
            (Group::LocalFromPods, 4 * 8 * 2),
            (Group::ApiServer, 4),
            (Group::Outside, 4),
        ] {
            assert_eq!(count(&checks, group), expected, "{group:?}");
        }
        assert_eq!(traces(&topology(2)).len(), 4);
    }

    #[test]
    fn the_number_of_checks_grows_with_the_nodes_and_not_with_their_square() {
        let count = |nodes| plan(&topology(nodes), None).len();
        assert_eq!(count(20), 2 * count(10));
    }

    #[test]
    fn one_node_asks_itself_and_no_reply_leaves_it() {
        let checks = plan(&topology(1), None);
        assert_eq!(count(&checks, Group::OtherNode), 0);
        assert_eq!(count(&checks, Group::LocalFromPods), 2 * 4 * 2);
        assert!(traces(&topology(1)).is_empty());
    }

    #[test]
    fn a_network_is_only_where_its_nic_is_and_policy_local_too() {
        let mut topology = topology(2);
        topology.nodes[1].nics.pop();
        let pods = pods(&topology);
        assert_eq!(pods.len(), 3);
        let targets = node_ports(&topology.nodes[1], &topology.networks);
        let local = targets.iter().filter(|target| {
            matches!(target, Target::NodePort { policy: Policy::Local, network, .. } if network.ends_with('6'))
        });
        assert_eq!(local.count(), 0);
    }

    #[test]
    fn groups_are_in_the_order_of_the_checks() {
        assert!(Group::ALL.is_sorted());
        let checks = plan(&topology(3), None);
        assert!(checks.is_sorted_by_key(|check| check.group));
    }
}
