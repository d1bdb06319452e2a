//! The elected controller's work: definitions for networks, the pools' status, the ConfigMaps of
//! their leases and of nodes' addresses from the cloud, the pools that agents derived of those, Events on objects that were
//! left out.
//!
//! It is a process of its own with an identity of its own: an agent's token does not permit its writes.

use std::{
    collections::{BTreeMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use ebbtide_ipam::catalog::{Consequence, Problem};
use ebbtide_types::ObjectName;
use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api,
    core::DynamicObject,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event, watcher},
    },
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, warn};

use super::{
    attachments, cidrs, cloud_map,
    cluster::Cluster,
    endpoint::{self, EndpointStatus, NODE_LABEL},
    events::reference,
    evidence, lease_map,
    object::{Kind, name_of},
    pools::Pools,
    publish,
    published::Published,
    service_cidrs,
    usage::{self, Usage},
};

/// The pause between two rounds: a thousand pods that start change a pool's status once a round.
const PAUSE: Duration = Duration::from_secs(2);

/// The delay after a round with a failure.
const RETRY: Duration = Duration::from_secs(10);

/// The interval between two checks of what no watch reports.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The endpoints of all pods of the cluster.
#[derive(Debug, Default)]
struct Endpoints {
    known: BTreeMap<ObjectName, Endpoint>,
    listed: BTreeMap<ObjectName, Endpoint>,
    complete: bool,
}

#[derive(Debug)]
struct Endpoint {
    status: EndpointStatus,
    /// The metadata of an object that Spiderpool made and no agent manages.
    foreign: Option<Box<ObjectMeta>>,
}

impl Endpoints {
    fn take(&mut self, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                let (name, endpoint) = read(object);
                self.listed.insert(name, endpoint);
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                self.complete = true;
            }
            Event::Apply(object) => {
                let (name, endpoint) = read(object);
                self.known.insert(name, endpoint);
            }
            Event::Delete(object) => {
                self.known.remove(&name_of(&object.metadata));
            }
        }
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage::new();
        for (name, endpoint) in &self.known {
            usage::add(&mut usage, name, &endpoint.status);
        }
        usage
    }

    /// Deletes Spiderpool's endpoints whose pods were deleted: its finalizer would keep them.
    async fn clean(&self, cluster: &Cluster, look: impl Fn(&ObjectMeta) -> bool) {
        for (name, endpoint) in &self.known {
            let Some(meta) = endpoint.foreign.as_ref().filter(|meta| look(meta)) else {
                continue;
            };
            let done = async {
                if evidence::is_alive(cluster, name, &endpoint.status.current.uid).await? {
                    return Ok(());
                }
                publish::remove(cluster, name, ObjectMeta::clone(meta)).await
            };
            if let Err(e) = done.await {
                debug!("SpiderEndpoint {name}: {e}");
            }
        }
    }
}

fn read(object: DynamicObject) -> (ObjectName, Endpoint) {
    let status = object.data.get("status").cloned();
    let status = status.and_then(|status| serde_json::from_value(status).ok());
    let status: EndpointStatus = status.unwrap_or_default();
    let name = name_of(&object.metadata);
    let labels = object.metadata.labels.as_ref();
    let is_ours = labels.is_some_and(|labels| labels.contains_key(NODE_LABEL));
    // A virtual machine's endpoint has the machine's name, not its pod's.
    let is_pods = status.owner_controller_type != "VirtualMachineInstance";
    let foreign = (!is_ours && is_pods).then(|| Box::new(object.metadata));
    (name, Endpoint { status, foreign })
}

/// Does the controller's work until the task is aborted. All of it is idempotent.
pub async fn work(cluster: Arc<Cluster>) {
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &endpoint::resource());
    let events = watcher(api, Config::default().any_semantic()).default_backoff();
    let service_cidrs = service_cidrs::changes(cluster.client.clone());
    run(&cluster, events, service_cidrs).await;
}

async fn run<S, C>(cluster: &Cluster, events: S, service_cidrs: C)
where
    S: Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
    C: Stream<Item = ()>,
{
    let (mut events, mut service_cidrs) = (pin!(events), pin!(service_cidrs));
    let mut endpoints = Endpoints::default();
    let mut pools = None;
    let mut published = Published::default();
    let mut reported = HashSet::new();
    let mut changes = cluster.changes(&Kind::OF_CLUSTER);
    let mut look = interval(POLL_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut due, mut dirty) = (Instant::now(), true);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => {
                    endpoints.take(event);
                    dirty = true;
                }
                Some(Err(e)) => warn!("SpiderEndpoints: what is known stays in use: {e}"),
                None => return,
            },
            changed = changes.changed() => match changed {
                Ok(()) => dirty = true,
                Err(_) => return,
            },
            Some(()) = service_cidrs.next() => cidrs::reconcile(cluster).await,
            _ = look.tick() => {
                if let Some(pools) = &mut pools {
                    Pools::release_deleted(pools, cluster).await;
                }
                endpoints.clean(cluster, |_| true).await;
                cidrs::reconcile(cluster).await;
                lease_map::reclaim(cluster).await;
                dirty = true;
            }
            () = sleep_until(due), if dirty && endpoints.complete => {
                dirty = !round(cluster, &endpoints, &mut pools, &mut published).await;
                report(cluster, &mut reported).await;
                due = Instant::now() + if dirty { RETRY } else { PAUSE };
            }
        }
    }
}

/// Reconciles once. True if everything is in the desired state.
async fn round(
    cluster: &Cluster,
    endpoints: &Endpoints,
    pools: &mut Option<Pools>,
    published: &mut Published,
) -> bool {
    let definitions = attachments::reconcile(cluster).await
        & lease_map::prepare(cluster).await
        & cloud_map::prepare(cluster).await;
    let is_deleted = |meta: &ObjectMeta| meta.deletion_timestamp.is_some();
    endpoints.clean(cluster, is_deleted).await;
    let usage = endpoints.usage();
    let definitions = published.reconcile(cluster, &usage).await & definitions;
    if pools.is_none() {
        match Pools::read(cluster, &usage).await {
            Ok(read) => *pools = Some(read),
            Err(e) => warn!("SpiderIPPools cannot be listed: {e}"),
        }
    }
    match pools {
        Some(pools) => pools.reconcile(cluster, &usage).await && definitions,
        None => false,
    }
}

/// Records an Event on each object that was left out, and for each field without effect, once.
async fn report(cluster: &Cluster, reported: &mut HashSet<Problem>) {
    let problems: HashSet<Problem> = {
        let catalog = cluster.mirror().declared_catalog();
        catalog.problems().iter().cloned().collect()
    };
    for problem in problems.difference(reported) {
        let Some(about) = object_of(cluster, problem) else {
            continue;
        };
        let field = problem.field.as_deref().unwrap_or_default();
        let note = format!("{field}: {}", problem.message);
        let note = note.trim_start_matches(": ");
        let (reason, action) = match problem.consequence {
            Consequence::LeftOut => ("Invalid", "LeftOut".to_owned()),
            Consequence::Narrowed => ("Narrowed", "LeavingOut".to_owned()),
            // A second Event of the same reason and action would only increase the counter and lose its note.
            Consequence::FieldIgnored => ("NoEffect", format!("Ignoring {field}")),
        };
        cluster.events.warn(&about, reason, &action, note).await;
    }
    *reported = problems;
}

/// Returns the object that a problem is about, by kind and name.
fn object_of(
    cluster: &Cluster,
    problem: &Problem,
) -> Option<k8s_openapi::api::core::v1::ObjectReference> {
    let (kind, name) = problem.object.as_deref()?.split_once(' ')?;
    let kind = Kind::DECLARED
        .into_iter()
        .find(|each| each.name() == kind)?;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let name = ObjectName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let mirror = cluster.mirror();
    mirror
        .get(kind, &name)
        .map(|object| reference(kind, object))
}
