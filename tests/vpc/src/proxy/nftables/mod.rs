//! The rules of kube-proxy's nftables mode: one table for each family, whose maps lead to the Services' chains.

mod table;

use std::{collections::BTreeSet, net::IpAddr};

use self::table::{Set, Table};
use super::{Endpoint, MASQUERADE_MARK, Outside, Service, Settings, Style};
use crate::plan::Family;

/// The name of the chain that sets the mark, in [`Style::Chains`].
const MARKS: &str = "mark-for-masquerade";
/// The verdict on packets for Services without endpoints.
const REFUSE: &str = "goto reject-chain";
/// The key of maps by port.
const PORT: &str = "meta l4proto . th dport";

/// Returns the rules for the Services of this family as an nft script, which replaces an older one's table.
pub(super) fn rules<'a>(
    family: Family,
    node: &str,
    settings: &Settings,
    style: Style,
    services: impl Iterator<Item = &'a Service>,
) -> String {
    let mut writer = Writer {
        family,
        style,
        node,
        settings,
        table: Table::new(family, style),
        masqueraded: BTreeSet::new(),
    };
    for service in services {
        writer.service(service);
    }
    writer.checks();
    writer.dispatch();
    writer.masquerade();
    writer.table.to_string()
}

struct Writer<'a> {
    family: Family,
    style: Style,
    node: &'a str,
    settings: &'a Settings,
    table: Table,
    /// The ClusterIPs at which clients outside of the cluster CIDR are masqueraded.
    masqueraded: BTreeSet<IpAddr>,
}

impl Writer<'_> {
    fn service(&mut self, service: &Service) {
        let Service { protocol, .. } = service;
        let address = service.cluster.ip();
        let to_cluster = format!("{address} . {protocol} . {}", service.cluster.port());
        let to_port = service.node_port.map(|port| format!("{protocol} . {port}"));
        let outside = service.outside(self.node);
        self.table.element(Set::ClusterIps, address);
        if let Outside::Refused = outside {
            let refused = [
                (Set::NoEndpointServices, Some(to_cluster)),
                (Set::NoEndpointNodePorts, to_port),
            ];
            for (map, key) in refused {
                let entry = key.map(|key| format!("{key} : {REFUSE}"));
                self.table.elements(map, entry);
            }
            return;
        }
        let all = format!("service-{}", service.name);
        let mut rules = self.masquerade_strangers(service);
        rules.push(self.spread(service, &service.endpoints()));
        self.table.chain(&all, rules);
        let entry = format!("{to_cluster} : goto {all}");
        self.table.element(Set::ServiceIps, entry);

        let Some(to_port) = to_port else {
            return;
        };
        if let Outside::Dropped = outside {
            let entry = format!("{to_port} : drop");
            self.table.element(Set::NoEndpointNodePorts, entry);
        }
        let external = format!("external-{}", service.name);
        let rules = self.external(service, &all, outside);
        self.table.chain(&external, rules);
        let entry = format!("{to_port} : goto {external}");
        self.table.element(Set::ServiceNodePorts, entry);
    }

    /// Makes clients outside of the cluster CIDR masqueraded at a ClusterIP. Returns the rules for that, if each
    /// Service has its own.
    fn masquerade_strangers(&mut self, service: &Service) -> Vec<String> {
        let cidr = self.settings.cluster_cidr(self.family);
        let Some(cidr) = cidr.filter(|_| service.masquerade) else {
            return Vec::new();
        };
        let (ip, address) = (self.table.ip(), service.cluster.ip());
        self.masqueraded.insert(address);
        match self.style {
            Style::Chains => vec![format!(
                "{ip} daddr {address} {} dport {} {ip} saddr != {cidr} {}",
                service.protocol,
                service.cluster.port(),
                self.mark()
            )],
            Style::Maps => Vec::new(),
        }
    }

    /// Returns the target of a node port; `all` is the chain of all endpoints.
    fn external(&mut self, service: &Service, all: &str, outside: Outside<'_>) -> Vec<String> {
        let (ip, mark) = (self.table.ip(), self.mark());
        if let Outside::Spread = outside {
            return vec![mark, format!("goto {all}")];
        }
        // Pods and the node itself reach every endpoint; only traffic from outside is restricted to this node's.
        let cidr = self.settings.cluster_cidr(self.family);
        let pods = cidr.map(|cidr| format!("{ip} saddr {cidr} goto {all}"));
        let mut rules = Vec::from_iter(pods);
        rules.push(format!("fib saddr type local {mark}"));
        rules.push(format!("fib saddr type local goto {all}"));
        if let Outside::Kept(near) = outside {
            let local = format!("local-{}", service.name);
            let spread = self.spread(service, &near);
            self.table.chain(&local, [spread]);
            rules.push(format!("goto {local}"));
        }
        rules
    }

    /// Returns the rule that spreads traffic evenly over these endpoints. A pod that reaches itself through its Service
    /// must not see its own address as the source.
    fn spread(&mut self, service: &Service, endpoints: &[Endpoint<'_>]) -> String {
        let (ip, mark, protocol) = (self.table.ip(), self.mark(), service.protocol);
        let mut places = Vec::new();
        for (place, (number, backend)) in endpoints.iter().enumerate() {
            let (address, port) = (backend.address.ip(), backend.address.port());
            match self.style {
                Style::Chains => {
                    let chain = format!("endpoint-{}-{number}", service.name);
                    places.push(format!("{place} : goto {chain}"));
                    let rules = [
                        format!("{ip} saddr {address} {mark}"),
                        format!("meta l4proto {protocol} dnat to {}", backend.address),
                    ];
                    self.table.chain(&chain, rules);
                }
                Style::Maps => {
                    places.push(format!("{place} : {address} . {port}"));
                    if backend.node == self.node {
                        let itself = format!("{address} . {address} . {protocol} . {port}");
                        self.table.element(Set::HairpinConnections, itself);
                    }
                }
            }
        }
        let (count, places) = (places.len(), places.join(", "));
        match self.style {
            Style::Chains => format!("numgen random mod {count} vmap {{ {places} }}"),
            Style::Maps => format!(
                "meta l4proto {protocol} dnat {ip} addr . port to \
                 numgen random mod {count} map {{ {places} }}"
            ),
        }
    }

    /// Returns the statement that marks a packet for masquerading.
    fn mark(&self) -> String {
        match self.style {
            Style::Chains => format!("jump {MARKS}"),
            Style::Maps => format!("mark set mark or {MASQUERADE_MARK}"),
        }
    }

    /// Returns the key of maps by ClusterIP, protocol and port.
    fn service_port(&self) -> String {
        format!("{} daddr . {PORT}", self.table.ip())
    }

    /// Returns the match for the node's addresses at which node ports are served.
    fn node_port_addresses(&self) -> String {
        let ip = self.table.ip();
        match (
            &self.settings.node_ports.addresses(self.family),
            self.family,
        ) {
            (Some(_), _) => format!("{ip} daddr @{}", Set::NodePortIps.name()),
            (None, Family::V4) => format!("{ip} daddr != 127.0.0.0/8"),
            (None, Family::V6) => format!("{ip} daddr != ::1"),
        }
    }

    /// Adds the chains that refuse or drop packets for Services without endpoints.
    fn checks(&mut self) {
        let (ip, service_port) = (self.table.ip(), self.service_port());
        let vmap = |key: &str, map: Set| [format!("{key} vmap @{}", map.name())];
        let node_port = format!("{} {PORT}", self.node_port_addresses());
        let none = vmap(&node_port, Set::NoEndpointNodePorts);
        self.table.chain("nodeport-endpoints-check", none);
        let none = vmap(&service_port, Set::NoEndpointServices);
        self.table.chain("service-endpoints-check", none);
        let firewall = vmap(&service_port, Set::FirewallIps);
        self.table.chain("firewall-check", firewall);
        self.table.chain("reject-chain", ["reject".to_owned()]);
        let known = format!("{ip} daddr @{} reject", Set::ClusterIps.name());
        let unknown = self.settings.service_cidr(self.family);
        let unknown = unknown.map(|cidr| format!("{ip} daddr {cidr} drop"));
        let rules = [known].into_iter().chain(unknown);
        self.table.chain("cluster-ips-check", rules);
    }

    /// Adds the chain that looks up the Service.
    fn dispatch(&mut self) {
        let node_ports = self.settings.node_ports.addresses(self.family);
        let local = match node_ports {
            None => "fib daddr type local ",
            Some(_) => "",
        };
        let to_node = self.node_port_addresses();
        let rules = [
            format!("{} vmap @{}", self.service_port(), Set::ServiceIps.name()),
            format!(
                "{local}{to_node} {PORT} vmap @{}",
                Set::ServiceNodePorts.name()
            ),
        ];
        let rules = self.mark_elsewhere().into_iter().chain(rules);
        self.table.chain("services", rules);
        match node_ports {
            None => self.table.leave_out(Set::NodePortIps),
            Some(addresses) => self.table.elements(Set::NodePortIps, addresses),
        }
    }

    /// Returns the rule that marks packets from outside of the cluster CIDR to a ClusterIP, if one rule serves all
    /// Services.
    fn mark_elsewhere(&self) -> Option<String> {
        let cidr = self.settings.cluster_cidr(self.family)?;
        if self.style == Style::Chains || self.masqueraded.is_empty() {
            return None;
        }
        let ip = self.table.ip();
        let these: Vec<String> = self.masqueraded.iter().map(IpAddr::to_string).collect();
        let these = match these.len() == self.table.count(Set::ClusterIps) {
            true => format!("@{}", Set::ClusterIps.name()),
            false => format!("{{ {} }}", these.join(", ")),
        };
        Some(format!(
            "{ip} daddr {these} {ip} saddr != {cidr} {}",
            self.mark()
        ))
    }

    /// Adds the chain that masquerades marked packets and hairpin connections.
    fn masquerade(&mut self) {
        let ip = self.table.ip();
        let marked = format!("mark and {MASQUERADE_MARK}");
        let unmark = format!("mark set mark xor {MASQUERADE_MARK}");
        let masquerade = "masquerade fully-random".to_owned();
        let rules = match self.style {
            Style::Chains => {
                let mark = format!("mark set mark or {MASQUERADE_MARK}");
                self.table.chain(MARKS, [mark]);
                vec![format!("{marked} == 0 return"), unmark, masquerade]
            }
            Style::Maps => vec![
                format!("{marked} != 0 {unmark} {masquerade}"),
                format!(
                    "ct status dnat {ip} saddr . {ip} daddr . {PORT} @{} {masquerade}",
                    Set::HairpinConnections.name()
                ),
            ],
        };
        self.table.chain("masquerading", rules);
    }
}

#[cfg(test)]
mod tests;
