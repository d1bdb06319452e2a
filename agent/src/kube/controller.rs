//! What the elected agent does: definitions for networks, the pools' status, Events on objects
//! that were left out.

use std::{
    collections::{BTreeMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use kube::{
    Api,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event, watcher},
    },
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::warn;

use super::{
    attachments, cidrs,
    cluster::Cluster,
    endpoint::EndpointStatus,
    events::reference,
    leases,
    object::{Kind, name_of},
    pools::Pools,
    usage::{self, Usage},
};
use crate::catalog::{ObjectName, Problem};

/// Between two rounds of writing: a thousand pods that start change a pool's status once a round.
const PAUSE: Duration = Duration::from_secs(2);

/// After a round in which something failed.
const RETRY: Duration = Duration::from_secs(10);

/// Between two looks at what nothing tells us of.
const LOOK: Duration = Duration::from_secs(60);

/// The endpoints of all pods of the cluster: the elected agent alone has them.
#[derive(Debug, Default)]
struct Endpoints {
    known: BTreeMap<ObjectName, EndpointStatus>,
    listed: BTreeMap<ObjectName, EndpointStatus>,
    complete: bool,
}

impl Endpoints {
    fn take(&mut self, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                let (name, status) = read(object);
                self.listed.insert(name, status);
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                self.complete = true;
            }
            Event::Apply(object) => {
                let (name, status) = read(object);
                self.known.insert(name, status);
            }
            Event::Delete(object) => {
                self.known.remove(&name_of(&object.metadata));
            }
        }
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage::new();
        for (name, status) in &self.known {
            usage::add(&mut usage, name, status);
        }
        usage
    }
}

fn read(object: DynamicObject) -> (ObjectName, EndpointStatus) {
    let status = object.data.get("status").cloned();
    let status = status.and_then(|status| serde_json::from_value(status).ok());
    (name_of(&object.metadata), status.unwrap_or_default())
}

/// How the API server calls SpiderEndpoints.
pub(super) fn resource() -> ApiResource {
    let gvk = GroupVersionKind::gvk(crate::catalog::manifest::GROUP, "v2beta1", "SpiderEndpoint");
    ApiResource::from_gvk_with_plural(&gvk, "spiderendpoints")
}

/// Does it until the task is aborted. All of it is idempotent.
pub async fn work(cluster: Arc<Cluster>) {
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource());
    let events = watcher(api, Config::default().any_semantic()).default_backoff();
    run(&cluster, events).await;
}

async fn run<S>(cluster: &Cluster, events: S)
where
    S: Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
{
    let mut events = pin!(events);
    let mut endpoints = Endpoints::default();
    let mut pools = None;
    let mut reported = HashSet::new();
    let mut changes = cluster.changes();
    let mut look = interval(LOOK);
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
            _ = look.tick() => {
                if let Some(pools) = &mut pools {
                    Pools::let_go(pools, cluster).await;
                }
                cidrs::reconcile(cluster).await;
                leases::reclaim(cluster).await;
                dirty = true;
            }
            () = sleep_until(due), if dirty && endpoints.complete => {
                dirty = !round(cluster, &endpoints, &mut pools).await;
                report(cluster, &mut reported).await;
                due = Instant::now() + if dirty { RETRY } else { PAUSE };
            }
        }
    }
}

/// True if everything is as it should be now.
async fn round(cluster: &Cluster, endpoints: &Endpoints, pools: &mut Option<Pools>) -> bool {
    let definitions = attachments::reconcile(cluster).await;
    let usage = endpoints.usage();
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

/// An Event on each object that was left out, once.
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
        cluster
            .events
            .warn(&about, "Invalid", "LeftOut", note)
            .await;
    }
    *reported = problems;
}

/// The object that a problem is about, by kind and name.
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
