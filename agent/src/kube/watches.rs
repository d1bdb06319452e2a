//! One watch a kind, until the process ends.

use std::{pin::pin, sync::Arc};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api,
    core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event, watcher},
    },
};
use serde_json::Value;
use tracing::{info, warn};

use super::{
    cluster::Cluster,
    lease_map::LABEL,
    object::{Kind, name_of, own_leases, trimmed},
};
use crate::catalog::manifest::GROUP;

/// Keeps one kind of the mirror up to date. What cannot be read stays as it was; the watch comes
/// back by itself, ever more slowly (up to 30 s between two tries).
pub(super) async fn follow(cluster: Arc<Cluster>, kind: Kind) {
    let client = cluster.client.clone();
    // From the API server's memory, not etcd's: a thousand agents may start at once.
    let config = || Config::default().any_semantic();
    match kind {
        Kind::Pod => {
            let api: Api<PartialObjectMeta<Pod>> = Api::all(client);
            let mine = config().fields(&format!("spec.nodeName={}", cluster.node));
            read(&cluster, kind, watcher(api, mine).map_ok(metadata)).await;
        }
        Kind::Node => {
            let api: Api<PartialObjectMeta<Node>> = Api::all(client);
            let mine = config().fields(&format!("metadata.name={}", cluster.node));
            read(&cluster, kind, watcher(api, mine).map_ok(metadata)).await;
        }
        Kind::Namespace => {
            let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
            read(&cluster, kind, watcher(api, config()).map_ok(metadata)).await;
        }
        Kind::Lease => {
            let resource = resource(kind);
            let api: Api<DynamicObject> = Api::default_namespaced_with(client, &resource);
            // Not from the API server's memory: what was given back must not come again.
            let leases = Config::default().labels(LABEL);
            let own = |event| map(event, |object| own_leases(&cluster.node, object));
            read(&cluster, kind, watcher(api, leases).map_ok(own)).await;
        }
        Kind::Pool | Kind::Network | Kind::Reserved | Kind::Coordinator | Kind::Attachment => {
            let resource = resource(kind);
            let api: Api<DynamicObject> = Api::all_with(client, &resource);
            let complete = move |event| map(event, |object| typed(object, &resource));
            read(&cluster, kind, watcher(api, config()).map_ok(complete)).await;
        }
    }
}

/// How the API server calls a kind of ours. Objects are read without their types: one that does not
/// fit its type must not stop the others.
pub(super) fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = match kind {
        Kind::Pool => (GROUP, "v2beta1", "spiderippools"),
        Kind::Network => (GROUP, "v2beta1", "spidermultusconfigs"),
        Kind::Reserved => (GROUP, "v2beta1", "spiderreservedips"),
        Kind::Coordinator => (GROUP, "v2beta1", "spidercoordinators"),
        Kind::Attachment => ("k8s.cni.cncf.io", "v1", "network-attachment-definitions"),
        Kind::Node => ("", "v1", "nodes"),
        Kind::Pod => ("", "v1", "pods"),
        Kind::Namespace => ("", "v1", "namespaces"),
        Kind::Lease => ("", "v1", "configmaps"),
    };
    let gvk = GroupVersionKind::gvk(group, version, kind.name());
    ApiResource::from_gvk_with_plural(&gvk, plural)
}

/// Items of a list come without their types.
fn typed(mut object: DynamicObject, resource: &ApiResource) -> DynamicObject {
    if object.types.is_none() {
        object.types = DynamicObject::new("", resource).types;
    }
    object
}

/// The metadata as an object like any other.
pub(super) fn of_metadata<K>(meta: PartialObjectMeta<K>) -> DynamicObject {
    // Of metadata the same is kept, whatever it is of.
    let kind = Kind::Pod;
    let object = DynamicObject {
        types: None,
        metadata: meta.metadata,
        data: Value::Null,
    };
    trimmed(kind, object)
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

async fn read<S>(cluster: &Cluster, kind: Kind, events: S)
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
                let all = std::mem::take(&mut listed);
                cluster.change(|mirror| mirror.replace(kind, all));
            }
            Ok(Event::Apply(object)) => {
                cluster.change(|mirror| mirror.set(kind, trimmed(kind, object)));
            }
            Ok(Event::Delete(object)) => {
                cluster.change(|mirror| mirror.remove(kind, &name_of(&object.metadata)));
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
