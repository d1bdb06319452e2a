//! What the API server tells of the test's objects, and the addresses that askers use because of it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use ebbtide_agent::probe::Protocol;
use serde::Serialize;
use serde_json::Value;

use super::{
    objects::{PORT, service_name},
    plan::{Asker, Family, Policy, Target, TestPod},
};

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Started {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) pod: TestPod,
    pub(super) addresses: Vec<IpAddr>,
    /// Why it does not run; empty if it does.
    pub(super) trouble: String,
}

/// The addresses and ports of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Served {
    addresses: Vec<IpAddr>,
    tcp: u16,
    udp: u16,
}

/// What is known once everything runs.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) pods: Vec<Started>,
    /// By the network's number and the policy.
    services: HashMap<(String, Policy), Served>,
    api_server: Vec<SocketAddr>,
    /// The ports of the servers on the nodes' own network.
    pub(super) node_servers: HashMap<String, u16>,
}

impl Live {
    /// Reads the state of the pods.
    pub(super) fn read_pods(&mut self, wanted: &[(String, TestPod)], list: &Value) {
        let items = list.get("items").and_then(Value::as_array);
        let items: Vec<&Value> = items.into_iter().flatten().collect();
        let named = |name: &str| {
            let mut items = items.iter();
            items.find(|item| item.pointer("/metadata/name").and_then(Value::as_str) == Some(name))
        };
        self.pods = wanted
            .iter()
            .map(|(name, pod)| match named(name) {
                Some(object) => started(name, pod, object),
                None => Started {
                    name: name.clone(),
                    pod: pod.clone(),
                    addresses: Vec::new(),
                    trouble: "it was not made".to_owned(),
                },
            })
            .collect();
    }

    /// Reads the Services of the networks, in their order.
    pub(super) fn read_services(&mut self, networks: &[String], list: &Value) {
        let items = list.get("items").and_then(Value::as_array);
        let items: Vec<&Value> = items.into_iter().flatten().collect();
        for (number, network) in networks.iter().enumerate() {
            for policy in [Policy::Cluster, Policy::Local] {
                let name = service_name(number, policy);
                let mut items = items.iter();
                let found = items.find(|item| {
                    item.pointer("/metadata/name").and_then(Value::as_str) == Some(&name)
                });
                if let Some(object) = found {
                    self.services
                        .insert((network.clone(), policy), served(object));
                }
            }
        }
    }

    /// Reads the API server's own Service.
    pub(super) fn read_api_server(&mut self, service: &Value) {
        let addresses = cluster_ips(service).into_iter();
        let port = service.pointer("/spec/ports/0/port").and_then(port_number);
        let port = port.unwrap_or(443);
        self.api_server = addresses
            .map(|address| SocketAddr::new(address, port))
            .collect();
    }

    /// Returns the pod that runs on a network of a node.
    pub(super) fn pod(&self, pod: &TestPod) -> Option<&Started> {
        self.pods.iter().find(|started| started.pod == *pod)
    }

    /// Whether an asker has an address of a family; nodes are asked to find out.
    pub(super) fn speaks(&self, asker: &Asker, family: Family) -> bool {
        match asker {
            Asker::Node(_) => true,
            Asker::Pod(pod) => self.pod(pod).is_some_and(|pod| {
                pod.addresses
                    .iter()
                    .any(|address| Family::of(*address) == family)
            }),
        }
    }

    /// Returns a target's address and port; `None` if it has none of this family.
    pub(super) fn resolve(
        &self,
        target: &Target,
        family: Family,
        protocol: Protocol,
    ) -> Option<SocketAddr> {
        let is_of = |address: &&IpAddr| Family::of(**address) == family;
        let port = |port: u16| if protocol == Protocol::Icmp { 0 } else { port };
        let of = |served: &Served| match protocol {
            Protocol::Udp => served.udp,
            _ => served.tcp,
        };
        match target {
            Target::Pod(pod) => {
                let address = self.pod(pod)?.addresses.iter().find(is_of)?;
                Some(SocketAddr::new(*address, port(PORT)))
            }
            Target::Node { node, address, .. } => {
                let served = self.node_servers.get(node).copied().unwrap_or_default();
                Some(SocketAddr::new(*address, port(served)))
            }
            Target::ClusterIp { network } => {
                let served = self.services.get(&(network.clone(), Policy::Cluster))?;
                let address = served.addresses.iter().find(is_of)?;
                Some(SocketAddr::new(*address, PORT))
            }
            Target::NodePort {
                network,
                policy,
                address,
                ..
            } => {
                let served = self.services.get(&(network.clone(), *policy))?;
                served.addresses.iter().find(is_of)?;
                Some(SocketAddr::new(*address, of(served)))
            }
            Target::ApiServer => {
                let mut servers = self.api_server.iter();
                servers.find(|server| is_of(&&server.ip())).copied()
            }
            Target::Outside(server) => Some(*server),
        }
    }
}

fn started(name: &str, pod: &TestPod, object: &Value) -> Started {
    let text = |at: &str| object.pointer(at).and_then(Value::as_str);
    let list = object.pointer("/status/podIPs").and_then(Value::as_array);
    let list = list.into_iter().flatten();
    let mut addresses: Vec<IpAddr> = list
        .filter_map(|each| each.get("ip")?.as_str()?.parse().ok())
        .collect();
    if addresses.is_empty() {
        addresses.extend(text("/status/podIP").and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    let is_ready = object.pointer("/status/containerStatuses/0/ready") == Some(&Value::Bool(true));
    let waits = "/status/containerStatuses/0/state/waiting";
    let trouble = match (is_ready, addresses.is_empty()) {
        (true, false) => String::new(),
        (true, true) => "it has no address".to_owned(),
        (false, _) => {
            let why = text(&format!("{waits}/message"))
                .or_else(|| text(&format!("{waits}/reason")))
                .or_else(|| text("/status/message"))
                .or_else(|| text("/status/conditions/0/message"))
                .unwrap_or("no reason is told");
            format!("{}: {why}", text("/status/phase").unwrap_or("unknown"))
        }
    };
    Started {
        name: name.to_owned(),
        pod: pod.clone(),
        addresses,
        trouble,
    }
}

fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok())
}

fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    let all = service
        .pointer("/spec/clusterIPs")
        .and_then(Value::as_array);
    let parse = |value: &Value| value.as_str()?.parse().ok();
    let all: Vec<IpAddr> = all.into_iter().flatten().filter_map(parse).collect();
    match all.is_empty() {
        // Before Kubernetes 1.20.
        true => service
            .pointer("/spec/clusterIP")
            .and_then(parse)
            .into_iter()
            .collect(),
        false => all,
    }
}

fn served(service: &Value) -> Served {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let port = |name: &str| {
        let mut ports = ports.into_iter().flatten();
        let port = ports.find(|port| port.get("name").and_then(Value::as_str) == Some(name));
        port.and_then(|port| port_number(port.get("nodePort")?))
    };
    Served {
        addresses: cluster_ips(service),
        tcp: port("tcp").unwrap_or_default(),
        udp: port("udp").unwrap_or_default(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::{
        super::{
            objects::pod_names,
            plan::{self, tests::topology},
        },
        *,
    };

    /// What the API server tells of the pods and Services of two nodes, without IPv6.
    pub(in super::super) fn live() -> Live {
        let topology = topology(2);
        let names = pod_names(&plan::pods(&topology));
        let networks: Vec<String> = topology
            .networks
            .iter()
            .map(|each| each.name.clone())
            .collect();
        let pods: Vec<Value> = (1..)
            .zip(&names)
            .map(|(number, (name, _)): (u8, _)| {
                json!({"metadata": {"name": name}, "status": {
                    "podIPs": [{"ip": format!("10.9.0.{number}")}],
                    "containerStatuses": [{"ready": true}],
                }})
            })
            .collect();
        let service = |number: usize, policy: Policy, port: u16| {
            json!({"metadata": {"name": service_name(number, policy)}, "spec": {
                "clusterIPs": [format!("10.96.0.{number}")],
                "ports": [{"name": "tcp", "nodePort": port}, {"name": "udp", "nodePort": port + 1}],
            }})
        };
        let mut live = Live::default();
        live.read_pods(&names, &json!({"items": pods}));
        live.read_services(
            &networks,
            &json!({"items": [
                service(0, Policy::Cluster, 30000), service(0, Policy::Local, 30010),
                service(1, Policy::Cluster, 30020), service(1, Policy::Local, 30030),
            ]}),
        );
        live.read_api_server(
            &json!({"spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 6443}]}}),
        );
        live.node_servers.insert("n1".into(), 4000);
        live
    }

    #[test]
    fn targets_get_the_addresses_and_ports_that_the_api_server_tells() {
        let live = live();
        let network = "default/ipvlan-ens6".to_owned();
        let pod = |node: &str| TestPod {
            node: node.into(),
            network: network.clone(),
        };
        let node_port = |policy| Target::NodePort {
            network: network.clone(),
            policy,
            node: "n1".into(),
            nic: "ens5".into(),
            address: [10, 5, 0, 1].into(),
        };
        let node = Target::Node {
            node: "n1".into(),
            nic: "ens5".into(),
            address: [10, 5, 0, 1].into(),
        };
        let cluster_ip = Target::ClusterIp {
            network: network.clone(),
        };
        for (target, protocol, expected) in [
            (Target::Pod(pod("n2")), Protocol::Tcp, "10.9.0.4:8080"),
            (Target::Pod(pod("n2")), Protocol::Icmp, "10.9.0.4:0"),
            (node, Protocol::Udp, "10.5.0.1:4000"),
            (cluster_ip, Protocol::Tcp, "10.96.0.1:8080"),
            (node_port(Policy::Cluster), Protocol::Tcp, "10.5.0.1:30020"),
            (node_port(Policy::Local), Protocol::Udp, "10.5.0.1:30031"),
            (Target::ApiServer, Protocol::Connect, "10.96.0.9:6443"),
        ] {
            let address = live.resolve(&target, Family::IPv4, protocol);
            assert_eq!(address, Some(expected.parse().unwrap()), "{target}");
        }
        // Neither pods nor Services have IPv6.
        assert_eq!(
            live.resolve(&Target::Pod(pod("n2")), Family::IPv6, Protocol::Tcp),
            None
        );
        assert!(!live.speaks(&Asker::Pod(pod("n1")), Family::IPv6));
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let pod = TestPod {
            node: "n".into(),
            network: "a/b".into(),
        };
        let waiting = json!({"status": {"phase": "Pending", "containerStatuses": [
            {"ready": false, "state": {"waiting": {"reason": "ErrImagePull"}}},
        ]}});
        assert_eq!(
            started("p", &pod, &waiting).trouble,
            "Pending: ErrImagePull"
        );
        let unscheduled =
            json!({"status": {"phase": "Pending", "conditions": [{"message": "0/2 nodes"}]}});
        assert_eq!(
            started("p", &pod, &unscheduled).trouble,
            "Pending: 0/2 nodes"
        );
    }
}
