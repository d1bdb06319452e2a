//! Releases sticky reservations once no StatefulSet expects their pod on this node any more.
//!
//! StatefulSets are queried only while such a reservation exists.

use std::{sync::Arc, time::Duration};

use ebbtide_ipam::pool::{Pools, Reason, Replicas, Reservation, is_expected, ordinal};
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod as ApiPod};
use kube::Api;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::cluster::Cluster;

/// The interval between two checks: no watch reports that a set was scaled down.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The delay after a change of the addresses: pods that end together are checked together.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// Releases reservations that no pod will use, until the process ends.
pub async fn run(cluster: Arc<Cluster>, pools: Pools) {
    let mut changes: watch::Receiver<u64> = pools.subscribe();
    loop {
        changes.mark_unchanged();
        for reservation in pools.reservations() {
            if reservation.reason == Reason::Sticky {
                look_at(&cluster, &pools, &reservation).await;
            }
        }
        if let Ok(Err(_)) = timeout(POLL_INTERVAL, changes.changed()).await {
            return;
        }
        sleep(DEBOUNCE).await;
    }
}

async fn look_at(cluster: &Cluster, pools: &Pools, reservation: &Reservation) {
    match is_awaited(cluster, reservation).await {
        Ok(true) => {}
        Ok(false) => match pools.end_reservation(&reservation.key()).await {
            Ok(_) => {
                info!(pod = %reservation.pod, "is not expected here any more: its reservation ended")
            }
            Err(e) => warn!("pod {}: {e}", reservation.pod),
        },
        Err(e) => debug!("pod {}: {e}", reservation.pod),
    }
}

/// Whether the pod may return to this node: its set expects it, and it is on no other node.
async fn is_awaited(cluster: &Cluster, reservation: &Reservation) -> kube::Result<bool> {
    let (namespace, name) = (&reservation.pod.namespace, &reservation.pod.name);
    let Some((set, _)) = ordinal(name) else {
        return Ok(false);
    };
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), namespace);
    let found = sets.get_opt(set).await?;
    let alive = found.filter(|set| set.metadata.deletion_timestamp.is_none());
    if !is_expected(name, alive.as_ref().map(replicas)) {
        return Ok(false);
    }
    let pods: Api<ApiPod> = Api::namespaced(cluster.client.clone(), namespace);
    let pod = pods.get_opt(name).await?;
    let node = pod.and_then(|pod| pod.spec?.node_name);
    Ok(node.is_none_or(|node| node == cluster.node))
}

fn replicas(set: &StatefulSet) -> Replicas {
    let number = |number: i32| u64::try_from(number).unwrap_or(0);
    let ordinals = set.spec.ordinals.as_ref();
    Replicas {
        start: ordinals
            .and_then(|ordinals| ordinals.start)
            .map_or(0, number),
        // The API server fills in 1 if it is not set.
        count: set.spec.replicas.map_or(1, number),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sets_pods_are_counted_from_its_first_ordinal() {
        for (spec, start, count) in [
            (json!({}), 0, 1),
            (json!({"replicas": 0}), 0, 0),
            (json!({"replicas": 3}), 0, 3),
            (json!({"replicas": 3, "ordinals": {"start": 5}}), 5, 3),
        ] {
            let mut spec = spec;
            spec["selector"] = json!({});
            spec["serviceName"] = json!("s");
            spec["template"] = json!({});
            let set: StatefulSet = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(replicas(&set), Replicas { start, count }, "{set:?}");
        }
    }
}
