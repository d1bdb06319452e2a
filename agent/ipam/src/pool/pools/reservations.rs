//! Reservations, and address ranges that change at run time.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::Pools;
use crate::{
    catalog::{AddressSet, Catalog},
    pool::{
        Assigned, InUse, PodRef, PoolError, Reason, Reservation, ReservationKey, Withheld,
        state::Adoption,
        writer::{Operation, lock},
    },
};

/// Addresses that a running pod has from another agent.
#[derive(Debug, Clone, Copy)]
pub struct Adopt<'a> {
    /// The pod, with its uid.
    pub pod: &'a PodRef,
    /// The interface in the pod.
    pub interface: &'a str,
    /// Pool and address: at most one of each family.
    pub addresses: &'a [(&'a str, IpAddr)],
}

impl Pools {
    /// Reserves the addresses of a running pod on disk, so that no other pod gets them. True if
    /// that was new. All of them or none.
    ///
    /// When the pod gets a new sandbox here, it gets them. Otherwise they are held until
    /// [`Pools::end_reservation`], by evidence that the pod was deleted.
    ///
    /// # Errors
    /// If one of them has another owner or was withdrawn from this node ([`PoolError::Conflict`]),
    /// or if the disk fails ([`PoolError::Store`]). Nothing is done then.
    pub async fn adopt(&self, requested: &Adopt<'_>, catalog: &Catalog) -> Result<bool, PoolError> {
        let addresses = requested.addresses.iter();
        let mut assigned: Vec<Assigned> = addresses
            .map(|(name, address)| assign(catalog, name, *address))
            .collect();
        assigned.sort_by_key(|each| each.address);
        let reservation = Arc::new(Reservation {
            pod: requested.pod.clone(),
            interface: requested.interface.to_owned(),
            reason: Reason::Adopted,
            since: self.inner.clock.unix_millis() / 1000,
            assigned,
        });
        let adoption = lock(&self.inner.state).adopt(&reservation)?;
        match adoption {
            Adoption::Existing => Ok(false),
            Adoption::New(taken) => self
                .write(Operation::Adopt { reservation, taken })
                .await
                .map(|()| true),
        }
    }

    /// Returns all reservations that are on disk.
    #[must_use]
    pub fn reservations(&self) -> Vec<Reservation> {
        let reservations = lock(&self.inner.state).reservations();
        reservations.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Releases the reservation for this interface of the pod; `None`: none exists. The addresses cool down.
    ///
    /// For the evidence see [`super::super::is_expected`] (sticky), and the pod's uid (adopted).
    ///
    /// # Errors
    /// If another change of it is in flight ([`PoolError::ReservationBusy`]), or if the disk fails
    /// ([`PoolError::Store`]). Nothing is done then.
    pub async fn end_reservation(
        &self,
        key: &ReservationKey,
    ) -> Result<Option<Reservation>, PoolError> {
        let Some(reservation) = lock(&self.inner.state).begin_end(key)? else {
            return Ok(None);
        };
        self.write(Operation::EndReservation(Arc::clone(&reservation)))
            .await?;
        Ok(Some(Arc::unwrap_or_clone(reservation)))
    }

    /// Stops handing out these addresses, so that another node can: for ranges of a shared pool that were leased
    /// to this node. Refused, with nothing changed, while one of them is in use, reserved, or in cooldown.
    ///
    /// In memory only, and before the API server is updated: the catalog of the next start is what
    /// the API server has then. A range that is added (again) needs [`Pools::restore`] if it was
    /// withdrawn, and a catalog that has it (see [`crate::catalog::Pool::limited_to`]).
    ///
    /// # Errors
    /// [`InUse`] if some of them are, with these addresses.
    pub fn withdraw(&self, addresses: &AddressSet) -> Result<(), InUse> {
        lock(&self.inner.state).withdraw(addresses, self.inner.clock.now())
    }

    /// Replaces the set of addresses that no new pod gets. A current owner keeps its address. In memory only.
    pub fn withhold(&self, withheld: Withheld) {
        lock(&self.inner.state).withhold(withheld);
    }

    /// Undoes [`Pools::withdraw`]: the range belongs to this node again.
    pub fn restore(&self, addresses: &AddressSet) {
        lock(&self.inner.state).restore(addresses);
    }
}

/// Returns the address as the pool would assign it. It is held even if the pool is not declared,
/// invalid, or does not contain it any more: the pool may be repaired while the pod runs.
fn assign(catalog: &Catalog, name: &str, address: IpAddr) -> Assigned {
    let pool = catalog.pool(name);
    let pool = pool.filter(|pool| pool.subnet.contains(&address));
    Assigned {
        address,
        prefix_len: pool.map_or_else(
            || IpNet::from(address).prefix_len(),
            |pool| pool.subnet.prefix_len(),
        ),
        pool: name.to_owned(),
        gateway: pool.and_then(|pool| pool.gateway),
        routes: pool.map_or_else(Vec::new, |pool| pool.routes.clone()),
    }
}
