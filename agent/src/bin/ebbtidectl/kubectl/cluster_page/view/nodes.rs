//! The nodes: whether each works, and what its pods have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    super::rows::{AgentRow, EndpointRow, NodeRow},
    AgentLine, Level, NodeLine, NodePool, Rows, addresses, troubles,
};

/// Returns the nodes: those that are there, and those that agents or endpoints name.
pub(super) fn lines(
    rows: &Rows,
    live: &[&EndpointRow],
    nics: &BTreeMap<String, String>,
) -> Vec<NodeLine> {
    let mut by_node: BTreeMap<&str, Vec<&EndpointRow>> = BTreeMap::new();
    for endpoint in live {
        by_node.entry(&endpoint.node).or_default().push(endpoint);
    }
    let known = rows.nodes.iter().flatten();
    let mut names: BTreeSet<&str> = known.map(|node| node.name.as_str()).collect();
    names.extend(by_node.keys());
    names.extend(rows.agents.iter().flatten().map(|it| it.node.as_str()));
    names.remove("");
    let all: HashMap<&str, &NodeRow> = rows
        .nodes
        .iter()
        .flatten()
        .map(|it| (it.name.as_str(), it))
        .collect();
    let agents = agents(rows);
    let line = |name: &str| {
        let node = all.get(name);
        let endpoints = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        let mut line = NodeLine {
            name: name.to_owned(),
            ready: node.map(|it| it.is_ready),
            cordoned: node.is_some_and(|it| it.is_cordoned),
            agent: agents.get(name).map(|it| agent_line(it)),
            level: Level::Well,
            pods: endpoints.len(),
            addresses: endpoints.iter().map(|it| addresses(it)).sum(),
            pools: node_pools(endpoints, nics),
        };
        line.level = troubles::level(rows, &line);
        line
    };
    names.into_iter().map(line).collect()
}

/// Returns each node's agent; of a node with two, as while one is replaced, the one that is there to stay.
fn agents(rows: &Rows) -> HashMap<&str, &AgentRow> {
    let mut agents: HashMap<&str, &AgentRow> = HashMap::new();
    for agent in rows.agents.iter().flatten() {
        let rank = |it: &AgentRow| (!it.is_ending, it.is_ready);
        let kept = agents.entry(&agent.node).or_insert(agent);
        if rank(agent) > rank(kept) {
            *kept = agent;
        }
    }
    agents
}

fn agent_line(agent: &AgentRow) -> AgentLine {
    let state = match (agent.is_ending, agent.is_ready) {
        (true, _) => "ending",
        (false, true) => "ready",
        // It runs, and does not answer yet.
        (false, false) if agent.state == "Running" => "not ready",
        (false, false) => &agent.state,
    };
    AgentLine {
        pod: agent.pod.clone(),
        ready: agent.is_ready && !agent.is_ending,
        restarts: agent.restarts,
        version: agent.version.clone(),
        state: state.to_owned(),
    }
}

fn node_pools(endpoints: &[&EndpointRow], nics: &BTreeMap<String, String>) -> Vec<NodePool> {
    let mut pools: BTreeMap<(&str, &str), (BTreeSet<&str>, usize)> = BTreeMap::new();
    for endpoint in endpoints {
        for (_, pool) in endpoint.interfaces.iter().flat_map(|it| &it.addresses) {
            let nic = nics.get(pool).map(String::as_str).unwrap_or_default();
            let (pods, addresses) = pools.entry((nic, pool)).or_default();
            pods.insert(&endpoint.pod);
            *addresses += 1;
        }
    }
    let line =
        |((nic, pool), (pods, addresses)): ((&str, &str), (BTreeSet<&str>, usize))| NodePool {
            pool: pool.to_owned(),
            nic: nic.to_owned(),
            pods: pods.len(),
            addresses,
        };
    pools.into_iter().map(line).collect()
}
