//! Reconciles the host's own part: what something on the node removes is restored and logged.
//!
//! systemd-networkd, NetworkManager, nm-cloud-setup and people remove rules and routes that they do not know; the
//! kernel itself drops a NIC's routes when the NIC goes down.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ebbtide_ipam::{catalog::Catalog, pool::Owner};
use ebbtide_kernel::{
    netlink::{
        Batch, Error, Netlink,
        hooks::TcHooks,
        model::NamespacePlan,
        state::{Missing, differing_sysctls},
        sysctl,
    },
    node::{self, Interest, NodeFacts},
    podnet::PodNet,
};
use tracing::{debug, warn};

use super::{Action, Failure, Outcome, RESYNC, Reconciler, Scope, locked};
use crate::{
    agent::{Agent, Drift, forwarding},
    heap,
};

/// The cooldown between two comparisons, however often something is removed.
const COOLDOWN: Duration = Duration::from_secs(1);

/// The log target of comparisons, at level debug, with the amount of data that the kernel returned.
const LOOKS: &str = "ebbtide_agent::looks";

/// The state that the node was last compared with.
#[derive(Debug, Default)]
pub(super) struct Seen {
    made_of: Option<MadeOf>,
    /// Objects that the kernel refuses and that are already logged as missing.
    refused: HashSet<String>,
    trimmed: Option<Instant>,
}

/// The inputs of all interfaces' plans.
#[derive(Debug)]
struct MadeOf {
    facts: Arc<NodeFacts>,
    catalog: Arc<Catalog>,
    /// Whether the Services' networks are known.
    is_known: bool,
}

impl MadeOf {
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.facts, &other.facts)
            && Arc::ptr_eq(&self.catalog, &other.catalog)
            && self.is_known == other.is_known
    }
}

/// Prepares the NICs, names the containers whose plans have changed, compares the host with the plans of all others,
/// and restores what it can.
pub(super) async fn reconcile(reconciler: &Reconciler) -> Result<Outcome, Failure> {
    let agent = &reconciler.agent;
    let cannot = |e: Error| Failure::new(format!("the host could not be reconciled: {e}"));
    let made_of = MadeOf {
        facts: agent.facts.get(&agent.host).await.map_err(cannot)?,
        catalog: agent.catalog(),
        is_known: agent.knows_services(),
    };
    let facts = Arc::clone(&made_of.facts);
    agent.withhold(&facts, &made_of.catalog);
    // A new NIC or a new address changes the plan, which is applied as a whole.
    agent.prepare_nics(&facts, None).await;
    let follow = enqueue_drifted(reconciler, made_of);
    // An interface that is being made looks incomplete. Those that were just named are applied as a whole.
    let at_rest = agent.idle_interfaces(|container| !follow.contains(container));
    let restore = restore(reconciler, &facts, &at_rest.interfaces).await;
    let (missing, mut refused) = restore.map_err(cannot)?;
    let is_complete = at_rest.is_complete;
    drop(at_rest);
    let events = &agent.metrics.events;
    let restored = say(&mut locked(&reconciler.node), missing, !refused.is_empty());
    restored.iter().for_each(|missing| events.restored(missing));
    trim(&mut locked(&reconciler.node));
    refused.extend(agent.nic_failures());
    match (refused.is_empty(), is_complete) {
        (false, _) => Err(Failure::new(refused.join("; "))),
        (true, false) => Ok(Outcome::Busy),
        (true, true) => Ok(Outcome::Done(
            Action::requeue(RESYNC).with_cooldown(COOLDOWN),
        )),
    }
}

/// Names the containers whose interfaces differ from what the node and the manifests require now, and returns them.
/// None is named again while nothing changes: a failure is repeated with its backoff.
fn enqueue_drifted(reconciler: &Reconciler, made_of: MadeOf) -> HashSet<String> {
    let agent = &reconciler.agent;
    let is_same = |last: &MadeOf| last.is_same(&made_of);
    if locked(&reconciler.node)
        .made_of
        .as_ref()
        .is_some_and(is_same)
    {
        return HashSet::new();
    }
    let facts = &made_of.facts;
    let mut drifted = HashSet::new();
    for (owner, net) in agent.interfaces() {
        if agent.is_without_nic(&net, facts) && agent.nic_of(facts, &net).is_none() {
            // It was removed with its NIC: another NIC may get the same index.
            agent.record_uplink(&owner, &net, facts);
        }
        match agent.drift(&owner, &net, facts) {
            Some(Drift::Plan | Drift::Nic) => drop(drifted.insert(owner.container_id)),
            Some(Drift::Unknown) | None => {}
        }
    }
    for container in &drifted {
        agent.work.enqueue_container(container, Scope::PLAN);
    }
    locked(&reconciler.node).made_of = Some(made_of);
    drifted
}

/// Logs a line for each missing object, and returns these. One that is refused is not logged again with each attempt.
fn say(seen: &mut Seen, missing: Vec<Missing>, is_refused: bool) -> Vec<Missing> {
    let names: HashSet<String> = missing.iter().map(ToString::to_string).collect();
    let mut restored = missing;
    restored.retain(|object| !seen.refused.contains(&object.to_string()));
    for object in &restored {
        warn!("{object} in the host: repaired; something on this node removes it");
    }
    seen.refused = match is_refused {
        true => names,
        false => HashSet::new(),
    };
    restored
}

/// Returns memory that bursts have left to the system, at most once per resync.
fn trim(seen: &mut Seen) {
    if seen.trimmed.is_none_or(|last| last.elapsed() >= RESYNC) {
        heap::trim();
        seen.trimmed = Some(Instant::now());
    }
}

/// Removes duplicates: two plans may contain the same object, as a NIC's table is in the NIC's plan and in its pods'.
fn without_repetition(plan: &mut NamespacePlan) {
    plan.routes.sort();
    plan.routes.dedup();
    plan.rules.sort();
    plan.rules.dedup();
    plan.filters.sort();
    plan.filters.dedup();
}

/// Writes the settings that have other values, and returns them.
fn settings(facts: &NodeFacts, plan: &NamespacePlan) -> Vec<Missing> {
    let mut all = NamespacePlan::default();
    all.sysctls.extend(forwarding(facts));
    all.sysctls.extend_from_slice(&plan.sysctls);
    let mut differing = differing_sysctls(&all);
    differing.retain(|missing| match missing {
        // One that cannot be read disappeared with its link.
        Missing::Sysctl(want, Some(_)) => match sysctl::write(want) {
            Ok(()) => true,
            Err(e) => {
                debug!("{e}");
                false
            }
        },
        _ => false,
    });
    differing
}

/// Returns what the host must have for its NICs and for these interfaces.
fn plan_of(agent: &Agent, interfaces: &[(Owner, Arc<PodNet>)]) -> NamespacePlan {
    let mut plan = NamespacePlan::default();
    if let Some(nics) = agent.nics() {
        plan.routes.extend_from_slice(&nics.plan.routes);
        plan.rules.extend_from_slice(&nics.plan.rules);
        plan.filters.extend_from_slice(&nics.plan.filters);
        plan.sysctls.extend_from_slice(&nics.plan.sysctls);
    }
    for (_, net) in interfaces {
        plan.neighbours.extend_from_slice(&net.in_host.neighbours);
        plan.routes.extend_from_slice(&net.in_host.routes);
        plan.rules.extend_from_slice(&net.in_host.rules);
        plan.filters.extend_from_slice(&net.in_host.filters);
    }
    without_repetition(&mut plan);
    plan
}

/// Restores what the host lacks. Returns that, and what the kernel refused of it.
async fn restore(
    reconciler: &Reconciler,
    facts: &NodeFacts,
    interfaces: &[(Owner, Arc<PodNet>)],
) -> Result<(Vec<Missing>, Vec<String>), Error> {
    let agent = &reconciler.agent;
    let subscription = locked(&reconciler.subscription).clone();
    let subscribe = |interest| {
        if let Some(subscription) = &subscription {
            subscription.subscribe(interest);
        }
    };
    if interfaces.is_empty() {
        subscribe(Interest::default());
        return Ok((Vec::new(), Vec::new()));
    }
    let host: &Netlink = &agent.host;
    let plan = plan_of(agent, interfaces);
    let before = host.received().await;
    let state = agent.datapath.state_of_host(host, &plan, &[]).await?;
    subscribe(Interest::of(&plan, &state.links));
    let mut batch = Batch::default();
    let mut restore = settings(facts, &plan);
    let mut revived = Vec::new();
    for (_, net) in interfaces {
        let Some(veth) = &net.veth else { continue };
        let Some(link) = state.links.get(&veth.host_name) else {
            continue;
        };
        if let Some(what) = link.differs(veth.mtu, Some(veth.host_mac)) {
            batch.repair(link, veth.mtu, Some(veth.host_mac));
            batch.set_up(&link.name, link.ifindex, None);
            revived.push(link.name.clone());
            restore.push(Missing::Link(link.name.clone(), what));
        }
    }
    // A link that is down takes no routes: its coming up is an event, and they are added then. One that does not exist
    // disappeared with its pod.
    let usable = |link: &str| {
        let found = state.links.get(link)?;
        (found.up || revived.contains(&found.name)).then_some(found.ifindex)
    };
    let missing = state.missing(&plan);
    let read = host.received().await - before;
    let (messages, bytes) = (read.messages, read.bytes);
    debug!(
        target: LOOKS,
        missing = missing.len(),
        messages,
        bytes,
        "the host was compared with the plans"
    );
    let hooks = match missing.is_empty() {
        true => TcHooks::default(),
        false => host.tc_hooks().await?,
    };
    for missing in missing {
        match &missing {
            Missing::Rule(rule) => batch.add_rule(rule),
            Missing::Route(route) => match usable(&route.link) {
                Some(index) => batch.add_route(route, index),
                None => continue,
            },
            Missing::Neighbour(neighbour) => match usable(&neighbour.link) {
                Some(index) => batch.add_neighbour(neighbour, index),
                None => continue,
            },
            Missing::Filter(filter) => match usable(&filter.link) {
                Some(index) => {
                    let programs = agent.datapath.programs();
                    let datapath = &agent.datapath;
                    let attached =
                        datapath.attach_in_host(&mut batch, &hooks, &programs, filter, index);
                    if attached.is_err() {
                        continue;
                    }
                }
                None => continue,
            },
            Missing::Sysctl(..) | Missing::Address(_) | Missing::Queue(_) | Missing::Link(..) => {
                continue;
            }
        }
        restore.push(missing);
    }
    // A refusal: the link disappeared meanwhile, or the kernel has a reason, and it is tried again.
    let refused = batch.run_all(host).await;
    let before_local = plan.rules.iter().filter(|rule| rule.priority == 0);
    node::put_before_local(host, before_local.map(|rule| rule.family)).await?;
    Ok((restore, refused.iter().map(ToString::to_string).collect()))
}
