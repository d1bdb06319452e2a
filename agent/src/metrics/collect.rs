//! Reads what a scrape tells from the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ebbtide_ipam::{catalog::Consequence, pool::PoolUsage};
use ebbtide_kernel::datapath::{self, Datapath};
use ebbtide_types::Family;
use tokio::task::spawn_blocking;
use tracing::debug;

use super::{
    Process, Snapshot,
    snapshot::{
        CloudBlocks, CloudState, FlowTable, InterfaceKind, NodeState, OnNic, PoolState, Problems,
    },
};
use crate::{
    agent::Agent,
    cloud::{BlockState, CloudReport},
};

/// How long one reading serves: several who ask at once cost no more than one.
const FRESH: Duration = Duration::from_secs(1);

/// The same for the table of flows, which takes hundreds of system calls for each pod that has flows.
const FLOWS_FRESH: Duration = Duration::from_secs(15);

/// Returns what the agent knows now, or knew a second ago.
pub(super) async fn snapshot(agent: &Arc<Agent>) -> Arc<Snapshot> {
    let metrics = &agent.metrics;
    // Whoever comes meanwhile waits, and gets the same.
    let mut recent = metrics.recent.lock().await;
    if let Some((read, snapshot)) = &recent.snapshot
        && read.elapsed() < FRESH
    {
        return Arc::clone(snapshot);
    }
    let known = recent
        .flows
        .filter(|(read, _)| read.elapsed() < FLOWS_FRESH);
    let read = Arc::clone(agent);
    // Maps are read by system calls, thousands on a full node: not on a thread that serves pods.
    let of_kernel = spawn_blocking(move || of_kernel(&read, known.map(|(_, flows)| flows)));
    let of_kernel = of_kernel.await.unwrap_or_default();
    if known.is_none() {
        recent.flows = of_kernel.flows.map(|flows| (Instant::now(), flows));
    }
    let snapshot = Arc::new(Snapshot {
        node: Some(of_agent(agent, of_kernel).await),
        api_calls: metrics.api_calls.counted(),
        ..of_process()
    });
    recent.snapshot = Some((Instant::now(), Arc::clone(&snapshot)));
    snapshot
}

/// Returns what every process of Ebbtide's tells.
pub(super) fn of_process() -> Snapshot {
    Snapshot {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: Process::read(),
        ..Snapshot::default()
    }
}

/// Reads the programs' maps, and counts pools, which may be large.
fn of_kernel(agent: &Agent, flows: Option<FlowTable>) -> NodeState {
    let interfaces = agent.interfaces();
    let failed = |e| debug!("read the programs' counters: {e}");
    let pods = agent.metrics.pods.read(&agent.datapath, &interfaces);
    let numbers = interfaces.iter().map(|(_, net)| net.number());
    let flows = flows.map_or_else(|| flow_table(&agent.datapath, numbers.collect()), Ok);
    let nics = agent.nics();
    let nics = nics.iter().flat_map(|plan| &plan.nics).filter_map(|nic| {
        let counted = agent.datapath.host.counters(nic).map_err(failed).ok()?;
        Some(OnNic {
            name: nic.name.clone(),
            programs: counted.hooks,
            wrong_redirected: counted.wrong_nic,
            wrong_passed: counted.wrong_nic_passed,
        })
    });
    let usage = agent.pools.usage(&agent.catalog());
    let here =
        |pool: &PoolUsage| pool.node_names.is_empty() || pool.node_names.contains(&agent.node_name);
    let mut kinds: BTreeMap<InterfaceKind, u64> = BTreeMap::new();
    for (_, net) in &interfaces {
        let kind = match net.ipvlan {
            Some(_) => InterfaceKind::Ipvlan,
            None => InterfaceKind::Chained,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    NodeState {
        pools: usage.into_iter().filter(here).map(pool).collect(),
        interfaces: kinds.into_iter().collect(),
        nics: nics.collect(),
        pods: pods.map_err(failed).ok(),
        limited: agent.datapath.limits.dropped().map_err(failed).ok(),
        flows: flows.map_err(failed).ok(),
        ..NodeState::default()
    }
}

fn flow_table(datapath: &Datapath, pods: BTreeSet<u16>) -> Result<FlowTable, datapath::Error> {
    let mut table = FlowTable::default();
    for pod in pods {
        let (buckets, flows) = datapath.flows.count(pod)?;
        table.buckets += buckets;
        table.flows += flows;
    }
    Ok(table)
}

fn pool(usage: PoolUsage) -> PoolState {
    PoolState {
        family: match usage.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        },
        capacity: usage.total,
        free: usage.free,
        used: usage.used.into(),
        cooldown: usage.in_cooldown.into(),
        withheld: usage.withheld.len() as u128,
        is_disabled: usage.disabled,
        name: usage.name,
    }
}

/// Adds what the agent has in memory.
async fn of_agent(agent: &Agent, of_kernel: NodeState) -> NodeState {
    let catalog = agent.catalog();
    let mut problems = Problems {
        other_mode: agent.networks_in_other_modes(&catalog).len() as u64,
        ..Problems::default()
    };
    for problem in catalog.problems() {
        *match problem.consequence {
            Consequence::LeftOut => &mut problems.left_out,
            Consequence::FieldIgnored => &mut problems.field_ignored,
            Consequence::Narrowed => &mut problems.narrowed,
        } += 1;
    }
    let mut addresses_on_node = 0;
    if let Ok(facts) = agent.facts.get(&agent.host).await {
        agent.each_interface(|_, net| {
            let taken = net.ips().into_iter().filter(|ip| facts.takes(*ip));
            addresses_on_node += taken.count() as u64;
        });
    }
    let cloud = agent.cloud_report().await.ok().and_then(cloud);
    NodeState {
        is_ready: agent.metrics.is_ready(),
        is_installed: agent.installation.fault().is_none(),
        not_reconciled: agent.not_reconciled() as u64,
        addresses_on_node,
        problems,
        queue: agent.work.state_of_queue(),
        cloud,
        ..of_kernel
    }
}

/// Returns what is told of the cloud; nothing where there is none.
fn cloud(report: CloudReport) -> Option<CloudState> {
    report.cloud.as_ref()?;
    let mut withdrawn = 0;
    let nics = report.nics.into_iter().map(|nic| {
        let mut blocks = CloudBlocks {
            nic: nic.link.unwrap_or_else(|| nic.mac.to_string()),
            ..CloudBlocks::default()
        };
        for block in nic.blocks {
            *match block.state {
                BlockState::Usable => &mut blocks.usable,
                BlockState::Held => {
                    withdrawn += block.pods.len() as u64;
                    &mut blocks.held
                }
                BlockState::Waiting => &mut blocks.waiting,
            } += 1;
        }
        blocks
    });
    Some(CloudState {
        nics: nics.collect(),
        wanted: report.wanted.len() as u64,
        last_read: report.last_read,
        failures: report.failures.into(),
        withdrawn,
    })
}
