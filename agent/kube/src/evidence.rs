//! Direct queries to the API server: which pods live, and which addresses a pool's status assigns
//! to them. Only by this evidence are addresses released that no sandbox here has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use ebbtide_ipam::catalog::Pool;
use ebbtide_types::ObjectName;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::{
    Api,
    api::ListParams,
    core::{DynamicObject, PartialObjectMeta},
};
use serde_json::Value;

use super::{
    cluster::Cluster,
    object::{Kind, name_of, resource},
    usage::{self, Holder, Holders},
};

/// The maximum number of pods that are checked at a time. A pool full of Spiderpool's pods may have thousands.
const MAX_CHECKS: usize = 64;

/// Whether the pod exists and has not ended.
pub(super) async fn is_alive(cluster: &Cluster, pod: &ObjectName, uid: &str) -> kube::Result<bool> {
    let api: Api<ApiPod> = Api::namespaced(cluster.client.clone(), &pod.namespace);
    let Some(found) = api.get_opt(&pod.name).await? else {
        return Ok(false);
    };
    let phase = found.status.and_then(|status| status.phase);
    let ended = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
    Ok(found.metadata.uid.as_deref() == Some(uid) && !ended)
}

/// Whether the holder of an address lives, as [`is_alive`].
pub(super) async fn is_holder_alive(cluster: &Cluster, holder: &Holder) -> kube::Result<bool> {
    match holder.name() {
        Some(pod) => is_alive(cluster, &pod, &holder.uid).await,
        // No pod can have this name.
        None => Ok(false),
    }
}

/// Returns this node's pods that have not ended, with their UIDs.
pub(super) async fn pods_on_node(cluster: &Cluster) -> kube::Result<BTreeMap<ObjectName, String>> {
    let api: Api<PartialObjectMeta<ApiPod>> = Api::all(cluster.client.clone());
    let living = format!(
        "spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed",
        cluster.node
    );
    let pods = api.list(&ListParams::default().fields(&living)).await?;
    let named = |pod: PartialObjectMeta<ApiPod>| {
        let name = name_of(&pod.metadata);
        (name, pod.metadata.uid.unwrap_or_default())
    };
    Ok(pods.into_iter().map(named).collect())
}

/// Parses the holders in a pool object's status.
pub(super) fn holders_in(pool: &DynamicObject) -> Holders {
    let text = pool.data.pointer("/status/allocatedIPs");
    usage::parse(text.and_then(Value::as_str).unwrap_or_default())
}

/// Returns the holders in the pool's current status.
pub(super) async fn holders(cluster: &Cluster, pool: &Pool) -> kube::Result<Holders> {
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource(Kind::Pool));
    let found = api.get_opt(&pool.name).await?;
    Ok(found.as_ref().map(holders_in).unwrap_or_default())
}

/// Returns up to `wanted` addresses whose pods no longer live, as far as found.
pub(super) async fn gone(
    cluster: &Cluster,
    suspects: Holders,
    wanted: u64,
) -> kube::Result<BTreeSet<IpAddr>> {
    /// Where the last check ended: the same pods must not be checked again and again.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut gone = BTreeSet::new();
    let count = suspects.len().min(MAX_CHECKS);
    let start = NEXT.fetch_add(count, Ordering::Relaxed) % suspects.len().max(1);
    for (address, holder) in suspects.iter().cycle().skip(start).take(count) {
        if u64::try_from(gone.len()).is_ok_and(|found| found >= wanted) {
            break;
        }
        if !is_holder_alive(cluster, holder).await? {
            gone.insert(*address);
        }
    }
    Ok(gone)
}
