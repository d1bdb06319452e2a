//! A stand-in for kube-proxy: Services as data, and the rules that kube-proxy writes for them, for iptables or
//! nftables.

mod iptables;
mod nftables;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ipnet::IpNet;

use crate::{iptables::restore, netns::Netns, nft, plan::Family, traffic::Protocol};

/// A Service of one family and protocol.
#[derive(Clone, Debug)]
pub struct Service {
    /// A short, unique name, which becomes part of chain names.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// ClusterIP and port.
    pub cluster: SocketAddr,
    /// Port on the addresses of every node.
    pub node_port: Option<u16>,
    /// How NodePort traffic is spread.
    pub policy: ExternalTrafficPolicy,
    /// Whether traffic to the ClusterIP from outside of the cluster CIDR is masqueraded. kube-proxy has one setting for
    /// all Services; here both kinds can be compared.
    pub masquerade: bool,
    /// The endpoints.
    pub backends: Vec<Backend>,
}

/// `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalTrafficPolicy {
    /// To any endpoint, masqueraded.
    Cluster,
    /// To this node's endpoints only, the client's address kept.
    Local,
}

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The pod's address and port.
    pub address: SocketAddr,
    /// The node it runs on.
    pub node: String,
}

/// The configuration of kube-proxy.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `--proxy-mode`.
    pub mode: Mode,
    /// `--cluster-cidr`: traffic from outside of it to a ClusterIP is masqueraded. Pods with VPC addresses are outside.
    /// If it is empty, nothing is masqueraded.
    pub cluster_cidr: Vec<IpNet>,
    /// The API server's `--service-cluster-ip-range`. The nftables mode drops packets for addresses in it that belong
    /// to no Service.
    pub service_cidr: Vec<IpNet>,
    /// `--nodeport-addresses`.
    pub node_ports: NodePorts,
}

/// `--proxy-mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Rules of iptables.
    #[default]
    Iptables,
    /// Rules of nftables, as a release writes them.
    Nftables(Style),
}

/// The style of the rules of kube-proxy's nftables mode. Both do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As Kubernetes 1.31 writes them: a chain for each endpoint, and one that sets marks.
    Chains,
    /// As Kubernetes 1.36 writes them: a map of each Service's endpoints, and a set of hairpin connections.
    Maps,
}

impl Style {
    /// Both styles.
    pub const ALL: [Self; 2] = [Self::Chains, Self::Maps];
}

/// `--nodeport-addresses`: the addresses of the node at which node ports are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePorts {
    /// All of them, the default of the iptables mode.
    #[default]
    Everywhere,
    /// These alone. The default of the nftables mode, `primary`, is the address of each family that the Node object
    /// names first.
    At(Vec<IpAddr>),
}

impl NodePorts {
    /// Returns the addresses of this family at which node ports are served, or `None` for all.
    fn addresses(&self, family: Family) -> Option<Vec<IpAddr>> {
        let Self::At(addresses) = self else {
            return None;
        };
        let of = |address: &IpAddr| Family::of(*address) == family;
        Some(addresses.iter().copied().filter(of).collect())
    }
}

impl Settings {
    /// Returns the cluster CIDR of this family.
    fn cluster_cidr(&self, family: Family) -> Option<&IpNet> {
        of_family(&self.cluster_cidr, family)
    }

    /// Returns the Services' network of this family.
    fn service_cidr(&self, family: Family) -> Option<&IpNet> {
        of_family(&self.service_cidr, family)
    }
}

fn of_family(networks: &[IpNet], family: Family) -> Option<&IpNet> {
    let mut all = networks.iter();
    all.find(|network| Family::of(network.addr()) == family)
}

/// The treatment of a request from outside to a node port.
#[derive(Debug)]
enum Outside<'a> {
    /// Sent to any endpoint, masqueraded.
    Spread,
    /// Sent to one of these, with the client's address.
    Kept(Vec<Endpoint<'a>>),
    /// Dropped: all endpoints are on other nodes.
    Dropped,
    /// Refused: there is no endpoint.
    Refused,
}

/// A backend, and its position among the Service's.
type Endpoint<'a> = (usize, &'a Backend);

impl Service {
    fn family(&self) -> Family {
        Family::of(self.cluster.ip())
    }

    fn endpoints(&self) -> Vec<Endpoint<'_>> {
        self.backends.iter().enumerate().collect()
    }

    fn outside(&self, node: &str) -> Outside<'_> {
        if self.backends.is_empty() {
            return Outside::Refused;
        }
        if self.policy == ExternalTrafficPolicy::Cluster {
            return Outside::Spread;
        }
        let mut near = self.endpoints();
        near.retain(|(_, backend)| backend.node == node);
        match near.is_empty() {
            true => Outside::Dropped,
            false => Outside::Kept(near),
        }
    }
}

/// kube-proxy's mark for packets to masquerade.
const MASQUERADE_MARK: &str = "0x4000";

/// Installs the rules for these Services on a node, for both families. iptables rules can be installed once per node;
/// nftables rules replace the earlier ones.
///
/// # Errors
/// If iptables or nft fails; the error has its output.
pub fn install(netns: &Netns, node: &str, settings: &Settings, services: &[Service]) -> Result<()> {
    for family in Family::BOTH {
        let own = services.iter().filter(|service| service.family() == family);
        match settings.mode {
            Mode::Iptables => {
                let script = iptables::rules(family, node, settings, own);
                restore(netns, family, &script)?;
            }
            Mode::Nftables(style) => {
                let script = nftables::rules(family, node, settings, style, own);
                nft::restore(netns, &script)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a Service with an endpoint on each of two nodes.
    pub(super) fn service(policy: ExternalTrafficPolicy) -> Service {
        let backend = |address: &str, node: &str| Backend {
            address: address.parse().unwrap(),
            node: node.into(),
        };
        Service {
            name: "WEB".into(),
            protocol: Protocol::Tcp,
            cluster: "10.96.0.10:80".parse().unwrap(),
            node_port: Some(30080),
            policy,
            masquerade: true,
            backends: vec![
                backend("172.31.16.4:8080", "master"),
                backend("180.17.16.11:8080", "worker1"),
            ],
        }
    }

    pub(super) fn settings() -> Settings {
        Settings {
            cluster_cidr: vec!["10.244.0.0/16".parse().unwrap()],
            ..Settings::default()
        }
    }

    #[test]
    fn a_nodes_port_leads_where_its_policy_says() {
        use ExternalTrafficPolicy::{Cluster, Local};
        let near = |outside: Outside<'_>| match outside {
            Outside::Spread => "spread".to_owned(),
            Outside::Kept(near) => {
                format!("{:?}", near.iter().map(|one| one.0).collect::<Vec<_>>())
            }
            Outside::Dropped => "dropped".to_owned(),
            Outside::Refused => "refused".to_owned(),
        };
        for (policy, node, backends, expected) in [
            (Cluster, "master", 2, "spread"),
            (Cluster, "worker9", 2, "spread"),
            (Cluster, "master", 0, "refused"),
            (Local, "master", 2, "[0]"),
            (Local, "worker1", 2, "[1]"),
            (Local, "worker1", 1, "dropped"),
            (Local, "worker1", 0, "refused"),
        ] {
            let mut service = service(policy);
            service.backends.truncate(backends);
            let outside = near(service.outside(node));
            assert_eq!(outside, expected, "{policy:?} at {node}, {backends}");
        }
    }

    #[test]
    fn node_ports_have_the_addresses_of_their_family() {
        let at = |addresses: &[&str]| addresses.iter().map(|one| one.parse().unwrap()).collect();
        let some = NodePorts::At(at(&["172.31.16.10", "fd00:31::10", "180.17.16.10"]));
        assert_eq!(NodePorts::Everywhere.addresses(Family::V4), None);
        assert_eq!(
            some.addresses(Family::V4),
            Some(at(&["172.31.16.10", "180.17.16.10"]))
        );
        assert_eq!(some.addresses(Family::V6), Some(at(&["fd00:31::10"])));
    }
}
