//! The rules of kube-proxy's iptables mode, chain by chain.

use std::{fmt::Write as _, net::IpAddr};

use super::{Endpoint, MASQUERADE_MARK, Outside, Service, Settings};
use crate::plan::Family;

/// Returns the rules for the Services of this family as an `iptables-restore` script.
pub(super) fn rules<'a>(
    family: Family,
    node: &str,
    settings: &Settings,
    services: impl Iterator<Item = &'a Service>,
) -> String {
    let mut script = Script::new(family);
    for service in services {
        script.service(service, node, settings);
    }
    script.serve_node_ports(settings.node_ports.addresses(family));
    script.finish()
}

struct Script {
    chains: String,
    services: String,
    chained: String,
    node_ports: String,
    filter: String,
    family: Family,
}

impl Script {
    fn new(family: Family) -> Self {
        Self {
            chains: String::new(),
            services: String::new(),
            chained: String::new(),
            node_ports: String::new(),
            filter: String::new(),
            family,
        }
    }

    fn chain(&mut self, name: &str) {
        let _ = writeln!(self.chains, ":{name} - [0:0]");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        let _ = writeln!(self.chained, "-A {chain} {rule}");
    }

    fn host(&self, address: IpAddr) -> String {
        format!("{address}/{}", self.family.host_prefix())
    }

    fn service(&mut self, service: &Service, node: &str, settings: &Settings) {
        let Service {
            name,
            protocol,
            cluster,
            ..
        } = service;
        let all = format!("KUBE-SVC-{name}");
        self.chain(&all);
        let to_cluster = format!(
            "-d {} -p {protocol} -m {protocol} --dport {}",
            self.host(cluster.ip()),
            cluster.port()
        );
        let _ = writeln!(self.services, "-A KUBE-SERVICES {to_cluster} -j {all}");
        let cidr = settings.cluster_cidr(self.family);
        if let Some(cidr) = cidr.filter(|_| service.masquerade) {
            self.rule(&all, &format!("! -s {cidr} {to_cluster} -j KUBE-MARK-MASQ"));
        }
        self.endpoints(service, &all, &service.endpoints());

        let Some(port) = service.node_port else {
            return;
        };
        let external = format!("KUBE-EXT-{name}");
        self.chain(&external);
        let _ = writeln!(
            self.node_ports,
            "-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {port} -j {external}"
        );
        let outside = service.outside(node);
        if let Outside::Spread = outside {
            self.rule(&external, "-j KUBE-MARK-MASQ");
            self.rule(&external, &format!("-j {all}"));
            return;
        }
        // Pods and the node itself reach every endpoint; only traffic from outside is restricted to this node's.
        if let Some(cidr) = cidr {
            self.rule(&external, &format!("-s {cidr} -j {all}"));
        }
        let from_node = "-m addrtype --src-type LOCAL";
        self.rule(&external, &format!("{from_node} -j KUBE-MARK-MASQ"));
        self.rule(&external, &format!("{from_node} -j {all}"));
        let verdict = match outside {
            Outside::Kept(near) => {
                let local = format!("KUBE-SVL-{name}");
                self.chain(&local);
                self.rule(&external, &format!("-j {local}"));
                self.endpoints(service, &local, &near);
                return;
            }
            Outside::Refused => "REJECT",
            Outside::Dropped | Outside::Spread => "DROP",
        };
        let _ = writeln!(
            self.filter,
            "-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL -p {protocol} -m {protocol} \
             --dport {port} -j {verdict}"
        );
    }

    /// Sends packets for the node itself, at these addresses or at any, through the rules of node ports.
    fn serve_node_ports(&mut self, addresses: Option<Vec<IpAddr>>) {
        let at = match addresses {
            None => vec!["-m addrtype --dst-type LOCAL".to_owned()],
            Some(some) => some
                .into_iter()
                .map(|address| format!("-d {}", self.host(address)))
                .collect(),
        };
        for at in at {
            let _ = writeln!(self.services, "-A KUBE-SERVICES {at} -j KUBE-NODEPORTS");
        }
    }

    /// Spreads a chain's traffic evenly over these endpoints.
    fn endpoints(&mut self, service: &Service, chain: &str, wanted: &[Endpoint<'_>]) {
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
                // A pod that reaches itself through its Service must not see its own address as the source.
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
    use super::{
        super::{
            ExternalTrafficPolicy::{Cluster, Local},
            NodePorts,
            tests::{service, settings},
        },
        *,
    };

    fn script(node: &str, settings: &Settings, service: &Service) -> String {
        rules(Family::V4, node, settings, [service].into_iter())
    }

    #[test]
    fn policy_local_keeps_to_its_node_and_does_not_masquerade() {
        let script = script("worker1", &settings(), &service(Local));
        let local: Vec<&str> = script
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SVL-WEB"))
            .collect();
        assert_eq!(local, ["-A KUBE-SVL-WEB -j KUBE-SEP-WEB-1"]);
        assert!(!script.contains("-A KUBE-EXT-WEB -j KUBE-MARK-MASQ"));
    }

    #[test]
    fn policy_local_drops_where_there_is_no_endpoint() {
        let mut service = service(Local);
        service.backends.truncate(1);
        let script = script("worker1", &settings(), &service);
        assert!(script.contains("--dport 30080 -j DROP"));
    }

    #[test]
    fn policy_cluster_masquerades() {
        let script = script("master", &settings(), &service(Cluster));
        assert!(script.contains("-A KUBE-EXT-WEB -j KUBE-MARK-MASQ"));
        assert!(script.contains("--probability 0.5000000000 -j KUBE-SEP-WEB-0"));
    }

    #[test]
    fn node_ports_are_served_at_the_addresses_that_are_set() {
        let at = |node_ports| {
            let settings = Settings {
                node_ports,
                ..settings()
            };
            let script = script("master", &settings, &service(Cluster));
            let lines = script.lines();
            let found = lines.filter_map(|line| line.strip_suffix(" -j KUBE-NODEPORTS"));
            found.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            at(NodePorts::Everywhere),
            ["-A KUBE-SERVICES -m addrtype --dst-type LOCAL"]
        );
        let both = ["172.31.16.10", "fd00:31::10"].map(|one| one.parse().unwrap());
        assert_eq!(
            at(NodePorts::At(both.to_vec())),
            ["-A KUBE-SERVICES -d 172.31.16.10/32"]
        );
    }
}
