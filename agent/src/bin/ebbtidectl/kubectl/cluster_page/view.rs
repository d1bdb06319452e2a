//! What the cluster's page shows, as a function of what the API server has. Pure.

mod nodes;
mod pools;
#[cfg(test)]
mod tests;
mod troubles;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use serde::Serialize;

use super::rows::{AgentRow, EndpointRow, EventRow, NetworkRow, NodeRow, PodRow, PoolRow};

/// The Events that are shown, the latest first.
const EVENTS: usize = 50;

/// What the API server has. A kind that was never answered is unknown: nothing is wrong because of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) nodes: Option<Vec<NodeRow>>,
    pub(super) agents: Option<Vec<AgentRow>>,
    pub(super) pools: Option<Vec<PoolRow>>,
    pub(super) networks: Option<Vec<NetworkRow>>,
    pub(super) endpoints: Option<Vec<EndpointRow>>,
    pub(super) events: Option<Vec<EventRow>>,
    /// The pods that were looked at, by `namespace/name`; none: it is gone.
    pub(super) pods: HashMap<String, Option<PodRow>>,
}

/// What the page shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterView {
    pub(super) totals: Totals,
    /// Addresses that more than one interface has. There must be none.
    pub(super) doubles: Vec<Double>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) nodes: Vec<NodeLine>,
    pub(super) pools: Vec<PoolLine>,
    pub(super) pods: Vec<PodLine>,
    pub(super) events: Vec<EventRow>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    pub(super) nodes: usize,
    pub(super) ready_nodes: usize,
    pub(super) ready_agents: usize,
    pub(super) pods: usize,
    pub(super) addresses: usize,
}

/// How bad something is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Level {
    Bad,
    Warn,
    Well,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Trouble {
    pub(super) level: Level,
    pub(super) text: String,
}

/// An address that more than one interface has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Double {
    pub(super) address: IpAddr,
    pub(super) holders: Vec<Holder>,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Holder {
    pub(super) pod: String,
    pub(super) interface: String,
    pub(super) node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeLine {
    pub(super) name: String,
    /// None: there is no such Node, or Nodes are unknown.
    pub(super) ready: Option<bool>,
    pub(super) cordoned: bool,
    pub(super) agent: Option<AgentLine>,
    pub(super) level: Level,
    pub(super) pods: usize,
    pub(super) addresses: usize,
    /// Its pods' addresses by pool.
    pub(super) pools: Vec<NodePool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AgentLine {
    pub(super) pod: String,
    pub(super) ready: bool,
    pub(super) restarts: u64,
    pub(super) version: String,
    pub(super) state: String,
}

/// What a node's pods have of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NodePool {
    pub(super) pool: String,
    /// The NICs of the pool's networks.
    pub(super) nic: String,
    pub(super) pods: usize,
    pub(super) addresses: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PoolLine {
    pub(super) name: String,
    pub(super) subnet: String,
    pub(super) nic: String,
    pub(super) total: Option<u64>,
    /// How many are in use by the pool's status.
    pub(super) allocated: Option<u64>,
    /// How many SpiderEndpoints name.
    pub(super) held: u64,
    pub(super) free: Option<u64>,
    pub(super) level: Level,
    pub(super) default: bool,
    pub(super) disabled: bool,
    pub(super) nodes: Vec<String>,
    pub(super) networks: Vec<String>,
    /// The cloud's NIC that its addresses are assigned to.
    pub(super) derived: Option<String>,
    /// Whether there is such a SpiderIPPool.
    pub(super) declared: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodLine {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) owner: String,
    /// Empty; or why it does not count: it ends, has ended, or is gone.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) end: &'static str,
    /// Whether somebody else than Ebbtide's agents wrote it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) others: bool,
    pub(super) interfaces: Vec<InterfaceLine>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct InterfaceLine {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pools: Vec<String>,
}

impl Rows {
    /// Returns the pods that seem to have an address of another's: whether they live has to be looked at.
    pub(super) fn suspects(&self) -> BTreeSet<String> {
        let doubles = doubles(self.endpoints.iter().flatten()).into_iter();
        let holders = doubles.flat_map(|double| double.holders);
        holders.map(|holder| holder.pod).collect()
    }

    /// Returns why an endpoint does not count, if it does not.
    fn end_of(&self, endpoint: &EndpointRow) -> &'static str {
        match self.pods.get(&endpoint.pod) {
            _ if endpoint.is_ending => "is being deleted",
            None => "",
            Some(None) => "is gone",
            Some(Some(pod)) if pod.has_ended => "has ended",
            // Another one of this name.
            Some(Some(pod)) if !endpoint.uid.is_empty() && pod.uid != endpoint.uid => "is gone",
            Some(Some(_)) => "",
        }
    }

    fn live(&self) -> impl Iterator<Item = &EndpointRow> {
        let all = self.endpoints.iter().flatten();
        all.filter(|endpoint| self.end_of(endpoint).is_empty())
    }
}

/// Returns what the page shows.
pub(super) fn view(rows: &Rows) -> ClusterView {
    let live: Vec<&EndpointRow> = rows.live().collect();
    let nics = pools::nics(rows);
    let pools = pools::lines(rows, &live, &nics);
    let nodes = nodes::lines(rows, &live, &nics);
    let doubles = doubles(live.iter().copied());
    let totals = Totals {
        nodes: rows.nodes.as_ref().map_or(nodes.len(), Vec::len),
        ready_nodes: nodes.iter().filter(|it| it.ready == Some(true)).count(),
        ready_agents: nodes.iter().filter(|it| has_ready_agent(it)).count(),
        pods: live.len(),
        addresses: live.iter().map(|it| addresses(it)).sum(),
    };
    ClusterView {
        totals,
        troubles: troubles::troubles(rows, &nodes, &pools),
        doubles,
        nodes,
        pools,
        pods: pods(rows),
        events: events(rows),
    }
}

fn has_ready_agent(node: &NodeLine) -> bool {
    node.agent.as_ref().is_some_and(|agent| agent.ready)
}

fn addresses(endpoint: &EndpointRow) -> usize {
    endpoint
        .interfaces
        .iter()
        .map(|it| it.addresses.len())
        .sum()
}

fn doubles<'a>(endpoints: impl Iterator<Item = &'a EndpointRow>) -> Vec<Double> {
    let mut holders: HashMap<IpAddr, Vec<Holder>> = HashMap::new();
    for endpoint in endpoints.filter(|it| !it.is_ending) {
        for interface in &endpoint.interfaces {
            for (address, _) in &interface.addresses {
                holders.entry(*address).or_default().push(Holder {
                    pod: endpoint.pod.clone(),
                    interface: interface.name.clone(),
                    node: endpoint.node.clone(),
                });
            }
        }
    }
    let shared = holders.into_iter().filter(|(_, it)| it.len() > 1);
    let mut doubles: Vec<Double> = shared
        .map(|(address, mut holders)| {
            holders.sort();
            Double { address, holders }
        })
        .collect();
    doubles.sort_by_key(|it| it.address);
    doubles
}

fn pods(rows: &Rows) -> Vec<PodLine> {
    let mut lines: Vec<PodLine> = rows
        .endpoints
        .iter()
        .flatten()
        .map(|endpoint| PodLine {
            pod: endpoint.pod.clone(),
            node: endpoint.node.clone(),
            owner: endpoint.owner.clone(),
            end: rows.end_of(endpoint),
            others: !endpoint.is_ours,
            interfaces: endpoint
                .interfaces
                .iter()
                .map(|it| InterfaceLine {
                    name: it.name.clone(),
                    addresses: it.addresses.iter().map(|(address, _)| *address).collect(),
                    pools: it.addresses.iter().map(|(_, pool)| pool.clone()).collect(),
                })
                .collect(),
        })
        .collect();
    lines.sort_by(|a, b| a.pod.cmp(&b.pod));
    lines
}

fn events(rows: &Rows) -> Vec<EventRow> {
    let mut events: Vec<&EventRow> = rows.events.iter().flatten().collect();
    events.sort_by(|a, b| b.at.cmp(&a.at));
    events.into_iter().take(EVENTS).cloned().collect()
}
