//! kube-proxy's table as data, and as an nft script.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::Style;
use crate::plan::Family;

/// The table's sets and maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    ClusterIps,
    FirewallIps,
    /// Connections of pods to themselves through their Service.
    HairpinConnections,
    NoEndpointNodePorts,
    NoEndpointServices,
    NodePortIps,
    ServiceIps,
    ServiceNodePorts,
}

impl Set {
    const ALL: [Self; 8] = [
        Self::ClusterIps,
        Self::FirewallIps,
        Self::HairpinConnections,
        Self::NoEndpointNodePorts,
        Self::NoEndpointServices,
        Self::NodePortIps,
        Self::ServiceIps,
        Self::ServiceNodePorts,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ClusterIps => "cluster-ips",
            Self::FirewallIps => "firewall-ips",
            Self::HairpinConnections => "hairpin-connections",
            Self::NoEndpointNodePorts => "no-endpoint-nodeports",
            Self::NoEndpointServices => "no-endpoint-services",
            Self::NodePortIps => "nodeport-ips",
            Self::ServiceIps => "service-ips",
            Self::ServiceNodePorts => "service-nodeports",
        }
    }

    /// Returns whether it is a map or a set, and the type of its elements; `address` is the type of an address.
    fn declared(self, address: &str) -> (&'static str, String) {
        const PORT: &str = "inet_proto . inet_service";
        match self {
            Self::ClusterIps | Self::NodePortIps => ("set", address.to_owned()),
            Self::HairpinConnections => ("set", format!("{address} . {address} . {PORT}")),
            Self::NoEndpointNodePorts | Self::ServiceNodePorts => {
                ("map", format!("{PORT} : verdict"))
            }
            Self::FirewallIps | Self::NoEndpointServices | Self::ServiceIps => {
                ("map", format!("{address} . {PORT} : verdict"))
            }
        }
    }
}

/// A base chain: its name, type, hook and priority, and the chains that it jumps to.
type BaseChain = (
    &'static str,
    &'static str,
    &'static str,
    i16,
    &'static [&'static str],
);

/// The base chains that filter before destination NAT, all but one.
const BEFORE: [BaseChain; 5] = [
    (
        "filter-prerouting",
        "filter",
        "prerouting",
        -110,
        &[FIREWALL],
    ),
    (
        "filter-input",
        "filter",
        "input",
        -110,
        &[NODE_PORTS, SERVICES],
    ),
    (
        "filter-forward",
        "filter",
        "forward",
        -110,
        &[SERVICES, CLUSTER_IPS],
    ),
    (
        "filter-output",
        "filter",
        "output",
        -110,
        &[SERVICES, FIREWALL],
    ),
    (
        "filter-output-post-dnat",
        "filter",
        "output",
        -90,
        &[CLUSTER_IPS],
    ),
];

/// The base chains that filter at the usual priority, without those for load balancers.
const AFTER: [BaseChain; 5] = [
    (
        "filter-prerouting-pre-dnat",
        "filter",
        "prerouting",
        -110,
        &[FIREWALL],
    ),
    (
        "filter-output-pre-dnat",
        "filter",
        "output",
        -110,
        &[FIREWALL],
    ),
    (
        "filter-input",
        "filter",
        "input",
        0,
        &[NODE_PORTS, SERVICES],
    ),
    (
        "filter-forward",
        "filter",
        "forward",
        0,
        &[SERVICES, CLUSTER_IPS],
    ),
    (
        "filter-output",
        "filter",
        "output",
        0,
        &[SERVICES, CLUSTER_IPS],
    ),
];

const TRANSLATING: [BaseChain; 3] = [
    (
        "nat-prerouting",
        "nat",
        "prerouting",
        -100,
        &["jump services"],
    ),
    ("nat-output", "nat", "output", -100, &["jump services"]),
    (
        "nat-postrouting",
        "nat",
        "postrouting",
        100,
        &["jump masquerading"],
    ),
];

const CLUSTER_IPS: &str = "ct state new jump cluster-ips-check";
const FIREWALL: &str = "ct state new jump firewall-check";
const NODE_PORTS: &str = "ct state new jump nodeport-endpoints-check";
const SERVICES: &str = "ct state new jump service-endpoints-check";

/// The table `kube-proxy` of one family.
pub(super) struct Table {
    family: Family,
    style: Style,
    sets: BTreeMap<Set, BTreeSet<String>>,
    chains: BTreeMap<String, Vec<String>>,
}

impl Table {
    pub(super) fn new(family: Family, style: Style) -> Self {
        let mut sets = BTreeMap::from(Set::ALL.map(|set| (set, BTreeSet::new())));
        if style == Style::Chains {
            sets.remove(&Set::HairpinConnections);
        }
        Self {
            family,
            style,
            sets,
            chains: BTreeMap::new(),
        }
    }

    /// Returns the family's name, in the names of tables and of header fields.
    pub(super) fn ip(&self) -> &'static str {
        match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    pub(super) fn element(&mut self, set: Set, element: impl ToString) {
        self.elements(set, [element]);
    }

    pub(super) fn elements(&mut self, set: Set, elements: impl IntoIterator<Item = impl ToString>) {
        let elements = elements.into_iter().map(|element| element.to_string());
        self.sets.entry(set).or_default().extend(elements);
    }

    pub(super) fn leave_out(&mut self, set: Set) {
        self.sets.remove(&set);
    }

    pub(super) fn count(&self, set: Set) -> usize {
        self.sets.get(&set).map_or(0, BTreeSet::len)
    }

    pub(super) fn chain(&mut self, name: &str, rules: impl IntoIterator<Item = String>) {
        let rules = rules.into_iter().collect();
        self.chains.insert(name.to_owned(), rules);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.ip();
        let address = match self.family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        // The table is added first, so that it can be deleted whether it existed or not.
        writeln!(f, "table {ip} kube-proxy\ndelete table {ip} kube-proxy")?;
        writeln!(f, "table {ip} kube-proxy {{")?;
        for (set, elements) in &self.sets {
            let (what, kind) = set.declared(address);
            writeln!(f, "\t{what} {} {{\n\t\ttype {kind}", set.name())?;
            if !elements.is_empty() {
                let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
                let elements = elements.join(",\n\t\t\t");
                writeln!(f, "\t\telements = {{\n\t\t\t{elements}\n\t\t}}")?;
            }
            writeln!(f, "\t}}")?;
        }
        let filtering = match self.style {
            Style::Chains => BEFORE,
            Style::Maps => AFTER,
        };
        for (name, kind, hook, priority, rules) in filtering.iter().chain(&TRANSLATING) {
            let base = format!("type {kind} hook {hook} priority {priority}; policy accept;");
            write_chain(f, name, [base.as_str()].iter().chain(*rules))?;
        }
        for (name, rules) in &self.chains {
            write_chain(f, name, rules)?;
        }
        writeln!(f, "}}")
    }
}

fn write_chain(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    lines: impl IntoIterator<Item = impl fmt::Display>,
) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    for line in lines {
        writeln!(f, "\t\t{line}")?;
    }
    writeln!(f, "\t}}")
}
