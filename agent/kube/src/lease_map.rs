//! Reads, changes and reclaims the leases in a pool's ConfigMap.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ebbtide_ipam::{
    catalog::{AddressSet, Pool, manifest::API_VERSION},
    pool::Pools,
};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Node},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{ListParams, PostParams},
    core::PartialObjectMeta,
};
use tracing::{debug, info, warn};

use super::{
    cluster::Cluster,
    lease_table::{LABEL, LeaseTable, map_of},
    object::Kind,
};

/// The base of the delay between two tries after a conflict, multiplied by the try.
const PAUSE: Duration = Duration::from_millis(20);

/// The number of tries before the next round.
const TRIES: u32 = 20;

/// Why a pool's leases were not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Api(#[from] Box<kube::Error>),
    #[error(transparent)]
    Bad(#[from] super::lease_table::BadLease),
    #[error("keep it on disk: {0}")]
    Disk(#[from] std::io::Error),
    #[error(
        "the ConfigMap {0} is not there yet: the controller makes it (`kubectl get deployment -A -l \
         app.kubernetes.io/name=ebbtide-controller` says whether one runs)"
    )]
    NotMade(String),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Changes the pool's leases, with retries after conflicts. `edit` returns whether there is anything
/// to write. An agent's edit changes only its own node's entries: the API server may refuse others.
pub(super) async fn change(
    cluster: &Cluster,
    pool: &Pool,
    mut edit: impl FnMut(&mut LeaseTable) -> bool,
) -> Result<(), Error> {
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client.clone());
    let name = map_of(&pool.name);
    let mut tries = 0;
    loop {
        let Some(mut map) = api.get_opt(&name).await? else {
            return Err(Error::NotMade(name));
        };
        let mut data = map.data.take().unwrap_or_default();
        let before = LeaseTable::parse(&data, pool.family)?;
        let mut lease_table = before.clone();
        if !edit(&mut lease_table) {
            return Ok(());
        }
        lease_table.write(&before, &mut data);
        map.metadata.managed_fields = None;
        map.data = Some(data);
        match api.replace(&name, &PostParams::default(), &map).await {
            Ok(map) => {
                cluster.record_leases(map);
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE * jitter(&cluster.node, tries)).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Returns 1 to three times the try, by the node's name: nodes that collided once should not do so again.
fn jitter(node: &str, tries: u32) -> u32 {
    let seed = node
        .bytes()
        .fold(tries.wrapping_mul(2_654_435_761), |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
    1 + (seed >> 8) % (3 * tries.max(1))
}

fn new_map(cluster: &Cluster, name: &str, pool: &Pool) -> ConfigMap {
    let object = cluster.all(Kind::Pool).into_iter();
    let mut object = object.filter(|object| object.metadata.name.as_deref() == Some(&pool.name));
    let uid = object.next().and_then(|object| object.metadata.uid);
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
            // It is deleted with its pool.
            owner_references: uid.map(|uid| {
                vec![OwnerReference {
                    api_version: API_VERSION.into(),
                    kind: Kind::Pool.name().into(),
                    name: pool.name.clone(),
                    uid,
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// Creates the missing ConfigMaps of pools: the controller's work, as an agent may create none. True if all exist now.
pub(super) async fn prepare(cluster: &Cluster) -> bool {
    let missing: Vec<Pool> = {
        let mirror = cluster.mirror();
        let there: BTreeSet<&str> = mirror
            .all(Kind::Lease)
            .filter_map(|map| map.metadata.name.as_deref())
            .collect();
        let catalog = mirror.declared_catalog();
        let pools = catalog.pools().iter().filter(|pool| pool.is_shared());
        let missing = pools.filter(|pool| !there.contains(map_of(&pool.name).as_str()));
        missing.cloned().collect()
    };
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client.clone());
    let mut done = true;
    for pool in missing {
        let name = map_of(&pool.name);
        let map = new_map(cluster, &name, &pool);
        match api.create(&PostParams::default(), &map).await {
            Ok(map) => cluster.record_leases(map),
            // An earlier leader created it meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => {
                warn!("the ConfigMap {name} for leases is not made yet: {e}");
                done = false;
            }
        }
    }
    done
}

/// Reclaims the leases of nodes that no longer exist: the controller's work. The evidence is that
/// no Node object has that name.
pub(super) async fn reclaim(cluster: &Cluster) {
    let shared: Vec<Pool> = {
        let catalog = cluster.mirror().declared_catalog();
        let pools = catalog.pools().iter();
        pools.filter(|pool| pool.is_shared()).cloned().collect()
    };
    if shared.is_empty() {
        return;
    }
    let api: Api<PartialObjectMeta<Node>> = Api::all(cluster.client.clone());
    let nodes: BTreeSet<String> = match api.list(&ListParams::default()).await {
        Ok(list) => list
            .into_iter()
            .filter_map(|node| node.metadata.name)
            .collect(),
        Err(e) => {
            debug!("nodes cannot be listed: {e}");
            return;
        }
    };
    for pool in shared {
        let changed = change(cluster, &pool, |lease_table| {
            let gone = lease_table.reclaim(&nodes);
            for node in &gone {
                info!(
                    pool = pool.name,
                    node, "the node was deleted: its lease is released"
                );
            }
            !gone.is_empty()
        });
        match changed.await {
            // No node has any addresses yet.
            Ok(()) | Err(Error::NotMade(_)) => {}
            Err(e) => warn!("leases of SpiderIPPool {}: {e}", pool.name),
        }
    }
}

/// Leases addresses that pods already have to this node. Returns those that it could not get, since
/// another node has them.
pub(super) async fn acquire(
    cluster: &Cluster,
    pools: &Pools,
    pool: &Pool,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<AddressSet, Error> {
    let wanted = AddressSet::of(pool.family, addresses);
    let mut refused = AddressSet::empty(pool.family);
    change(cluster, pool, |lease_table| {
        let before = lease_table.clone();
        refused = lease_table.acquire(&cluster.node, &wanted);
        *lease_table != before
    })
    .await?;
    pools.restore(&wanted.without(&refused));
    Ok(refused)
}
