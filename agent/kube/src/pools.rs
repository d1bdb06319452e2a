//! Updates pool objects: their status, a missing `ipVersion`, the finalizer that keeps a pool until it is empty.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_ipam::catalog::{Pool, manifest::IpPoolStatus, published_for};
use ebbtide_types::Family;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::{
    attachments::MANAGER,
    cluster::Cluster,
    evidence,
    object::{Kind, resource},
    usage::{self, Holder, Usage},
};

/// The finalizer, Spiderpool's own.
pub(super) const FINALIZER: &str = "spiderpool.spidernet.io";

/// The elected controller's state of what it wrote.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// The last known status of each pool in the API server.
    written: BTreeMap<String, IpPoolStatus>,
    /// Addresses that a status assigns to pods without a SpiderEndpoint: Spiderpool's, of nodes
    /// whose agent has not taken them over yet.
    kept: BTreeMap<(String, IpAddr), Holder>,
}

impl Pools {
    /// Reads the existing status after the election.
    pub(super) async fn read(cluster: &Cluster, usage: &Usage) -> kube::Result<Self> {
        let mut pools = Self::default();
        for pool in api(cluster).list(&ListParams::default()).await? {
            let Some(name) = pool.metadata.name.clone() else {
                continue;
            };
            // Its status is what the controller wrote itself, of agents that have SpiderEndpoints.
            if published_for(&pool.metadata).is_some() {
                continue;
            }
            let status = pool.data.get("status").cloned().unwrap_or(Value::Null);
            let status: IpPoolStatus = serde_json::from_value(status).unwrap_or_default();
            for (address, holder) in evidence::holders_in(&pool) {
                let accounted = usage
                    .get(&name)
                    .is_some_and(|all| all.contains_key(&address));
                if !accounted {
                    pools.kept.insert((name.clone(), address), holder);
                }
            }
            pools.written.insert(name, status);
        }
        Ok(pools)
    }

    /// Drops addresses whose pod was deleted: asks the API server about one pod after the other.
    pub(super) async fn release_deleted(&mut self, cluster: &Cluster) {
        let holders: BTreeSet<Holder> = self.kept.values().cloned().collect();
        for holder in holders {
            match evidence::is_holder_alive(cluster, &holder).await {
                Ok(true) => {}
                Ok(false) => {
                    info!("pod {} is gone, and what pools said it had", holder.pod);
                    self.kept.retain(|_, other| *other != holder);
                }
                Err(e) => debug!("pod {}: {e}", holder.pod),
            }
        }
    }

    /// Writes the differences. True if everything is in the desired state.
    pub(super) async fn reconcile(&mut self, cluster: &Cluster, usage: &Usage) -> bool {
        let mut usage = usage.clone();
        for ((pool, address), holder) in &self.kept {
            let holders = usage.entry(pool.clone()).or_default();
            holders.entry(*address).or_insert_with(|| holder.clone());
        }
        let catalog = cluster.mirror().declared_catalog();
        let mut done = true;
        for object in cluster.all(Kind::Pool) {
            let name = object.metadata.name.clone().unwrap_or_default();
            let holders = usage.remove(&name).unwrap_or_default();
            let result = async {
                if object.metadata.deletion_timestamp.is_some() {
                    if holders.is_empty() {
                        release(cluster, &object).await?;
                    }
                } else if let Some(pool) = catalog.pool(&name) {
                    complete(cluster, &object, pool).await?;
                }
                // An invalid pool's total is unknown; its addresses may still be held.
                let status = match catalog.pool(&name) {
                    Some(pool) => usage::status(pool, &holders),
                    None => return Ok(()),
                };
                if self.written.get(&name) != Some(&status) {
                    write_status(cluster, &name, &status).await?;
                    self.written.insert(name.clone(), status);
                }
                Ok(())
            };
            let result: kube::Result<()> = result.await;
            match result {
                Ok(()) => {}
                // Deleted meanwhile: the watch will report it.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(e) => {
                    warn!("SpiderIPPool {name}: {e}");
                    done = false;
                }
            }
        }
        let there: BTreeSet<String> = catalog.pools().iter().map(|p| p.name.clone()).collect();
        self.written.retain(|name, _| there.contains(name));
        done
    }
}

pub(super) fn api(cluster: &Cluster) -> Api<DynamicObject> {
    Api::all_with(cluster.client.clone(), &resource(Kind::Pool))
}

/// Writes a pool's status.
pub(super) async fn write_status(
    cluster: &Cluster,
    name: &str,
    status: &IpPoolStatus,
) -> kube::Result<()> {
    // In a merge patch null removes: a field that is missing here must be missing there.
    let patch = json!({ "status": {
        "allocatedIPs": status.allocated_ips,
        "totalIPCount": status.total_ip_count,
        "allocatedIPCount": status.allocated_ip_count,
    }});
    let params = PatchParams::default();
    api(cluster)
        .patch_status(name, &params, &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// Fills in the fields that Spiderpool's webhook would set.
async fn complete(cluster: &Cluster, object: &DynamicObject, pool: &Pool) -> kube::Result<()> {
    let finalizers = object.metadata.finalizers.as_deref().unwrap_or_default();
    let version = object.data.pointer("/spec/ipVersion");
    if version.is_some() && finalizers.iter().any(|each| each == FINALIZER) {
        return Ok(());
    }
    let version = match pool.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let types = resource(Kind::Pool);
    let patch = json!({
        "apiVersion": types.api_version,
        "kind": types.kind,
        "metadata": { "name": pool.name, "finalizers": [FINALIZER] },
        "spec": { "ipVersion": version },
    });
    let params = PatchParams::apply(MANAGER).force();
    api(cluster)
        .patch(&pool.name, &params, &Patch::Apply(&patch))
        .await?;
    Ok(())
}

/// Removes the finalizer from an empty pool.
async fn release(cluster: &Cluster, object: &DynamicObject) -> kube::Result<()> {
    let finalizers = object.metadata.finalizers.clone().unwrap_or_default();
    let name = object.metadata.name.clone().unwrap_or_default();
    if !finalizers.iter().any(|each| each == FINALIZER) {
        return Ok(());
    }
    // The finalizer may have any field manager, so an apply cannot remove it: replaced, unless the
    // list changed meanwhile.
    let Some(fresh) = api(cluster).get_metadata_opt(&name).await? else {
        return Ok(());
    };
    let mut others = fresh.metadata.finalizers.unwrap_or_default();
    others.retain(|each| each != FINALIZER);
    let patch = json!({ "metadata": {
        "resourceVersion": fresh.metadata.resource_version,
        "finalizers": others,
    }});
    let params = PatchParams::default();
    api(cluster)
        .patch(&name, &params, &Patch::Merge(&patch))
        .await?;
    info!("SpiderIPPool {name} is empty and may go");
    Ok(())
}
