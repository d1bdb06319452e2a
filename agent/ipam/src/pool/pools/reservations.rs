//! Addresses that wait for pods, and addresses that come and go at run time.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::Pools;
use crate::{
    catalog::{AddressSet, Catalog},
    pool::{
        Assigned, InUse, PodRef, PoolError, Reason, Reservation, ReservationKey, Withheld,
        state::Adoption,
        writer::{What, lock},
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
    /// Writes down that these addresses are this running pod's, so that nobody else gets them; true if
    /// that was news. All of them or none.
    ///
    /// When the pod gets a new sandbox here, it gets them. Otherwise they are held until
    /// [`Pools::end_reservation`], by evidence that the pod is gone.
    ///
    /// # Errors
    /// [`PoolError::Conflict`] if one of them is somebody else's or was given back by this
    /// node, [`PoolError::Store`] with nothing done.
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
                .write(What::Adopt { reservation, taken })
                .await
                .map(|()| true),
        }
    }

    /// All addresses that wait for a pod, and are on disk.
    #[must_use]
    pub fn reservations(&self) -> Vec<Reservation> {
        let reservations = lock(&self.inner.state).reservations();
        reservations.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Releases what waits for this interface of the pod; `None`: nothing does. The addresses cool down.
    ///
    /// For the evidence see [`super::super::is_expected`] (sticky), and the pod's uid (adopted).
    ///
    /// # Errors
    /// [`PoolError::ReservationBusy`], or [`PoolError::Store`] with nothing done.
    pub async fn end_reservation(
        &self,
        key: &ReservationKey,
    ) -> Result<Option<Reservation>, PoolError> {
        let Some(reservation) = lock(&self.inner.state).begin_end(key)? else {
            return Ok(None);
        };
        self.write(What::EndReservation(Arc::clone(&reservation)))
            .await?;
        Ok(Some(Arc::unwrap_or_clone(reservation)))
    }

    /// Hands none of these addresses out any more, so that another node can: for ranges of a shared
    /// pool that were leased to this node. Refused, with nothing changed, while one of them is in use,
    /// waits for a pod, or rests.
    ///
    /// In memory only, and before anybody else is told: what the catalog says at the next start is
    /// what the API server said then. A range that comes (back) needs [`Pools::restore`] if it was
    /// withdrawn, and a catalog that has it (see [`crate::catalog::Pool::limited_to`]).
    ///
    /// # Errors
    /// [`InUse`], with the addresses that are.
    pub fn withdraw(&self, addresses: &AddressSet) -> Result<(), InUse> {
        lock(&self.inner.state).withdraw(addresses, self.inner.clock.now())
    }

    /// Has nobody new get any of these from now on, and gives up what was withheld before. Who has one keeps it. In
    /// memory only.
    pub fn withhold(&self, withheld: Withheld) {
        lock(&self.inner.state).withhold(withheld);
    }

    /// Takes back [`Pools::withdraw`]: the range is this node's again.
    pub fn restore(&self, addresses: &AddressSet) {
        lock(&self.inner.state).restore(addresses);
    }
}

/// The address as the pool would assign it. Of a pool that is not declared, or is invalid, or does not
/// hand it out any more, it is held all the same: the pool may be put right while the pod runs.
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
