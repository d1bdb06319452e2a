//! Migration from Spiderpool: its pods keep their addresses until they are deleted.
//!
//! At each start, before the agent hands out anything, it reserves the addresses that pools' status
//! or SpiderEndpoints assign to living pods and that no sandbox here has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ebbtide_ipam::{
    catalog::{Catalog, published_for},
    pool::{Adopt, PodRef, PoolError, Pools, Reason, Reservation, ReservationKey},
};
use ebbtide_types::{
    Family, ObjectName,
    replace::{ReplaceError, atomic_replace},
};
use futures::{StreamExt as _, stream};
use kube::{Api, api::ListParams, core::DynamicObject};
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::{
    cluster::Cluster,
    endpoint::{EndpointStatus, PodAllocation, endpoints},
    evidence, lease_map,
    object::{Kind, resource},
    usage::{self, Holder},
};

/// The delay between two tries.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The time limit of one try at the first start on this node.
const FIRST: Duration = Duration::from_secs(60);

/// The time limit at a later start, while pods wait.
const LATER: Duration = Duration::from_secs(3);

/// The number of concurrent requests.
const MAX_CONCURRENT: usize = 8;

/// The runtime's name of a pod's first interface.
const FIRST_INTERFACE: &str = "eth0";

/// The interval between two checks for pods that ended.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The number of objects per page.
const PAGE: u32 = 500;

/// An interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Interface {
    pod: PodRef,
    name: String,
}

/// The pools and addresses of each interface, at most one address of each family.
#[derive(Debug, Default)]
struct Held(BTreeMap<Interface, Vec<(String, IpAddr)>>);

/// The file that marks the first takeover as done.
fn marker(state_dir: &Path) -> PathBuf {
    state_dir.join("spiderpool-taken-over")
}

/// Takes over, lets pods in, and then releases addresses as their pods are deleted.
pub async fn run(cluster: Arc<Cluster>, pools: Pools, state_dir: PathBuf) {
    let marker = marker(&state_dir);
    // At a later start everything is reserved already, unless Spiderpool ran here meanwhile: not
    // worth delaying pods while the API server is unreachable.
    let is_first = !marker.exists();
    let patience = if is_first { FIRST } else { LATER };
    let mut is_told = false;
    loop {
        let error = match timeout(patience, once(&cluster, &pools, &marker)).await {
            Ok(Ok(())) => break,
            Ok(Err(error)) => error,
            Err(_) => Error::Silence(patience),
        };
        if !is_first {
            cluster.set_taken_over();
        } else if !is_told {
            warn!("no pod is added before it is known what Spiderpool gave to pods here: {error}");
        }
        is_told = true;
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    cluster.set_taken_over();
    let mut changes = cluster.changes(&[Kind::Pod]);
    loop {
        let elsewhere = release_ended(&cluster, &pools).await;
        let due = Instant::now() + POLL_INTERVAL;
        loop {
            tokio::select! {
                () = sleep_until(due) => break,
                changed = changes.changed() => if changed.is_err() { return },
            }
            if is_one_gone(&cluster, &pools, &elsewhere) {
                break;
            }
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Why a try failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server says nothing for {} s", .0.as_secs())]
    Silence(Duration),
    #[error("which pools there are is not known yet")]
    Early,
    #[error("write the marker of the finished takeover: {0}")]
    Disk(#[from] ReplaceError),
    #[error("lease the addresses: {0}")]
    Lease(#[from] lease_map::Error),
    #[error(transparent)]
    Pool(#[from] PoolError),
}

async fn once(cluster: &Cluster, pools: &Pools, marker: &Path) -> Result<(), Error> {
    {
        let mirror = cluster.mirror();
        if !(mirror.knows(Kind::Pool) && mirror.knows(Kind::Lease)) {
            return Err(Error::Early);
        }
    }
    let held = held(cluster, pools).await?;
    lease(cluster, pools, &held).await?;
    let catalog = cluster.mirror().catalog(&cluster.node);
    let mut taken = 0;
    for (interface, addresses) in &held.0 {
        let addresses: Vec<(&str, IpAddr)> = addresses
            .iter()
            .map(|(pool, address)| (pool.as_str(), *address))
            .collect();
        taken += usize::from(adopt(pools, &catalog, interface, &addresses).await?);
    }
    atomic_replace(marker, b"", 0o600)?;
    if taken > 0 {
        info!(interfaces = taken, "addresses taken over from Spiderpool");
    }
    Ok(())
}

/// Reserves the addresses for the interface; true if that was new.
async fn adopt(
    pools: &Pools,
    catalog: &Catalog,
    interface: &Interface,
    addresses: &[(&str, IpAddr)],
) -> Result<bool, Error> {
    let (pod, name) = (&interface.pod, interface.name.as_str());
    let wish = Adopt {
        pod,
        interface: name,
        addresses,
    };
    match pools.adopt(&wish, catalog).await {
        Ok(news) => return Ok(news),
        Err(PoolError::Conflict(_)) => {}
        Err(e) => return Err(e.into()),
    }
    // All or none: those without an owner are then reserved one by one.
    let mut news = false;
    for (pool, address) in addresses {
        let wish = Adopt {
            pod,
            interface: &address.to_string(),
            addresses: &[(pool, *address)],
        };
        match pools.adopt(&wish, catalog).await {
            Ok(one) => news |= one,
            // Another pod has it: it is not handed out, and a person must know.
            Err(PoolError::Conflict(conflict)) => {
                warn!("two pods may have one address: {conflict}")
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(news)
}

impl Held {
    fn add(&mut self, pod: &PodRef, name: &str, pool: &str, address: IpAddr) {
        // Spiderpool gives two interfaces of a pod on one pool the same address.
        if self
            .0
            .values()
            .flatten()
            .any(|(_, other)| *other == address)
        {
            return;
        }
        let mut interface = Interface {
            pod: pod.clone(),
            name: name.to_owned(),
        };
        let known = self.0.get(&interface).into_iter().flatten();
        if known
            .map(|(_, other)| Family::of(*other))
            .any(|family| family == Family::of(address))
        {
            // It is unknown which interface has it.
            interface.name = address.to_string();
        }
        let addresses = self.0.entry(interface).or_default();
        addresses.push((pool.to_owned(), address));
    }
}

/// Returns the addresses of living pods without a sandbox here: those in the SpiderEndpoints of this node's
/// pods, and those in pools' status of these pods, and of any pod in a pool that is for this node only.
async fn held(cluster: &Cluster, pools: &Pools) -> kube::Result<Held> {
    let here = evidence::pods_on_node(cluster).await?;
    let own: BTreeSet<PodRef> = pools
        .list()
        .into_iter()
        .filter_map(|each| each.pod)
        .collect();
    let mut held = Held::default();
    let mut foreign: Vec<PodRef> = Vec::new();
    for (name, uid) in &here {
        let pod = pod_ref(name, uid);
        if !own.contains(&pod) {
            foreign.push(pod);
        }
    }
    let mut endpoints = stream::iter(foreign)
        .map(|pod| async move {
            let endpoint = endpoint(cluster, &pod).await?;
            Ok::<_, kube::Error>((pod, endpoint))
        })
        .buffered(MAX_CONCURRENT);
    while let Some(found) = endpoints.next().await {
        let (pod, endpoint) = found?;
        for each in endpoint.ips {
            let name = each.interface.clone();
            let one = PodAllocation {
                ips: vec![each],
                ..PodAllocation::default()
            };
            for (pool, address) in usage::addresses(&one) {
                held.add(&pod, &name, pool, address);
            }
        }
    }
    let mut elsewhere: BTreeMap<Holder, bool> = BTreeMap::new();
    let pools_of_all = objects(cluster).await?;
    let declared = pools_of_all
        .into_iter()
        .filter(|pool| published_for(&pool.metadata).is_none());
    for pool in declared {
        let name = pool.metadata.name.clone().unwrap_or_default();
        let is_ours_alone = pool.data.pointer("/spec/nodeName") == Some(&json!([cluster.node]));
        for (address, holder) in evidence::holders_in(&pool) {
            let Some(pod) = holder.name() else { continue };
            let standing = pools.lookup(address);
            if standing.holder.is_some() || standing.reservation.is_some() {
                continue;
            }
            let is_here = here.get(&pod) == Some(&holder.uid);
            if !is_here && !is_ours_alone {
                continue;
            }
            let is_alive = match elsewhere.get(&holder) {
                _ if is_here => true,
                Some(is_alive) => *is_alive,
                None => {
                    let is_alive = evidence::is_holder_alive(cluster, &holder).await?;
                    *elsewhere.entry(holder.clone()).or_insert(is_alive)
                }
            };
            if is_alive {
                held.add(&pod_ref(&pod, &holder.uid), FIRST_INTERFACE, &name, address);
            }
        }
    }
    Ok(held)
}

fn pod_ref(name: &ObjectName, uid: &str) -> PodRef {
    PodRef {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        uid: uid.to_owned(),
    }
}

/// Returns the allocation in the pod's SpiderEndpoint, if it is of this very pod.
async fn endpoint(cluster: &Cluster, pod: &PodRef) -> kube::Result<PodAllocation> {
    let api = endpoints(cluster, &pod.namespace);
    let found = api.get_opt(&pod.name).await?;
    let status = found.and_then(|object| object.data.get("status").cloned());
    let status = status.and_then(|status| serde_json::from_value(status).ok());
    let EndpointStatus { current, .. } = status.unwrap_or_default();
    // Another node's statement about a pod here is ignored: that node may be compromised.
    let is_ours = current.node.is_empty() || current.node == cluster.node;
    Ok(if current.uid == pod.uid && is_ours {
        current
    } else {
        PodAllocation::default()
    })
}

/// Returns all pools, with their status.
async fn objects(cluster: &Cluster) -> kube::Result<Vec<DynamicObject>> {
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource(Kind::Pool));
    let mut page = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let list = api.list(&page).await?;
        let next = list.metadata.continue_.clone();
        all.extend(list.items);
        match next.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Leases the addresses of shared pools to this node.
async fn lease(cluster: &Cluster, pools: &Pools, held: &Held) -> Result<(), Error> {
    let declared = cluster.mirror().declared_catalog();
    for pool in declared.pools().iter().filter(|pool| pool.is_shared()) {
        let all = held.0.values().flatten();
        let of_pool = all.filter(|(name, _)| *name == pool.name);
        let addresses: Vec<IpAddr> = of_pool.map(|(_, address)| *address).collect();
        if addresses.is_empty() {
            continue;
        }
        let refused = lease_map::acquire(cluster, pools, pool, addresses).await?;
        if !refused.is_empty() {
            warn!(
                pool = pool.name,
                addresses = %refused,
                "pods of this node have addresses that are leased to other nodes"
            );
        }
    }
    Ok(())
}

/// Returns the reservations for pods that Spiderpool served.
fn reservations(pools: &Pools) -> Vec<Reservation> {
    let mut reservations = pools.reservations();
    reservations.retain(|reservation| reservation.reason == Reason::Adopted);
    reservations
}

fn name_of_reservation(reservation: &Reservation) -> ObjectName {
    ObjectName {
        namespace: reservation.pod.namespace.clone(),
        name: reservation.pod.name.clone(),
    }
}

/// Whether a pod of this node seems to be deleted.
fn is_one_gone(cluster: &Cluster, pools: &Pools, elsewhere: &BTreeSet<ReservationKey>) -> bool {
    let mirror = cluster.mirror();
    reservations(pools).iter().any(|reservation| {
        let pod = mirror.get(Kind::Pod, &name_of_reservation(reservation));
        let uid = pod.and_then(|pod| pod.metadata.uid.as_deref());
        uid != Some(&reservation.pod.uid) && !elsewhere.contains(&reservation.key())
    })
}

/// Releases the reservations of pods that were deleted or have ended. Returns those of pods on other nodes.
async fn release_ended(cluster: &Cluster, pools: &Pools) -> BTreeSet<ReservationKey> {
    let mut elsewhere = BTreeSet::new();
    let reservations = reservations(pools);
    if reservations.is_empty() {
        return elsewhere;
    }
    let here = match evidence::pods_on_node(cluster).await {
        Ok(here) => here,
        Err(e) => {
            debug!("list the pods of this node: {e}");
            return elsewhere;
        }
    };
    for reservation in reservations {
        let pod = name_of_reservation(&reservation);
        if here.get(&pod) == Some(&reservation.pod.uid) {
            continue;
        }
        // Its name is now another pod's, it has ended, or it is on another node.
        match evidence::is_alive(cluster, &pod, &reservation.pod.uid).await {
            Ok(true) => {
                elsewhere.insert(reservation.key());
            }
            Ok(false) => match pools.end_reservation(&reservation.key()).await {
                Ok(_) => {
                    info!(%pod, "is gone: the reservation of its addresses from Spiderpool ended")
                }
                Err(e) => warn!("pod {pod}: {e}"),
            },
            Err(e) => debug!("pod {pod}: {e}"),
        }
    }
    elsewhere
}
