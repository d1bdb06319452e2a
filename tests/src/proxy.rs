//! The Service proxy stand-in: the rules of kube-proxy's iptables mode, chain by chain.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use ipnet::IpNet;

use crate::{iptables, netns::Netns, plan::Family, traffic::Protocol};

/// A Service of one family and protocol.
#[derive(Clone, Debug)]
pub struct Service {
    /// Short and unique: it becomes part of chain names.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// ClusterIP and port.
    pub cluster: SocketAddr,
    /// Port on every address of every node.
    pub node_port: Option<u16>,
    /// How NodePort traffic is spread.
    pub policy: ExternalTrafficPolicy,
    /// Whether what comes from outside of the cluster CIDR to the ClusterIP is masqueraded.
    /// kube-proxy has one setting for all; here both kinds are to be seen side by side.
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

/// How kube-proxy is configured.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `--cluster-cidr`: what comes from outside of it to a ClusterIP is masqueraded. Pods with
    /// VPC addresses are outside. `None`: nothing is.
    pub cluster_cidr: Vec<IpNet>,
}

/// Installs the rules for these Services on a node, for both families. Call it once per node.
///
/// # Errors
/// What iptables said.
pub fn install(netns: &Netns, node: &str, settings: &Settings, services: &[Service]) -> Result<()> {
    for family in Family::BOTH {
        let script = rules(family, node, settings, services);
        iptables::restore(netns, family, &script)?;
    }
    Ok(())
}

/// kube-proxy's mark for "masquerade this".
const MASQUERADE_MARK: &str = "0x4000";

/// The rules as an `iptables-restore` script.
#[must_use]
pub fn rules(family: Family, node: &str, settings: &Settings, services: &[Service]) -> String {
    let mut script = Script::new(family);
    for service in services {
        if Family::of(service.cluster.ip()) == family {
            script.service(service, node, settings);
        }
    }
    script.finish()
}

struct Script {
    chains: String,
    services: String,
    chained: String,
    node_ports: String,
    filter: String,
    prefix: u8,
}

impl Script {
    fn new(family: Family) -> Self {
        Self {
            chains: String::new(),
            services: String::new(),
            chained: String::new(),
            node_ports: String::new(),
            filter: String::new(),
            prefix: family.host_prefix(),
        }
    }

    fn chain(&mut self, name: &str) {
        let _ = writeln!(self.chains, ":{name} - [0:0]");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        let _ = writeln!(self.chained, "-A {chain} {rule}");
    }

    fn host(&self, address: IpAddr) -> String {
        format!("{address}/{}", self.prefix)
    }

    fn service(&mut self, service: &Service, node: &str, settings: &Settings) {
        let Service {
            name,
            protocol,
            cluster,
            ..
        } = service;
        let family = Family::of(cluster.ip());
        let all = format!("KUBE-SVC-{name}");
        self.chain(&all);
        let to_cluster = format!(
            "-d {} -p {protocol} -m {protocol} --dport {}",
            self.host(cluster.ip()),
            cluster.port()
        );
        let _ = writeln!(self.services, "-A KUBE-SERVICES {to_cluster} -j {all}");
        let cidr = settings
            .cluster_cidr
            .iter()
            .find(|cidr| Family::of(cidr.addr()) == family);
        if let Some(cidr) = cidr.filter(|_| service.masquerade) {
            self.rule(&all, &format!("! -s {cidr} {to_cluster} -j KUBE-MARK-MASQ"));
        }
        self.endpoints(service, &all, |_| true);

        let Some(port) = service.node_port else {
            return;
        };
        let external = format!("KUBE-EXT-{name}");
        self.chain(&external);
        let _ = writeln!(
            self.node_ports,
            "-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {port} -j {external}"
        );
        match service.policy {
            ExternalTrafficPolicy::Cluster => {
                self.rule(&external, "-j KUBE-MARK-MASQ");
                self.rule(&external, &format!("-j {all}"));
            }
            ExternalTrafficPolicy::Local => {
                // Pods and the node itself reach every endpoint; only real outside traffic is
                // bound to this node's.
                if let Some(cidr) = cidr {
                    self.rule(&external, &format!("-s {cidr} -j {all}"));
                }
                let from_node = "-m addrtype --src-type LOCAL";
                self.rule(&external, &format!("{from_node} -j KUBE-MARK-MASQ"));
                self.rule(&external, &format!("{from_node} -j {all}"));
                let local = format!("KUBE-SVL-{name}");
                if service.backends.iter().any(|backend| backend.node == node) {
                    self.chain(&local);
                    self.rule(&external, &format!("-j {local}"));
                    self.endpoints(service, &local, |backend| backend.node == node);
                } else {
                    let _ = writeln!(
                        self.filter,
                        "-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL -p {protocol} -m \
                         {protocol} --dport {port} -j DROP"
                    );
                }
            }
        }
    }

    /// Spreads a chain's traffic evenly over the endpoints that are wanted.
    fn endpoints(&mut self, service: &Service, chain: &str, wanted: impl Fn(&Backend) -> bool) {
        let wanted: Vec<_> = (0..)
            .zip(&service.backends)
            .filter(|(_, backend)| wanted(backend))
            .collect();
        for (position, (number, backend)) in wanted.iter().enumerate() {
            let endpoint = format!("KUBE-SEP-{}-{number}", service.name);
            let left = wanted.len() - position;
            let share = if left > 1 {
                let probability = 1.0 / left as f64;
                format!("-m statistic --mode random --probability {probability:.10} ")
            } else {
                String::new()
            };
            self.rule(chain, &format!("{share}-j {endpoint}"));
            if !self.chains.contains(&format!(":{endpoint} ")) {
                self.chain(&endpoint);
                let address = backend.address;
                // A pod that reaches itself by its Service must not see its own address.
                let itself = self.host(address.ip());
                self.rule(&endpoint, &format!("-s {itself} -j KUBE-MARK-MASQ"));
                let protocol = service.protocol;
                self.rule(
                    &endpoint,
                    &format!("-p {protocol} -m {protocol} -j DNAT --to-destination {address}"),
                );
            }
        }
    }

    fn finish(self) -> String {
        let Self {
            chains,
            services,
            chained,
            node_ports,
            filter,
            ..
        } = self;
        format!(
            "\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}\
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK}
-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK}
-A KUBE-POSTROUTING -j MASQUERADE
{services}\
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
{node_ports}\
{chained}\
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{filter}\
COMMIT
"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(policy: ExternalTrafficPolicy) -> Service {
        Service {
            name: "WEB".into(),
            protocol: Protocol::Tcp,
            cluster: "10.96.0.10:80".parse().unwrap(),
            node_port: Some(30080),
            policy,
            masquerade: true,
            backends: vec![
                Backend {
                    address: "172.31.16.4:8080".parse().unwrap(),
                    node: "master".into(),
                },
                Backend {
                    address: "180.17.16.11:8080".parse().unwrap(),
                    node: "worker1".into(),
                },
            ],
        }
    }

    fn settings() -> Settings {
        Settings {
            cluster_cidr: vec!["10.244.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn policy_local_keeps_to_its_node_and_does_not_masquerade() {
        let script = rules(
            Family::V4,
            "worker1",
            &settings(),
            &[service(ExternalTrafficPolicy::Local)],
        );
        let local: Vec<&str> = script
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SVL-WEB"))
            .collect();
        assert_eq!(local, ["-A KUBE-SVL-WEB -j KUBE-SEP-WEB-1"]);
        assert!(!script.contains("-A KUBE-EXT-WEB -j KUBE-MARK-MASQ"));
    }

    #[test]
    fn policy_local_drops_where_there_is_no_endpoint() {
        let mut service = service(ExternalTrafficPolicy::Local);
        service.backends.truncate(1);
        let script = rules(Family::V4, "worker1", &settings(), &[service]);
        assert!(script.contains("--dport 30080 -j DROP"));
    }

    #[test]
    fn policy_cluster_masquerades() {
        let script = rules(
            Family::V4,
            "master",
            &settings(),
            &[service(ExternalTrafficPolicy::Cluster)],
        );
        assert!(script.contains("-A KUBE-EXT-WEB -j KUBE-MARK-MASQ"));
        assert!(script.contains("--probability 0.5000000000 -j KUBE-SEP-WEB-0"));
    }

    #[test]
    fn a_service_of_the_other_family_is_left_out() {
        let script = rules(
            Family::V6,
            "master",
            &settings(),
            &[service(ExternalTrafficPolicy::Local)],
        );
        assert!(!script.contains("WEB"));
    }
}
