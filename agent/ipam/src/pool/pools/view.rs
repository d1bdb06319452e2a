//! Read-only views of the pools.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use tokio::sync::watch;

use super::Pools;
use crate::{
    catalog::{AddressSet, Catalog},
    pool::{AddressStatus, Allocation, PodRef, PoolUsage, Standing, clock::millis, writer::lock},
};

/// All allocations and reservations at one moment, for publishing the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The number of changes that were durable since the agent's start, as of [`Pools::subscribe`].
    pub changes: u64,
    /// Pool → address → its owner.
    pub pools: BTreeMap<String, BTreeMap<IpAddr, Assignment>>,
}

/// The pod and the sandbox of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The pod; none without Kubernetes.
    pub pod: Option<PodRef>,
    /// The interface in the pod.
    pub interface: String,
    /// The sandbox's container ID; none: the address is reserved for the pod's next sandbox.
    pub container_id: Option<String>,
    /// The time of assignment: seconds since 1970.
    pub since: u64,
}

impl Pools {
    /// Returns all allocations on disk, by owner.
    #[must_use]
    pub fn list(&self) -> Vec<Allocation> {
        let mut all = lock(&self.inner.state).all();
        all.sort_by(|a, b| a.owner.cmp(&b.owner));
        all.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Returns every durable allocation, by pool. Holds the lock for as long as it takes to count
    /// references: a fraction of a millisecond for thousands.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (changes, allocations, reservations) = {
            let state = lock(&self.inner.state);
            (
                *self.inner.changes.borrow(),
                state.all(),
                state.reservations(),
            )
        };
        let mut pools: BTreeMap<String, BTreeMap<IpAddr, Assignment>> = BTreeMap::new();
        let mut add = |assigned: &[super::super::Assigned], assignment: &Assignment| {
            for each in assigned {
                let pool = pools.entry(each.pool.clone()).or_default();
                pool.insert(each.address, assignment.clone());
            }
        };
        for reservation in reservations {
            let assignment = Assignment {
                pod: Some(reservation.pod.clone()),
                interface: reservation.interface.clone(),
                container_id: None,
                since: reservation.since,
            };
            add(&reservation.assigned, &assignment);
        }
        for allocation in allocations {
            let assignment = Assignment {
                pod: allocation.pod.clone(),
                interface: allocation.owner.interface.clone(),
                container_id: Some(allocation.owner.container_id.clone()),
                since: allocation.since,
            };
            add(&allocation.assigned, &assignment);
        }
        Snapshot { changes, pools }
    }

    /// Subscribes to the number of durable changes: a new value means that [`Pools::snapshot`]
    /// differs. A slow reader misses values and never a change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changes.clone()
    }

    /// Returns the owner of an address, or the time of its release, and its earlier owners.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> AddressStatus {
        let clock = &self.inner.clock;
        let (now, cooldown) = (clock.now(), millis(self.inner.options.cooldown));
        let look = lock(&self.inner.state).lookup(address);
        let left = |moment: i64| moment.saturating_add(cooldown).saturating_sub(now);
        AddressStatus {
            holder: look.holder.map(Arc::unwrap_or_clone),
            allocation: look.allocation.map(Arc::unwrap_or_clone),
            reservation: look.reservation.map(Arc::unwrap_or_clone),
            released_at: look.released.map(|moment| clock.date_of(moment) / 1000),
            cooldown_for: look
                .released
                .map_or(0, |moment| u64::try_from(left(moment)).unwrap_or(0)),
            withheld: look.withheld,
            past: look.past,
        }
    }

    /// Returns what is not free of these addresses.
    #[must_use]
    pub fn standing(&self, of: &AddressSet) -> Standing {
        let now = self.inner.clock.now();
        lock(&self.inner.state).standing(of, now)
    }

    /// Returns the usage of each pool of the catalog, in the catalog's order.
    #[must_use]
    pub fn usage(&self, catalog: &Catalog) -> Vec<PoolUsage> {
        let now = self.inner.clock.now();
        let state = lock(&self.inner.state);
        let usage = |pool: &crate::catalog::Pool| {
            let count = state.count(pool, now);
            PoolUsage {
                name: pool.name.clone(),
                family: pool.family,
                subnet: pool.subnet,
                total: count.total,
                used: count.used.saturating_add(count.held_reserved),
                in_cooldown: count.in_cooldown,
                reserved: pool.reserved.len(),
                free: count.total.saturating_sub(
                    u128::from(count.used)
                        + u128::from(count.in_cooldown)
                        + count.withheld.len() as u128
                        + count.asked_back,
                ),
                withheld: count.withheld,
                asked_back: count.asked_back,
                node_names: pool.node_names.clone(),
                networks: pool.networks.clone(),
                default: pool.default,
                disabled: pool.disabled,
                source: pool.source.clone(),
            }
        };
        catalog.pools().iter().map(usage).collect()
    }
}
