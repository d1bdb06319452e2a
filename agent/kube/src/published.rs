//! Publishes the pools that agents derived from the cloud as SpiderIPPools, for people to see, and keeps them as they are to
//! be. Agents never read them back.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_ipam::catalog::{manifest::IpPoolStatus, published_for};
use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::DynamicObject,
};
use tracing::{info, warn};

use super::{
    cloud_map,
    cluster::Cluster,
    derived_pools::{self, DerivedPool, Twice},
    events::reference,
    object::Kind,
    pools::{api, write_status},
    usage::{Usage, status_of},
};

/// The elected controller's state of what it published.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The last known status of each pool.
    written: BTreeMap<String, IpPoolStatus>,
    /// The addresses of two nodes that were reported.
    reported: BTreeSet<Twice>,
    /// What was wrong with reports when it was last said.
    faults: Vec<String>,
}

/// What is to be there, and what is.
struct Comparison {
    wanted: BTreeMap<String, DerivedPool>,
    /// The nodes of whose addresses nothing is known now: what is published of them stays as it is.
    unknown: BTreeSet<String>,
    there: BTreeMap<String, DynamicObject>,
    faults: Vec<String>,
}

/// Compares; none while the API server has not told all that this depends on.
fn compare(cluster: &Cluster) -> Option<Comparison> {
    let nodes = cloud_map::nodes(cluster)?;
    let (declared, there) = {
        let mirror = cluster.mirror();
        if !mirror.knows(Kind::Pool) || !mirror.knows(Kind::NodeCloud) {
            return None;
        }
        let there = mirror.all(Kind::Pool).filter_map(|object| {
            let name = object.metadata.name.clone()?;
            Some((name, object.clone()))
        });
        let there: BTreeMap<String, DynamicObject> = there.collect();
        (mirror.declared_catalog(), there)
    };
    let mut told = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    for node in nodes.keys() {
        match cloud_map::told(cluster, node) {
            Some(cloud) => drop(told.insert(node.clone(), cloud)),
            None => drop(unknown.insert(node.clone())),
        }
    }
    let (mut wanted, faults) = derived_pools::desired(&nodes, &told, &declared);
    // A declared pool of that name is in its place.
    wanted.retain(|name, _| {
        let object = there.get(name);
        object.is_none_or(|object| published_for(&object.metadata).is_some())
    });
    Some(Comparison {
        wanted,
        unknown,
        there,
        faults,
    })
}

impl Published {
    /// Writes the differences. True if everything is in the desired state.
    pub(super) async fn reconcile(&mut self, cluster: &Cluster, usage: &Usage) -> bool {
        let Some(Comparison {
            wanted,
            unknown,
            there,
            faults,
        }) = compare(cluster)
        else {
            return true;
        };
        let new_faults = faults.iter().filter(|fault| !self.faults.contains(fault));
        new_faults.for_each(|fault| warn!("what an agent told of its cloud's addresses: {fault}"));
        self.faults = faults;
        let mut done = true;
        for (name, pool) in &wanted {
            let result = match write(cluster, name, pool, there.get(name)).await {
                Ok(true) => self.write_status(cluster, name, pool, usage).await,
                Ok(false) => {
                    done = false;
                    Ok(())
                }
                Err(e) => Err(e),
            };
            done &= is_done(name, result);
        }
        for (name, object) in &there {
            let node = published_for(&object.metadata);
            let is_over =
                node.is_some_and(|node| !wanted.contains_key(name) && !unknown.contains(node));
            if is_over && object.metadata.deletion_timestamp.is_none() {
                done &= is_done(name, delete(cluster, name, object).await);
            }
        }
        self.written.retain(|name, _| wanted.contains_key(name));
        self.report(cluster, derived_pools::twice(&wanted), &there)
            .await;
        done
    }

    async fn write_status(
        &mut self,
        cluster: &Cluster,
        name: &str,
        pool: &DerivedPool,
        usage: &Usage,
    ) -> kube::Result<()> {
        let none = BTreeMap::new();
        let status = status_of(pool.ranges.len(), usage.get(name).unwrap_or(&none));
        if self.written.get(name) != Some(&status) {
            write_status(cluster, name, &status).await?;
            self.written.insert(name.to_owned(), status);
        }
        Ok(())
    }

    /// Says once that two nodes claim one address.
    async fn report(
        &mut self,
        cluster: &Cluster,
        twice: Vec<Twice>,
        there: &BTreeMap<String, DynamicObject>,
    ) {
        for one in &twice {
            if self.reported.contains(one) {
                continue;
            }
            let note = format!(
                "{} is told to be of this node, and of pool {} too: the cloud delivers it to one of them; `ebbtidectl cloud` on \
                 both nodes shows the pods that have it",
                one.address, one.other
            );
            warn!("SpiderIPPool {}: {note}", one.pool);
            if let Some(object) = there.get(&one.pool) {
                let about = reference(Kind::Pool, object);
                let events = &cluster.events;
                events
                    .warn(&about, "AddressTwice", "Comparing", &note)
                    .await;
            }
        }
        self.reported = twice.into_iter().collect();
    }
}

/// Makes the object what it is to be. True if it is there, as far as it is known.
async fn write(
    cluster: &Cluster,
    name: &str,
    pool: &DerivedPool,
    object: Option<&DynamicObject>,
) -> kube::Result<bool> {
    let Some(object) = object else {
        let new = serde_json::from_value(pool.object(name)).map_err(kube::Error::SerdeError)?;
        let params = PostParams {
            field_manager: Some(super::attachments::MANAGER.to_owned()),
            ..PostParams::default()
        };
        api(cluster).create(&params, &new).await?;
        info!(node = pool.node, "SpiderIPPool {name} is published");
        return Ok(true);
    };
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    if pool.is_elsewhere(object) {
        delete(cluster, name, object).await?;
        return Ok(false);
    }
    if let Some(patch) = pool.patch(object) {
        let params = PatchParams::default();
        api(cluster)
            .patch(name, &params, &Patch::Merge(&patch))
            .await?;
    }
    Ok(true)
}

/// Deletes this very object.
async fn delete(cluster: &Cluster, name: &str, object: &DynamicObject) -> kube::Result<()> {
    let only_this = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    api(cluster).delete(name, &only_this).await?;
    info!("SpiderIPPool {name} is not derived any more, and deleted");
    Ok(())
}

/// Whether it succeeded; says so if not.
fn is_done(name: &str, result: kube::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        // Made, deleted or replaced meanwhile: the watch will report it.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
        Err(e) => {
            warn!("published SpiderIPPool {name}: {e}");
            false
        }
    }
}
