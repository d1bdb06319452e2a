//! Watches of the API server, one per kind, until the process ends.

use std::pin::pin;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event, watcher},
    },
};
use tracing::{info, warn};

use super::{
    lease_table,
    mirror::Change,
    node_cloud,
    object::{Kind, name_of, of_metadata, own_leases, resource, trimmed},
};

/// Whose objects are watched, of the kinds that nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// An agent: its own node's.
    Node,
    /// The controller: those of all nodes.
    Cluster,
}

impl Scope {
    /// Returns the scope of whoever watches these kinds: only agents watch pods, their node's.
    pub(super) fn of(kinds: &[Kind]) -> Self {
        if kinds.contains(&Kind::Pod) {
            Self::Node
        } else {
            Self::Cluster
        }
    }
}

/// Passes all changes of one kind that `node` needs to `change`. Unreadable objects keep their last
/// state. The watch restarts by itself, with a backoff of up to 30 s.
pub(super) async fn follow(
    client: Client,
    node: String,
    scope: Scope,
    kind: Kind,
    change: impl Fn(Change),
) {
    // From the API server's watch cache, not etcd: a thousand agents may start at once.
    let config = || Config::default().any_semantic();
    match kind {
        Kind::Pod => {
            let api: Api<PartialObjectMeta<Pod>> = Api::all(client);
            let mine = config().fields(&format!("spec.nodeName={node}"));
            read(kind, watcher(api, mine).map_ok(metadata), change).await;
        }
        Kind::Node => {
            let api: Api<PartialObjectMeta<Node>> = Api::all(client);
            let wanted = match scope {
                Scope::Node => config().fields(&format!("metadata.name={node}")),
                Scope::Cluster => config(),
            };
            read(kind, watcher(api, wanted).map_ok(metadata), change).await;
        }
        Kind::Namespace => {
            let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
            read(kind, watcher(api, config()).map_ok(metadata), change).await;
        }
        Kind::Lease => {
            let api: Api<DynamicObject> = Api::default_namespaced_with(client, &resource(kind));
            // Not from the watch cache: addresses that were given back must not reappear.
            let leases = Config::default().labels(lease_table::LABEL);
            let own = |event| map(event, |object| own_leases(&node, object));
            read(kind, watcher(api, leases).map_ok(own), change).await;
        }
        Kind::NodeCloud => {
            let api: Api<DynamicObject> = Api::default_namespaced_with(client, &resource(kind));
            let wanted = match scope {
                // Not from the watch cache: a wish that was dropped and came back must not be dropped again.
                Scope::Node => {
                    let name = format!("metadata.name={}", node_cloud::map_of(&node));
                    Config::default().fields(&name)
                }
                Scope::Cluster => config().labels(node_cloud::LABEL),
            };
            read(kind, watcher(api, wanted), change).await;
        }
        Kind::Pool | Kind::Network | Kind::Reserved | Kind::Coordinator | Kind::Attachment => {
            let resource = resource(kind);
            let api: Api<DynamicObject> = Api::all_with(client, &resource);
            let complete = move |event| map(event, |object| typed(object, &resource));
            read(kind, watcher(api, config()).map_ok(complete), change).await;
        }
    }
}

/// Sets the types, which items of a list lack.
fn typed(mut object: DynamicObject, resource: &ApiResource) -> DynamicObject {
    if object.types.is_none() {
        object.types = DynamicObject::new("", resource).types;
    }
    object
}

fn metadata<K>(event: Event<PartialObjectMeta<K>>) -> Event<DynamicObject> {
    map(event, of_metadata)
}

fn map<A, B>(event: Event<A>, change: impl FnOnce(A) -> B) -> Event<B> {
    match event {
        Event::Apply(object) => Event::Apply(change(object)),
        Event::Delete(object) => Event::Delete(change(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(change(object)),
        Event::InitDone => Event::InitDone,
    }
}

async fn read<S>(kind: Kind, events: S, change: impl Fn(Change))
where
    S: Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
{
    let mut events = pin!(events.default_backoff());
    let mut listed = Vec::new();
    let mut failing = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(trimmed(kind, object)),
            Ok(Event::InitDone) => {
                change(Change::All(std::mem::take(&mut listed)));
            }
            Ok(Event::Apply(object)) => {
                change(Change::Set(Box::new(trimmed(kind, object))));
            }
            Ok(Event::Delete(object)) => {
                change(Change::Remove(name_of(&object.metadata)));
            }
            Err(e) => {
                if !failing {
                    warn!("{} objects: what is known stays in use: {e}", kind.name());
                }
                failing = true;
                continue;
            }
        }
        if failing {
            info!("{} objects: the API server answers again", kind.name());
            failing = false;
        }
    }
}
