//! Answers to `ebbtidectl`'s queries, as JSON. The types are what `-o json` prints.

mod address;
mod cloud;
mod datapath;
mod flows;
mod nics;
mod trace;

use std::{
    collections::HashSet,
    net::IpAddr,
    path::PathBuf,
    time::{Instant, SystemTime},
};

use ebbtide_ipam::{catalog::PoolSource, pool::Owner};
use ebbtide_kernel::podnet::PodNet;
use ebbtide_plugin::wire::{Query, Response};
use ebbtide_types::bandwidth::Bandwidth;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    agent::Agent,
    doctor::{self, Finding, Severity},
    log::{self, LogLevel},
    reconcile,
};

pub use address::{AddressInfo, AddressState, Released};
pub use datapath::HookLine;
pub use flows::{FlowLine, Flows, Place, protocol_name};
pub use nics::NicLine;
pub use trace::{TraceLine, trace};

/// `ebbtidectl status`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The number of interfaces that it has made.
    pub interfaces: usize,
    /// Those of them that existed before the agent started and are not reconciled yet.
    pub not_reconciled: usize,
    /// Problems of the manifests and of the node.
    pub problems: Vec<String>,
    /// Items that could not be reconciled, and are tried again.
    #[serde(default)]
    pub failing: Vec<FailingItem>,
}

/// An item that is not in the desired state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailingItem {
    /// `node`, or `namespace/pod/interface`.
    pub key: String,
    /// The time of the first failure, in seconds since 1970.
    pub since: u64,
    /// The number of failures since.
    pub attempts: u32,
    /// The last error.
    pub last_error: String,
    /// When it is tried again, in seconds since 1970; `null` while that happens.
    pub next_try: Option<u64>,
}

impl FailingItem {
    fn new(item: reconcile::Item, now: (Instant, SystemTime)) -> Self {
        let unix = now.1.duration_since(SystemTime::UNIX_EPOCH);
        let unix = unix.map_or(0, |since| since.as_secs());
        let failure = &item.failing.failure;
        Self {
            key: match &failure.interface {
                Some(interface) => format!("{}/{}", interface.pod, interface.name),
                None => item.key.to_string(),
            },
            since: unix.saturating_sub(item.failing.lasted(now.0).as_secs()),
            attempts: item.failing.attempts,
            last_error: failure.to_string(),
            next_try: item.next.map(|next| unix + next.as_secs()),
        }
    }
}

/// A line of `ebbtidectl pods`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLine {
    /// `namespace/name`, or the container ID.
    pub pod: String,
    /// The container's ID.
    pub container_id: String,
    /// The interface's name in the pod.
    pub interface: String,
    /// The addresses, with prefix length.
    pub addresses: Vec<String>,
    /// The pools they are from.
    pub pools: Vec<String>,
    /// The network.
    pub network: String,
    /// The NIC.
    pub master: String,
    /// The NIC's ipvlan mode; `chained` for an interface that another plugin made.
    pub mode: String,
    /// The host's end of the veth pair.
    pub host_interface: Option<String>,
    /// The path of the network namespace.
    pub netns: PathBuf,
    /// The limit of the pod's bandwidth, which its interfaces share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

/// A line of `ebbtidectl pools`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolLine {
    /// Its name.
    pub name: String,
    /// The subnet.
    pub subnet: String,
    /// The nodes it is for; all if empty.
    pub nodes: Vec<String>,
    /// The networks it is for; all if empty.
    pub networks: Vec<String>,
    /// The number of its addresses.
    pub total: u128,
    /// Those in use on this node.
    pub used: u128,
    /// Those that were released and are not assigned again yet.
    pub in_cooldown: u128,
    /// Those that can be assigned.
    pub free: u128,
    /// Those that are in nobody's use, but withheld: the node itself has them, or a router.
    pub held: Vec<HeldAddress>,
    /// The number of those that the cloud controller asks for back: nobody gets one.
    #[serde(default)]
    pub asked_back: u128,
    /// Addresses that a SpiderReservedIP keeps free; not part of `total`.
    pub reserved: u128,
    /// Whether it is used where no pool is named.
    pub default: bool,
    /// Whether it assigns no new addresses.
    pub disabled: bool,
    /// Where the agent has a pool from that nobody declared, as in `AWS eni-0a1b2c3d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// An address that is withheld from pods.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldAddress {
    /// The address.
    pub address: IpAddr,
    /// The reason, as in `the node has it on ens6`.
    pub why: String,
}

/// Answers a query.
pub async fn answer(agent: &Agent, query: &Query) -> Response {
    if let Err(e) = agent.withhold_now().await {
        warn!("which addresses the node itself has is not known: {e}");
    }
    let json = match query {
        Query::Status => serde_json::to_string(&status(agent).await),
        Query::Doctor => match doctor::examine(agent).await {
            Ok(findings) => serde_json::to_string(&findings),
            Err(e) => return refuse(e.to_string()),
        },
        Query::Pods => serde_json::to_string(&pods(agent)),
        Query::Pools => serde_json::to_string(&pools(agent)),
        Query::Nics => match nics::nics(agent).await {
            Ok(lines) => serde_json::to_string(&lines),
            Err(e) => return refuse(e.to_string()),
        },
        Query::Cloud { refresh } => match cloud::cloud(agent, *refresh).await {
            Ok(report) => serde_json::to_string(&report),
            Err(e) => return refuse(e.to_string()),
        },
        Query::Datapath => match datapath::datapath(agent).await {
            Ok(lines) => serde_json::to_string(&lines),
            Err(e) => return refuse(e),
        },
        Query::Explain { pod } if pod.is_empty() => {
            let all = agent.interfaces().into_iter();
            let nets: Vec<PodNet> = all.map(|(_, net)| PodNet::clone(&net)).collect();
            serde_json::to_string(&nets)
        }
        Query::Explain { pod } => match select(agent, pod) {
            Ok(nets) => serde_json::to_string(&nets),
            Err(e) => return refuse(e),
        },
        Query::Flows { pod, limit } => match flows::flows(agent, pod.as_deref(), *limit) {
            Ok(flows) => serde_json::to_string(&flows),
            Err(e) => return refuse(e),
        },
        Query::Log { filter, seconds } => {
            let mut level = log::level();
            if let Some(filter) = filter {
                level = LogLevel {
                    filter: filter.clone(),
                    seconds: *seconds,
                };
                if let Err(e) = log::set_level(&level) {
                    return refuse(e);
                }
            }
            serde_json::to_string(&level)
        }
        // It has many answers: see `trace`.
        Query::Trace(_) => return refuse("a trace is no single answer".to_owned()),
        Query::Page => match agent.page.link() {
            Ok(link) => serde_json::to_string(&link),
            Err(e) => return refuse(e),
        },
        Query::Ip { address } => serde_json::to_string(&address::describe(agent, *address)),
        Query::Release { address, force } => {
            match address::release(agent, *address, *force).await {
                Ok(released) => serde_json::to_string(&released),
                Err(e) => return refuse(e),
            }
        }
    };
    match json {
        Ok(output) => Response { exit: 0, output },
        Err(e) => refuse(e.to_string()),
    }
}

fn refuse(output: String) -> Response {
    Response { exit: 1, output }
}

async fn status(agent: &Agent) -> Status {
    let catalog = agent.catalog();
    let manifests = catalog.problems().iter().map(ToString::to_string);
    let mut problems: Vec<String> = manifests.collect();
    problems.extend(agent.networks_in_other_modes(&catalog));
    match doctor::of_the_node(agent).await {
        Ok(findings) => {
            let harmful = |finding: &&Finding| finding.severity > Severity::Note;
            let harmful = findings.iter().filter(harmful);
            problems.extend(harmful.map(ToString::to_string));
        }
        Err(e) => problems.push(format!("the node's NICs are not known: {e}")),
    }
    let now = (Instant::now(), SystemTime::now());
    let failing = agent.work.failing().into_iter();
    Status {
        node: agent.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        interfaces: agent.interfaces().len(),
        not_reconciled: agent.not_reconciled(),
        problems,
        failing: failing.map(|item| FailingItem::new(item, now)).collect(),
    }
}

fn pods(agent: &Agent) -> Vec<PodLine> {
    agent
        .interfaces()
        .into_iter()
        .map(|(owner, net)| PodLine {
            pod: net.pod.clone(),
            container_id: owner.container_id,
            interface: owner.interface,
            addresses: net
                .addresses
                .iter()
                .map(|a| a.address.to_string())
                .collect(),
            pools: net.addresses.iter().map(|a| a.pool.clone()).collect(),
            network: net.network.clone(),
            master: net.master().unwrap_or_default().to_owned(),
            mode: match &net.ipvlan {
                Some(ipvlan) => ipvlan.mode.to_string(),
                None => "chained".to_owned(),
            },
            host_interface: net.veth.as_ref().map(|veth| veth.host_name.clone()),
            netns: net.netns.clone(),
            bandwidth: net.bandwidth(),
        })
        .collect()
}

fn pools(agent: &Agent) -> Vec<PoolLine> {
    agent
        .pools
        .usage(&agent.catalog())
        .into_iter()
        .map(|pool| PoolLine {
            name: pool.name,
            subnet: pool.subnet.to_string(),
            nodes: pool.node_names,
            networks: pool.networks.iter().map(ToString::to_string).collect(),
            total: pool.total,
            used: pool.used.into(),
            in_cooldown: pool.in_cooldown.into(),
            free: pool.free,
            held: pool
                .withheld
                .into_iter()
                .map(|(address, why)| HeldAddress { address, why })
                .collect(),
            asked_back: pool.asked_back,
            reserved: pool.reserved,
            default: pool.default,
            disabled: pool.disabled,
            source: match pool.source {
                PoolSource::Declared => None,
                PoolSource::Derived { from, .. } => Some(from),
            },
        })
        .collect()
}

/// Returns the plans of the interfaces of the pod that `pod` names.
fn select(agent: &Agent, pod: &str) -> Result<Vec<PodNet>, String> {
    let all = agent.interfaces();
    let matches = |owner: &Owner, net: &PodNet| {
        net.pod == pod
            || net.pod.rsplit('/').next() == Some(pod)
            || (pod.len() >= 4 && owner.container_id.starts_with(pod))
    };
    let found: Vec<PodNet> = all
        .iter()
        .filter(|(owner, net)| matches(owner, net))
        .map(|(_, net)| PodNet::clone(net))
        .collect();
    let mut names: Vec<&str> = found.iter().map(|net| net.pod.as_str()).collect();
    names.dedup();
    match names.len() {
        1 => Ok(found),
        0 => {
            let known: HashSet<&str> = all.iter().map(|(_, net)| net.pod.as_str()).collect();
            let mut known: Vec<&str> = known.into_iter().collect();
            known.sort_unstable();
            Err(match known.len() {
                0 => format!("no pod {pod}: there are no pods on this node"),
                _ => format!("no pod {pod} on this node; there are {}", known.join(", ")),
            })
        }
        _ => Err(format!(
            "{pod} could be any of {}: give its namespace too",
            names.join(", ")
        )),
    }
}
