//! `ebbtidectl ip` and `ebbtidectl release`.

use std::net::IpAddr;

use ebbtide_ipam::{
    catalog::Pool,
    pool::{Owner, Past, Reason, Reservation},
};
use ebbtide_kernel::netlink::netns::Evidence;
use serde::{Deserialize, Serialize};

use crate::agent::Agent;

/// The state of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AddressState {
    /// A pod has it.
    Held,
    /// It is being assigned to a pod.
    Reserving,
    /// A running pod has it from another agent; its sandbox is not known here.
    Adopted,
    /// It waits for the next sandbox of a StatefulSet's pod.
    Waiting,
    /// It was released a short time ago.
    Cooldown,
    /// The node itself has it, or a router: it is withheld from pods.
    Withheld,
    /// It can be assigned.
    Free,
    /// A SpiderReservedIP keeps it free.
    Reserved,
    /// It is a pool's gateway.
    Gateway,
    /// It is in a pool's subnet, but not in its ranges.
    NotInRange,
    /// No pool has it.
    Unknown,
}

/// `ebbtidectl ip`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressInfo {
    /// The address.
    pub address: IpAddr,
    /// Its state.
    pub state: AddressState,
    /// The pool it was assigned from, else the one that it belongs to now.
    pub pool: Option<String>,
    /// The pod, as `namespace/name` or its container ID.
    pub pod: Option<String>,
    /// The pod's UID, if it is known.
    pub uid: Option<String>,
    /// The owner: the interface that has it.
    pub owner: Option<Owner>,
    /// When it was assigned: seconds since 1970.
    pub since: Option<u64>,
    /// When it was released, if nobody has got it since: seconds since 1970.
    pub released_at: Option<u64>,
    /// The rest of its cooldown, in seconds.
    pub cooldown_for: u64,
    /// Why it is withheld from pods, if it is.
    pub withheld: Option<String>,
    /// Whether the pod's network namespace exists; `None` if that cannot be told.
    pub alive: Option<bool>,
    /// Its earlier owners, the latest first, since the agent started.
    pub history: Vec<Past>,
}

/// `ebbtidectl release`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// All addresses of the interface: both families are released together.
    pub addresses: Vec<IpAddr>,
    /// The pod, if its record could be read.
    pub pod: Option<String>,
    /// Their owner; `None` if they waited for a pod.
    pub owner: Option<Owner>,
    /// Whether they were released although the pod was alive, or may have been.
    pub forced: bool,
}

pub(super) fn describe(agent: &Agent, address: IpAddr) -> AddressInfo {
    let status = agent.pools.lookup(address);
    let catalog = agent.catalog();
    let (belongs, place) = place(catalog.pools(), address);
    let state = match (&status.holder, &status.allocation, &status.reservation) {
        (Some(_), Some(_), _) => AddressState::Held,
        (Some(_), None, _) => AddressState::Reserving,
        (None, _, Some(reservation)) => match reservation.reason {
            Reason::Adopted => AddressState::Adopted,
            Reason::Sticky => AddressState::Waiting,
        },
        (None, _, None) if status.cooldown_for > 0 => AddressState::Cooldown,
        (None, _, None) if place == AddressState::Free && status.withheld.is_some() => {
            AddressState::Withheld
        }
        (None, _, None) => place,
    };
    let held = status.allocation.iter().flat_map(|each| &each.assigned);
    let waits = status.reservation.iter().flat_map(|each| &each.assigned);
    let assigned = held.chain(waits).find(|each| each.address == address);
    let pod = status
        .allocation
        .as_ref()
        .and_then(|each| each.pod.as_ref());
    let pod = pod.or(status
        .reservation
        .as_ref()
        .map(|reservation| &reservation.pod));
    let net = status
        .holder
        .as_ref()
        .and_then(|owner| agent.interface(owner));
    AddressInfo {
        address,
        state,
        pool: assigned.map(|assigned| assigned.pool.clone()).or(belongs),
        pod: net
            .as_ref()
            .map(|net| net.pod.clone())
            .or(pod.map(ToString::to_string)),
        uid: pod.map(|pod| pod.uid.clone()).filter(|uid| !uid.is_empty()),
        since: status.allocation.as_ref().map(|each| each.since).or(status
            .reservation
            .as_ref()
            .map(|reservation| reservation.since)),
        owner: status.holder,
        released_at: status.released_at,
        cooldown_for: status.cooldown_for.div_ceil(1000),
        withheld: status.withheld,
        alive: net.and_then(|net| net.namespace().ok().map(|seen| is_present(&seen))),
        history: status.past,
    }
}

fn is_present(evidence: &Evidence) -> bool {
    matches!(evidence, Evidence::Present(_))
}

/// Returns the pool and the state of an address that nobody has.
fn place(pools: &[Pool], address: IpAddr) -> (Option<String>, AddressState) {
    let state = |pool: &Pool| {
        if pool.ranges.contains(address) {
            Some(AddressState::Free)
        } else if pool.reserved.contains(address) {
            Some(AddressState::Reserved)
        } else if pool.gateway == Some(address) {
            Some(AddressState::Gateway)
        } else {
            None
        }
    };
    let found = pools.iter().find_map(|pool| Some((pool, state(pool)?)));
    let (pool, state) = match found {
        Some((pool, state)) => (Some(pool), state),
        // Several pools may share a subnet, and none of them has this address.
        None if pools.iter().any(|pool| pool.subnet.contains(&address)) => {
            (None, AddressState::NotInRange)
        }
        None => (None, AddressState::Unknown),
    };
    (pool.map(|pool| pool.name.clone()), state)
}

/// Removes the interface that has this address from the kernel, then releases its addresses.
pub(super) async fn release(
    agent: &Agent,
    address: IpAddr,
    force: bool,
) -> Result<Released, String> {
    let status = agent.pools.lookup(address);
    if let Some(reservation) = status.reservation {
        return end_reservation(agent, address, reservation, force).await;
    }
    let Some(owner) = status.holder else {
        return Err(format!(
            "{address} is not in use on this node; `ebbtidectl ip {address}` tells more"
        ));
    };
    let _lock = agent.locks.write(&owner.container_id).await;
    // Read again: its owner may have ended before the lock was taken.
    let Some(allocation) = agent
        .pools
        .lookup(address)
        .allocation
        .filter(|allocation| allocation.owner == owner)
    else {
        return Err(format!("{address} got another owner just now; try again"));
    };
    let net = agent.interface(&owner);
    let gone = match net.as_ref().map(|net| net.namespace()) {
        Some(Ok(Evidence::Gone)) => Ok(()),
        Some(Ok(Evidence::Present(_))) => {
            Err("is alive: its network namespace is there".to_owned())
        }
        Some(Err(e)) => Err(format!("may be alive: {e}")),
        None => Err("may be alive: its record cannot be read".to_owned()),
    };
    if let Err(reason) = &gone
        && !force
    {
        let pod = net.as_ref().map_or(&owner.container_id, |net| &net.pod);
        return Err(format!(
            "{address} belongs to pod {pod}, which {reason}; delete the pod, or use --force, which \
             takes the interface out of it"
        ));
    }
    let done = match &net {
        Some(net) => agent
            .detach_permanently(&owner, net)
            .await
            .map_err(|e| e.to_string()),
        None => agent
            .pools
            .release_permanently(&owner)
            .await
            .map(drop)
            .map_err(|e| e.to_string()),
    };
    done.map_err(|e| format!("release {address} of {owner}: {e}"))?;
    tracing::info!(%owner, %address, forced = gone.is_err(), "released by ebbtidectl");
    Ok(Released {
        addresses: allocation
            .assigned
            .iter()
            .map(|each| each.address)
            .collect(),
        pod: net.map(|net| net.pod.clone()),
        owner: Some(owner),
        forced: gone.is_err(),
    })
}

/// Releases an address that waits for a pod.
async fn end_reservation(
    agent: &Agent,
    address: IpAddr,
    reservation: Reservation,
    force: bool,
) -> Result<Released, String> {
    // A sticky address is in no sandbox. Whether an adopted one is in use, only the API server knows.
    let forced = reservation.reason == Reason::Adopted;
    if forced && !force {
        return Err(format!(
            "{address} is reserved for pod {}, which may be running; delete the pod, or use --force \
             if it is gone",
            reservation.pod
        ));
    }
    let ended = agent.pools.end_reservation(&reservation.key()).await;
    let ended = ended.map_err(|e| format!("release {address} of pod {}: {e}", reservation.pod))?;
    let Some(reservation) = ended else {
        return Err(format!("{address} got another owner just now; try again"));
    };
    tracing::info!(pod = %reservation.pod, %address, forced, "released by ebbtidectl");
    Ok(Released {
        addresses: reservation
            .assigned
            .iter()
            .map(|each| each.address)
            .collect(),
        pod: Some(reservation.pod.to_string()),
        owner: None,
        forced,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ebbtide_ipam::catalog::Catalog;

    use super::*;

    #[test]
    fn an_address_that_nobody_has_is_placed_by_the_pools() {
        let text = "
---
{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: p}, spec:
  {subnet: 10.0.0.0/24, ips: [10.0.0.4-10.0.0.9], gateway: 10.0.0.1}}
---
{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderReservedIP, metadata: {name: r}, spec: {ips: [10.0.0.5]}}
";
        let catalog = Catalog::from_texts([(Path::new("m.yaml"), text)]);
        let p = || Some("p".to_owned());
        for (address, expected) in [
            ("10.0.0.4", (p(), AddressState::Free)),
            ("10.0.0.5", (p(), AddressState::Reserved)),
            ("10.0.0.1", (p(), AddressState::Gateway)),
            ("10.0.0.77", (None, AddressState::NotInRange)),
            ("10.1.0.4", (None, AddressState::Unknown)),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(place(catalog.pools(), address), expected, "{address}");
        }
    }
}
