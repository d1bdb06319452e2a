//! The node's view of the API server: keeps the mirror up to date and answers queries from it.

use std::{
    collections::BTreeSet,
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ebbtide_ipam::{
    catalog::{self, AddressSet, Catalog, Pool},
    pool::{Controller, Object, Subject},
};
use ebbtide_types::{Namespaces, ObjectName};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod as ApiPod};
use kube::{
    Api, Client,
    core::{DynamicObject, PartialObjectMeta},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, warn};

use super::{
    changes::{Changes, Versions},
    events::{Events, reference},
    mirror::Mirror,
    object::{Kind, of_metadata, own_leases, trimmed},
    saved::Saved,
    watches::{self, Scope},
};

/// How long a request waits for an object that the watch should deliver soon: the kubelet saw the
/// pod by the same kind of watch.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long it then waits for an answer of the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The delay that combines a burst of changes into one catalog.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// The interval between two writes of the mirror to disk.
const SAVE: Duration = Duration::from_secs(3);

/// How long an agent that ends waits for the last write.
const LAST_SAVE: Duration = Duration::from_secs(3);

/// The kinds that the catalog depends on.
const CATALOG: [Kind; 5] = [
    Kind::Pool,
    Kind::Network,
    Kind::Reserved,
    Kind::Coordinator,
    Kind::Lease,
];

/// The state of the API server, as far as this node has it.
pub struct Cluster {
    /// The client, for writes.
    pub client: Client,
    /// This node's name, or the controller's own name.
    pub node: String,
    /// Events for a person to see.
    pub events: Events,
    mirror: Mutex<Mirror>,
    /// Names of the CNI configurations with which the pod chooses its networks.
    own_networks: Mutex<BTreeSet<String>>,
    /// The mirror's file, if it is kept on disk; locked during a write.
    saved: tokio::sync::Mutex<Option<Saved>>,
    /// Notifies waiters of changes of the mirror.
    versions: Versions,
    /// Whether the addresses of pods that Spiderpool served are known.
    taken_over: watch::Sender<bool>,
}

/// Why a pod's request cannot be served: facts about it are missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The API server reports that the object does not exist.
    #[error("{kind} {name} does not exist, says the API server")]
    Gone {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The object was never seen, and the API server does not answer.
    #[error("{kind} {name} was never seen, and the API server does not answer: {reason}")]
    NoAnswer {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
        /// What was tried.
        reason: String,
    },
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Loads the saved mirror and starts the watches. The catalog is the saved one until the API
    /// server answers. Ends with the runtime.
    pub fn start(
        client: Client,
        node: String,
        state_dir: &Path,
    ) -> (Arc<Self>, watch::Receiver<Arc<Catalog>>) {
        let (saved, mirror) = Saved::load(state_dir);
        let namespaces = Namespaces::of_agent(client.default_namespace());
        let catalog = mirror.catalog(&node).named_in(namespaces);
        let (sender, receiver) = watch::channel(Arc::new(catalog));
        let cluster = Self::watching(client, node, mirror, Some(saved), &Kind::ALL);
        tokio::spawn(publish(Arc::clone(&cluster), sender));
        tokio::spawn(save(Arc::clone(&cluster)));
        (cluster, receiver)
    }

    /// Starts watches of cluster-wide objects, as the controller `name`. Keeps nothing on disk. Ends with the runtime.
    #[must_use]
    pub fn start_controller(client: Client, name: String) -> Arc<Self> {
        Self::watching(client, name, Mirror::default(), None, &Kind::OF_CLUSTER)
    }

    /// Returns a candidate for an election that watches nothing, of this name.
    #[must_use]
    pub fn without_watches(client: Client, name: String) -> Arc<Self> {
        Self::watching(client, name, Mirror::default(), None, &[])
    }

    fn watching(
        client: Client,
        node: String,
        mirror: Mirror,
        saved: Option<Saved>,
        kinds: &[Kind],
    ) -> Arc<Self> {
        let cluster = Arc::new(Self {
            events: Events::new(client.clone(), &node),
            client,
            node,
            mirror: Mutex::new(mirror),
            own_networks: Mutex::default(),
            saved: tokio::sync::Mutex::new(saved),
            versions: Versions::default(),
            taken_over: watch::Sender::new(false),
        });
        let scope = Scope::of(kinds);
        for kind in kinds {
            let (kind, told) = (*kind, Arc::clone(&cluster));
            let (client, node) = (cluster.client.clone(), cluster.node.clone());
            tokio::spawn(watches::follow(client, node, scope, kind, move |change| {
                told.change(kind, |mirror| mirror.apply(kind, change));
            }));
        }
        cluster
    }

    /// Locks the mirror: for moments only.
    pub(super) fn mirror(&self) -> MutexGuard<'_, Mirror> {
        // A panic during a change leaves the maps of values whole.
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes objects of a kind in the mirror; `change` returns whether it did.
    pub(super) fn change(&self, kind: Kind, change: impl FnOnce(&mut Mirror) -> bool) {
        if change(&mut self.mirror()) {
            self.versions.bump(kind);
        }
    }

    /// Records that Ebbtide writes the `network-status` of pods of this CNI configuration: no other
    /// plugin (Multus) calls it.
    pub fn record_own_network(&self, name: &str) {
        let mut names = self
            .own_networks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if names.insert(name.to_owned()) {
            drop(names);
            // The first pod's address may have been published before this, without its `network-status`.
            self.versions.bump(Kind::Pod);
        }
    }

    /// Whether [`Cluster::record_own_network`] was called for it.
    #[must_use]
    pub fn is_own_network(&self, name: &str) -> bool {
        let names = self
            .own_networks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        names.contains(name)
    }

    /// Returns a receiver that is notified of each change of these kinds, and of no other.
    #[must_use]
    pub fn changes(&self, kinds: &[Kind]) -> Changes {
        self.versions.subscribe(kinds)
    }

    /// Writes the latest changes to disk, before the agent ends.
    pub async fn save_last(&self) {
        let saved = timeout(LAST_SAVE, self.store()).await;
        let saved = saved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(e) = saved {
            warn!("what the API server said last could not be kept on disk: {e}");
        }
    }

    /// Whether the cluster-wide objects were received from the API server, now or by an earlier agent.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.mirror().knows(Kind::Coordinator)
    }

    /// Allows addresses to be handed out.
    pub(super) fn set_taken_over(&self) {
        self.taken_over.send_replace(true);
    }

    /// Whether addresses may be handed out: only once the addresses of pods that Spiderpool served
    /// are known. Waits briefly for that.
    pub async fn is_taken_over(&self) -> bool {
        let mut taken_over = self.taken_over.subscribe();
        let done = timeout(TIMEOUT, taken_over.wait_for(|done| *done)).await;
        matches!(done, Ok(Ok(_)))
    }

    /// Returns all objects of a kind.
    #[must_use]
    pub fn all(&self, kind: Kind) -> Vec<DynamicObject> {
        self.mirror().all(kind).cloned().collect()
    }

    /// Returns one object.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &ObjectName) -> Option<DynamicObject> {
        self.mirror().get(kind, name).cloned()
    }

    /// Returns the facts about a pod: from memory, or after waiting briefly for the watch, or from
    /// one request to the API server. `uid` is the runtime's, empty if it gave none.
    ///
    /// # Errors
    /// [`Unknown`] if the pod does not exist, or was never seen and the API server does not answer.
    pub async fn pod(&self, name: &ObjectName, uid: &str) -> Result<Subject, Unknown> {
        let namespace_name = ObjectName {
            namespace: String::new(),
            name: name.namespace.clone(),
        };
        let pod = match self.wait_for(Kind::Pod, name, |pod| is_pod(pod, uid)).await {
            Some(pod) => pod,
            None => {
                let api: Api<PartialObjectMeta<ApiPod>> =
                    Api::namespaced(self.client.clone(), &name.namespace);
                let pod = ask(Kind::Pod, name, api.get_opt(&name.name)).await?;
                let pod = of_metadata(pod);
                if !is_pod(&pod, uid) {
                    return Err(Unknown::Gone {
                        kind: Kind::Pod.name(),
                        name: format!("{name} with UID {uid}"),
                    });
                }
                self.change(Kind::Pod, |mirror| mirror.set(Kind::Pod, pod.clone()));
                pod
            }
        };
        let namespace = match self
            .wait_for(Kind::Namespace, &namespace_name, |_| true)
            .await
        {
            Some(namespace) => namespace,
            None => {
                let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
                let namespace = api.get_opt(&name.namespace);
                of_metadata(ask(Kind::Namespace, &namespace_name, namespace).await?)
            }
        };
        let node = self.mirror().all(Kind::Node).next().cloned();
        Ok(Subject {
            pod: subject(&pod),
            namespace: subject(&namespace),
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            controller: controller_of(&pod),
            node_labels: node.map(|node| node.metadata.labels.unwrap_or_default()),
        })
    }

    /// Writes the mirror to disk; returns when it is written.
    async fn store(&self) -> io::Result<()> {
        let mut saved = self.saved.lock().await;
        let Some(saved) = &mut *saved else {
            return Ok(());
        };
        // Serialized under the lock: an older state never replaces a newer one.
        let text = self.mirror().to_json().map_err(io::Error::other)?;
        saved.store(text).await
    }

    /// Removes addresses from this node's lease, in memory and on disk.
    pub(super) async fn shrink_lease(&self, pool: &Pool, given: &AddressSet) -> io::Result<()> {
        self.change(Kind::Lease, |mirror| {
            mirror.shrink_lease(pool, &self.node, given);
            true
        });
        self.store().await
    }

    /// Stores the leases as the API server has just returned them from a write.
    pub(super) fn record_leases(&self, map: ConfigMap) {
        let object = serde_json::to_value(map).and_then(serde_json::from_value::<DynamicObject>);
        if let Ok(object) = object {
            self.change(Kind::Lease, |mirror| {
                mirror.set(
                    Kind::Lease,
                    trimmed(Kind::Lease, own_leases(&self.node, object)),
                )
            });
        }
    }

    /// Records a warning Event on a pod, for what it did not get, in the background.
    pub fn send_pod_event(self: &Arc<Self>, name: ObjectName, reason: &'static str, note: String) {
        self.send_event(Kind::Pod, &name, (reason, "Adding"), note);
    }

    /// Records a warning Event on this agent's Node, in the background. An unknown Node gets none.
    pub fn send_node_event(
        self: &Arc<Self>,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        let node = ObjectName {
            namespace: String::new(),
            name: self.node.clone(),
        };
        self.send_event(Kind::Node, &node, (reason, action), note);
    }

    fn send_event(
        self: &Arc<Self>,
        kind: Kind,
        name: &ObjectName,
        (reason, action): (&'static str, &'static str),
        note: String,
    ) {
        let Some(object) = self.get(kind, name) else {
            return;
        };
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            let about = reference(kind, &object);
            let events = &cluster.events;
            events.warn(&about, reason, action, &note).await;
        });
    }

    async fn wait_for(
        &self,
        kind: Kind,
        name: &ObjectName,
        fits: impl Fn(&DynamicObject) -> bool,
    ) -> Option<DynamicObject> {
        let mut changes = self.changes(&[kind]);
        let deadline = Instant::now() + TIMEOUT;
        loop {
            changes.mark_unchanged();
            if let Some(object) = self.get(kind, name).filter(&fits) {
                return Some(object);
            }
            match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }
}

async fn ask<T>(
    kind: Kind,
    name: &ObjectName,
    question: impl Future<Output = kube::Result<Option<T>>>,
) -> Result<T, Unknown> {
    debug!(
        "{} {name} was not delivered by the watch yet: requesting it",
        kind.name()
    );
    let no_answer = |reason: String| Unknown::NoAnswer {
        kind: kind.name(),
        name: name.to_string(),
        reason,
    };
    match timeout(REQUEST_TIMEOUT, question).await {
        Ok(Ok(Some(object))) => Ok(object),
        Ok(Ok(None)) => Err(Unknown::Gone {
            kind: kind.name(),
            name: name.to_string(),
        }),
        Ok(Err(e)) => Err(no_answer(e.to_string())),
        Err(_) => Err(no_answer(format!("waited {} s", REQUEST_TIMEOUT.as_secs()))),
    }
}

/// Whether the object is the pod with the runtime's `uid`. The kubelet has another UID for a static
/// pod than the API server, which stores the kubelet's in an annotation.
fn is_pod(pod: &DynamicObject, uid: &str) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let hash = annotations.and_then(|all| all.get("kubernetes.io/config.hash"));
    uid.is_empty()
        || pod.metadata.uid.as_deref() == Some(uid)
        || hash.is_some_and(|hash| hash == uid)
}

fn subject(object: &DynamicObject) -> Object {
    let meta = &object.metadata;
    Object {
        name: meta.name.clone().unwrap_or_default(),
        labels: Some(meta.labels.clone().unwrap_or_default()),
        annotations: meta.annotations.clone().unwrap_or_default(),
    }
}

fn controller_of(pod: &DynamicObject) -> Option<Controller> {
    let owners = pod.metadata.owner_references.as_deref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some(Controller {
        kind: owner.kind.clone(),
        name: owner.name.clone(),
    })
}

/// Publishes a new catalog after each burst of changes.
async fn publish(cluster: Arc<Cluster>, sender: watch::Sender<Arc<Catalog>>) {
    let mut changes = cluster.changes(&CATALOG);
    loop {
        let namespaces = Namespaces::of_agent(cluster.client.default_namespace());
        let catalog = cluster.mirror().catalog(&cluster.node);
        let catalog = catalog.named_in(namespaces);
        catalog::publish(&sender, catalog);
        tokio::select! {
            () = sender.closed() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(DEBOUNCE).await;
        changes.mark_unchanged();
    }
}

/// Saves the mirror to disk: changes of pools and networks at once, those of pods and namespaces every [`SAVE`] at most.
async fn save(cluster: Arc<Cluster>) {
    let mut changes = cluster.changes(&Kind::ALL);
    let mut declared = cluster.changes(&CATALOG);
    while changes.changed().await.is_ok() {
        declared.mark_unchanged();
        if let Err(e) = cluster.store().await {
            warn!("what the API server says could not be kept on disk: {e}");
        }
        tokio::select! {
            () = tokio::time::sleep(SAVE) => {}
            _or_ended = declared.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
