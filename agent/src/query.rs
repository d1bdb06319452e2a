//! What `ebbtidectl` asks, answered as JSON. The types are what `-o json` prints.

mod address;
mod flows;
mod trace;

use std::{collections::HashSet, path::PathBuf};

use ebbtide_layout::{Hook, HostHook, Spoofed};
use ebbtide_plugin::wire::{Query, Response};
use serde::{Deserialize, Serialize};

use crate::{
    agent::Agent,
    datapath::{HOST_PROGRAMS, PROGRAMS},
    doctor,
    netlink::{
        Netlink,
        link::Veth,
        model::{Filter, NamespacePlan},
        netns::Evidence,
        state::NamespaceState,
    },
    podnet::PodNet,
    pool::Owner,
};

pub use address::{AddressInfo, AddressState, Released};
pub use flows::{FlowLine, Flows, Place, protocol_name};
pub use trace::{TraceLine, trace};

/// `ebbtidectl status`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Interfaces it has made.
    pub interfaces: usize,
    /// What is wrong with the manifests, and with the node.
    pub problems: Vec<String>,
}

/// A line of `ebbtidectl pods`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLine {
    /// `namespace/name`, or the container ID.
    pub pod: String,
    /// Container ID.
    pub container_id: String,
    /// Interface in the pod.
    pub interface: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// The pools they are from.
    pub pools: Vec<String>,
    /// The network.
    pub network: String,
    /// The NIC.
    pub master: String,
    /// Its ipvlan mode.
    pub mode: String,
    /// The host's end of the veth pair.
    pub host_interface: Option<String>,
    /// Path of the network namespace.
    pub netns: PathBuf,
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
    /// Addresses it has.
    pub total: u128,
    /// Of these, in use on this node.
    pub used: u128,
    /// Released, and not given out again yet.
    pub resting: u128,
    /// Ready to be given out.
    pub free: u128,
    /// Not part of `total`: kept free by a SpiderReservedIP.
    pub reserved: u128,
    /// Whether it is used where nothing names a pool.
    pub default: bool,
    /// Whether it gives no new addresses.
    pub disabled: bool,
}

/// A line of `ebbtidectl datapath`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookLine {
    /// The pod; empty for the node's own.
    pub pod: String,
    /// The interface, in the pod, or the node's NIC. For the host's ends of the veths, which are
    /// counted all together, the NIC that their traffic came in by.
    pub interface: String,
    /// `ingress` or `egress`.
    pub hook: String,
    /// The program.
    pub program: String,
    /// Whether it is attached; `None` if that cannot be told.
    pub attached: Option<bool>,
    /// Packets it saw.
    pub seen: u64,
    /// Marked as come in by the veth.
    pub marked: u64,
    /// Flows remembered (or, on the NIC's ingress, forgotten).
    pub learned: u64,
    /// Sent back out by the interface their flow came in on.
    pub redirected: u64,
    /// Let through untouched.
    pub passed: u64,
    /// Dropped.
    pub dropped: u64,
    /// Packets that would have left by this NIC, the wrong one: a cloud drops them. They were sent
    /// out by the right one, unless that has no known gateway.
    #[serde(default)]
    pub wrong_nic: u64,
}

/// Answers a question.
pub async fn answer(agent: &Agent, query: &Query) -> Response {
    let json = match query {
        Query::Status => serde_json::to_string(&status(agent).await),
        Query::Doctor => match doctor::examine(agent).await {
            Ok(findings) => serde_json::to_string(&findings),
            Err(e) => return refuse(e.to_string()),
        },
        Query::Pods => serde_json::to_string(&pods(agent)),
        Query::Pools => serde_json::to_string(&pools(agent)),
        Query::Datapath => match datapath(agent).await {
            Ok(lines) => serde_json::to_string(&lines),
            Err(e) => return refuse(e),
        },
        Query::Explain { pod } => match select(agent, pod) {
            Ok(nets) => serde_json::to_string(&nets),
            Err(e) => return refuse(e),
        },
        Query::Flows { pod, limit } => match flows::flows(agent, pod.as_deref(), *limit).await {
            Ok(flows) => serde_json::to_string(&flows),
            Err(e) => return refuse(e),
        },
        // Its answers are many: see `trace`.
        Query::Trace(_) => return refuse("a trace is no single answer".to_owned()),
        Query::Ip { address } => serde_json::to_string(&address::look(agent, *address)),
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
    match doctor::nics_that_are_gone(agent).await {
        Ok(findings) => problems.extend(findings.iter().map(ToString::to_string)),
        Err(e) => problems.push(format!("the node's NICs are not known: {e}")),
    }
    Status {
        node: agent.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        interfaces: agent.interfaces().len(),
        problems,
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
            resting: pool.resting.into(),
            free: pool.free,
            reserved: pool.reserved,
            default: pool.default,
            disabled: pool.disabled,
        })
        .collect()
}

async fn datapath(agent: &Agent) -> Result<Vec<HookLine>, String> {
    let mut lines = Vec::new();
    for (_, net) in agent.interfaces() {
        let counters = agent
            .datapath
            .counters(&net.ips())
            .map_err(|e| e.to_string())?;
        // Of the pod as a whole, so told once.
        let spoofed = match &net.shared_veth {
            None => agent
                .datapath
                .spoofed(net.number())
                .map_err(|e| e.to_string())?,
            Some(_) => Spoofed::default(),
        };
        let attached = attached(&net).await;
        for filter in &net.in_pod.filters {
            let Some(program) = PROGRAMS.iter().find(|p| p.name == filter.program) else {
                continue;
            };
            let mut counted = counters[program.hook as usize];
            if program.hook == Hook::NicEgress {
                counted.dropped += spoofed.by_nic;
            }
            lines.push(HookLine {
                pod: net.pod.clone(),
                interface: filter.link.clone(),
                hook: filter.direction.to_string(),
                program: filter.program.clone(),
                attached: attached.as_ref().map(|found| found.contains(filter)),
                seen: counted.seen,
                marked: counted.marked,
                learned: counted.learned,
                redirected: counted.redirected,
                passed: counted.passed,
                dropped: counted.dropped,
                wrong_nic: 0,
            });
        }
        if let Some(veth) = net.veth.as_ref().filter(|_| spoofed.by_veth != 0) {
            lines.push(dropped_from(&net, veth, spoofed.by_veth));
        }
    }
    lines.extend(nics(agent).await?);
    Ok(lines)
}

/// The host's end of a pod's veth, where the pod sent what was not its own. All else there is counted
/// by NIC.
fn dropped_from(net: &PodNet, veth: &Veth, dropped: u64) -> HookLine {
    let program = HOST_PROGRAMS[HostHook::VethIngress as usize];
    HookLine {
        pod: net.pod.clone(),
        interface: veth.host_name.clone(),
        hook: program.direction.to_string(),
        program: program.name.to_owned(),
        attached: None,
        seen: dropped,
        marked: 0,
        learned: 0,
        redirected: 0,
        passed: 0,
        dropped,
        wrong_nic: 0,
    }
}

/// The node's own hooks.
async fn nics(agent: &Agent) -> Result<Vec<HookLine>, String> {
    let Some(host) = agent.nics() else {
        return Ok(Vec::new());
    };
    let mut filters = host.plan.filters.clone();
    for (_, net) in agent.interfaces() {
        filters.extend(net.in_host.filters.iter().cloned());
    }
    let wanted = NamespacePlan {
        filters,
        ..NamespacePlan::default()
    };
    let state = NamespaceState::read(&agent.host, &wanted).await.ok();
    // On the NIC, or on every veth; `None` where it should be nowhere, or that cannot be told.
    let attached = |program: &str, nic: &str| {
        let found = &state.as_ref()?.found.filters;
        let on_nic = |filter: &&Filter| filter.link == nic || !program.starts_with("host_nic");
        let mut places = wanted
            .filters
            .iter()
            .filter(|filter| filter.program == program)
            .filter(on_nic)
            .peekable();
        places.peek()?;
        Some(places.all(|filter| found.contains(filter)))
    };
    let mut lines = Vec::new();
    for nic in &host.nics {
        let counters = agent
            .datapath
            .host
            .counters(nic)
            .map_err(|e| e.to_string())?;
        for program in HOST_PROGRAMS {
            let counted = counters.hooks[program.hook as usize];
            let on_egress = program.hook == HostHook::NicEgress;
            lines.push(HookLine {
                pod: String::new(),
                interface: nic.name.clone(),
                hook: program.direction.to_string(),
                program: program.name.to_owned(),
                attached: attached(program.name, &nic.name),
                seen: counted.seen,
                marked: counted.marked,
                learned: counted.learned,
                redirected: counted.redirected,
                passed: counted.passed,
                dropped: counted.dropped,
                wrong_nic: if on_egress {
                    counters.wrong_nic + counters.wrong_nic_passed
                } else {
                    0
                },
            });
        }
    }
    Ok(lines)
}

/// The programs that are attached in the pod; `None` if it cannot be looked at.
async fn attached(net: &PodNet) -> Option<HashSet<Filter>> {
    let Evidence::Present(netns) = net.namespace().ok()? else {
        return None;
    };
    let place = format!("in {}", net.netns.display());
    let netlink = netns.run(|| Netlink::open(place)).ok()?.ok()?;
    let state = NamespaceState::read(&netlink, &net.in_pod).await.ok()?;
    Some(state.found.filters.into_iter().collect())
}

/// The plans of the interfaces of the pod that is meant.
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
