//! What is wrong, in words. One kind of trouble is one line, however many nodes have it.

use std::collections::BTreeMap;

use super::{Level, NodeLine, PoolLine, Rows, Trouble, has_ready_agent};

/// How many names are told in one line.
const NAMES: usize = 5;

/// Returns how a node is.
pub(super) fn level(rows: &Rows, node: &NodeLine) -> Level {
    let has_agent = rows.agents.is_none() || has_ready_agent(node);
    match node.ready {
        // It has no agent because it is not meant to have one.
        Some(true) if node.agent.is_none() && node.pods == 0 => Level::Well,
        _ if !has_agent => Level::Bad,
        Some(true) => Level::Well,
        Some(false) => Level::Warn,
        None if rows.nodes.is_none() => Level::Well,
        None => Level::Warn,
    }
}

/// Returns what is wrong, the worst first.
pub(super) fn troubles(rows: &Rows, nodes: &[NodeLine], pools: &[PoolLine]) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let mut tell = |level, what: &str, names: Vec<String>| {
        if !names.is_empty() {
            let text = format!("{what}: {}", some(&names));
            troubles.push(Trouble { level, text });
        }
    };
    let named = |fits: &dyn Fn(&NodeLine) -> bool| -> Vec<String> {
        let found = nodes.iter().filter(|it| fits(it));
        found.map(|it| it.name.clone()).collect()
    };
    if rows.agents.is_some() {
        let agents = nodes.iter().filter(|it| !has_ready_agent(it));
        let agents = agents.filter_map(|it| Some((it, it.agent.as_ref()?)));
        let agents = agents.map(|(it, agent)| format!("{} ({})", it.name, agent.state));
        tell(Level::Bad, "the agent is not ready", agents.collect());
        tell(
            Level::Bad,
            "no agent, but pods with its addresses",
            named(&|it| it.agent.is_none() && it.pods > 0),
        );
        tell(
            Level::Warn,
            "no agent runs on these nodes, and no pod there can have an address",
            named(&|it| it.agent.is_none() && it.pods == 0 && it.ready.is_some()),
        );
        versions(nodes, &mut tell);
    }
    if rows.nodes.is_some() {
        tell(
            Level::Warn,
            "the node is not ready",
            named(&|it| it.ready == Some(false)),
        );
        tell(
            Level::Warn,
            "there is no such Node, but something of it is left",
            named(&|it| it.ready.is_none()),
        );
    }
    let full = |level| -> Vec<String> {
        let found = pools.iter().filter(|it| it.level == level);
        let named = |it: &PoolLine| {
            let total = it.total.unwrap_or_default();
            format!(
                "{} ({} of {total} free)",
                it.name,
                it.free.unwrap_or_default()
            )
        };
        found.map(named).collect()
    };
    tell(Level::Bad, "pools without a free address", full(Level::Bad));
    tell(Level::Warn, "pools nearly empty", full(Level::Warn));
    let unknown = pools.iter().filter(|it| !it.declared);
    tell(
        Level::Warn,
        "pods have addresses of pools that are not there",
        unknown.map(|it| it.name.clone()).collect(),
    );
    let odd = rows.endpoints.iter().flatten();
    let odd = odd.filter(|it| !it.odd.is_empty());
    tell(
        Level::Warn,
        "SpiderEndpoints with addresses that are none",
        odd.map(|it| format!("{} ({})", it.pod, it.odd.join(", ")))
            .collect(),
    );
    troubles.sort_by_key(|it| it.level);
    troubles
}

/// Tells agents of several versions, as while they are upgraded.
fn versions(nodes: &[NodeLine], tell: &mut impl FnMut(Level, &str, Vec<String>)) {
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for agent in nodes.iter().filter_map(|it| it.agent.as_ref()) {
        if !agent.version.is_empty() {
            *versions.entry(&agent.version).or_default() += 1;
        }
    }
    if versions.len() > 1 {
        let each = versions.into_iter();
        let each = each
            .map(|(version, count)| format!("{version} on {count}"))
            .collect();
        tell(Level::Warn, "the agents are of several versions", each);
    }
}

/// Lists some of the names, and says how many there are more.
fn some(names: &[String]) -> String {
    let told = names.iter().take(NAMES).cloned().collect::<Vec<_>>();
    let more = names.len().saturating_sub(NAMES);
    match more {
        0 => told.join(", "),
        _ => format!("{} and {more} more", told.join(", ")),
    }
}
