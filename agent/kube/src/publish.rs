//! Publishes this node's pods: a SpiderEndpoint each, and the `network-status` annotation. Retried
//! in the background until it succeeds; no pod waits for it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::podnet::PodNet;
use ebbtide_types::ObjectName;
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    core::{DynamicObject, PartialObjectMeta},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};
use tracing::{debug, warn};

use super::{
    attachments::MANAGER,
    cluster::Cluster,
    endpoint::{
        self, EndpointRoute, EndpointStatus, InterfaceAllocation, NODE_LABEL, PodAllocation,
        endpoints,
    },
    object::{Kind, name_of},
};

/// The delay from a change to its write: a pod's interfaces, and pods that start together, share one round.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// The delay after a round with a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The interval between two rounds without a change.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The annotation that lists the pod's interfaces (specification of the Network Plumbing Working Group, 5.1).
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The interfaces of one node.
pub type Interfaces = Vec<(Owner, Arc<PodNet>)>;

/// The desired state of one pod.
#[derive(Debug, Clone, PartialEq)]
struct Desired {
    status: EndpointStatus,
    /// None where another plugin writes it.
    network_status: Option<String>,
}

/// Publishes until the process ends. `interfaces` returns this node's current ones, and `changes`
/// reports that they may have changed ([`ebbtide_ipam::pool::Pools::subscribe`]).
pub async fn run(
    cluster: Arc<Cluster>,
    mut changes: watch::Receiver<u64>,
    interfaces: impl Fn() -> Interfaces,
) {
    let mut written = loop {
        match own(&cluster).await {
            Ok(written) => break written,
            Err(e) => debug!("SpiderEndpoints of this node: {e}"),
        }
        sleep(RETRY).await;
    };
    let mut objects = cluster.changes(&[Kind::Pod]);
    loop {
        sleep(DEBOUNCE).await;
        changes.mark_unchanged();
        objects.mark_unchanged();
        let desired = desired(&cluster, &interfaces());
        let pause = if write(&cluster, &desired, &mut written).await {
            POLL_INTERVAL
        } else {
            RETRY
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = objects.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

/// Returns what this node's agents wrote before.
async fn own(cluster: &Cluster) -> kube::Result<BTreeMap<ObjectName, EndpointStatus>> {
    let mine = ListParams::default().labels(&format!("{NODE_LABEL}={}", cluster.node));
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &endpoint::resource());
    let list = api.list(&mine).await?;
    let read = |object: DynamicObject| {
        let status = object.data.get("status").cloned().unwrap_or(Value::Null);
        let status = serde_json::from_value(status).unwrap_or_default();
        (name_of(&object.metadata), status)
    };
    Ok(list.into_iter().map(read).collect())
}

/// Returns the desired state of every pod that the API server has and that has interfaces here.
fn desired(cluster: &Cluster, interfaces: &Interfaces) -> BTreeMap<ObjectName, Desired> {
    let mut pods: BTreeMap<ObjectName, Vec<&(Owner, Arc<PodNet>)>> = BTreeMap::new();
    for each in interfaces {
        if let Some((namespace, name)) = each.1.pod.split_once('/') {
            let name = ObjectName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            pods.entry(name).or_default().push(each);
        }
    }
    let mirror = cluster.mirror();
    pods.into_iter()
        .filter_map(|(name, mut interfaces)| {
            let pod = mirror.get(Kind::Pod, &name)?;
            // Its first interface, which has the veth to the host, comes first.
            interfaces.sort_by_key(|(owner, net)| (net.veth.is_none(), owner.interface.clone()));
            let network_status = interfaces
                .first()
                .filter(|first| cluster.is_own_network(&first.0.network))
                .map(|_| network_status(&interfaces));
            let (kind, owner) = controller_of(pod);
            let status = EndpointStatus {
                current: PodAllocation {
                    uid: pod.metadata.uid.clone().unwrap_or_default(),
                    node: cluster.node.clone(),
                    ips: interfaces.iter().map(|(_, net)| allocation(net)).collect(),
                },
                owner_controller_type: kind,
                owner_controller_name: owner,
            };
            Some((
                name,
                Desired {
                    status,
                    network_status,
                },
            ))
        })
        .collect()
}

fn allocation(net: &PodNet) -> InterfaceAllocation {
    let mut all = InterfaceAllocation {
        interface: net.interface.clone(),
        vlan: Some(0),
        clean_gateway: Some(false),
        routes: Some(Vec::new()),
        ..InterfaceAllocation::default()
    };
    for each in &net.addresses {
        let (address, pool) = (Some(each.address.to_string()), Some(each.pool.clone()));
        let gateway = each.gateway.map(|gateway| gateway.to_string());
        if each.address.addr().is_ipv4() {
            (all.ipv4, all.ipv4_pool, all.ipv4_gateway) = (address, pool, gateway);
        } else {
            (all.ipv6, all.ipv6_pool, all.ipv6_gateway) = (address, pool, gateway);
        }
        let routes = each.routes.iter().map(|(dst, gw)| EndpointRoute {
            dst: dst.to_string(),
            gw: gw.to_string(),
        });
        all.routes.get_or_insert_default().extend(routes);
    }
    all
}

/// Returns the kind and name of the pod's owner, as Spiderpool does: a Deployment, not its
/// ReplicaSet; the pod itself if it has no owner.
fn controller_of(pod: &DynamicObject) -> (String, String) {
    let meta = &pod.metadata;
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return ("Pod".into(), meta.name.clone().unwrap_or_default());
    };
    let labels = meta.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(&format!("-{hash}")));
    match (owner.kind.as_str(), deployment) {
        ("ReplicaSet", Some(name)) => ("Deployment".into(), name.to_owned()),
        (kind, _) => (kind.to_owned(), owner.name.clone()),
    }
}

fn network_status(interfaces: &[&(Owner, Arc<PodNet>)]) -> String {
    let each = interfaces.iter().enumerate().map(|(position, (_, net))| {
        let mut status = json!({
            "name": net.network,
            "interface": net.interface,
            "ips": net.ips(),
            "dns": {},
        });
        if position == 0 {
            status["default"] = json!(true);
        }
        status
    });
    Value::Array(each.collect()).to_string()
}

/// Writes the differences. True if everything is in the desired state.
async fn write(
    cluster: &Cluster,
    desired: &BTreeMap<ObjectName, Desired>,
    written: &mut BTreeMap<ObjectName, EndpointStatus>,
) -> bool {
    let mut done = true;
    for (name, wanted) in desired {
        if written.get(name) != Some(&wanted.status) {
            match apply(cluster, name, &wanted.status).await {
                Ok(()) => {
                    written.insert(name.clone(), wanted.status.clone());
                }
                Err(e) => {
                    warn!("SpiderEndpoint {name} is not written yet: {e}");
                    done = false;
                }
            }
        }
        if let Some(text) = &wanted.network_status
            && let Err(e) = annotate(cluster, name, &wanted.status.current.uid, text).await
        {
            warn!("{NETWORK_STATUS} of pod {name} is not written yet: {e}");
            done = false;
        }
    }
    let gone: Vec<ObjectName> = written
        .keys()
        .filter(|name| !desired.contains_key(*name))
        .cloned()
        .collect();
    for name in gone {
        match delete(cluster, &name).await {
            Ok(()) => {
                written.remove(&name);
            }
            Err(e) => {
                warn!("SpiderEndpoint {name} is not deleted yet: {e}");
                done = false;
            }
        }
    }
    done
}

async fn apply(cluster: &Cluster, name: &ObjectName, status: &EndpointStatus) -> kube::Result<()> {
    let types = endpoint::resource();
    let pod = OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: name.name.clone(),
        uid: status.current.uid.clone(),
        ..OwnerReference::default()
    };
    let object = json!({
        "apiVersion": types.api_version,
        "kind": types.kind,
        "metadata": {
            "name": name.name,
            // Longer names do not fit into a label's value; such an endpoint is removed only with its pod.
            "labels": if cluster.node.len() < 64 { json!({ NODE_LABEL: cluster.node }) } else { json!({}) },
            "ownerReferences": [pod],
        },
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    endpoints(cluster, &name.namespace)
        .patch(&name.name, &params, &Patch::Apply(&object))
        .await?;
    Ok(())
}

/// Deletes the endpoint if it is still this node's: the pod's successor may have one already.
async fn delete(cluster: &Cluster, name: &ObjectName) -> kube::Result<()> {
    let api = endpoints(cluster, &name.namespace);
    let Some(found) = api.get_opt(&name.name).await? else {
        return Ok(());
    };
    let node = found.data.pointer("/status/current/node");
    if node.and_then(Value::as_str) != Some(&cluster.node) {
        return Ok(());
    }
    remove(cluster, name, found.metadata).await
}

/// Deletes this very endpoint.
pub(super) async fn remove(
    cluster: &Cluster,
    name: &ObjectName,
    found: ObjectMeta,
) -> kube::Result<()> {
    let api = endpoints(cluster, &name.namespace);
    // Spiderpool's finalizer, on its old objects, would never be removed.
    if found.finalizers.is_some() {
        let patch = json!({ "metadata": { "uid": found.uid, "finalizers": null } });
        let params = PatchParams::default();
        let patched = api.patch(&name.name, &params, &Patch::Merge(&patch)).await;
        gone_already(patched.map(drop))?;
    }
    let only_this = DeleteParams {
        preconditions: Some(Preconditions {
            uid: found.uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    gone_already(api.delete(&name.name, &only_this).await.map(drop))
}

/// Ignores that the object does not exist, or is another one of that name now.
fn gone_already(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}

async fn annotate(cluster: &Cluster, name: &ObjectName, uid: &str, text: &str) -> kube::Result<()> {
    let there = {
        let mirror = cluster.mirror();
        let pod = mirror.get(Kind::Pod, name);
        let annotations = pod.and_then(|pod| pod.metadata.annotations.as_ref());
        annotations.and_then(|all| all.get(NETWORK_STATUS)).cloned()
    };
    if there.as_deref() == Some(text) {
        return Ok(());
    }
    // With the UID in it the patch is refused for a successor of the same name.
    let patch = json!({ "metadata": { "uid": uid, "annotations": { NETWORK_STATUS: text } } });
    let patch = Patch::Merge(patch);
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(cluster.client.clone(), &name.namespace);
    let params = PatchParams::default();
    // The status subresource: permission for it alone does not allow changing a pod's image.
    let patched = api.patch_status(&name.name, &params, &patch).await;
    gone_already(patched.map(drop))
}
