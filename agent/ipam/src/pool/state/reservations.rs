//! Reservations in memory.

use std::{net::IpAddr, sync::Arc};

use super::{Asked, State, Taken, Waiting};
use crate::{
    catalog::AddressSet,
    pool::{
        Allocation, Conflict, InUse, Owner, PoolError, Reservation, ReservationKey, clock::Moment,
        picker::Holder,
    },
};

/// The result of adopting addresses.
#[derive(Debug)]
pub(in crate::pool) enum Adoption {
    /// The pod has them, by a reservation or by its sandbox.
    Existing,
    /// They are held now, and must be written to disk.
    New(Vec<Taken>),
}

impl State {
    /// Adds a reservation found on disk; false if one of its addresses has an owner.
    pub(in crate::pool) fn recover_reservation(&mut self, reservation: Arc<Reservation>) -> bool {
        let unique = reservation.assigned.iter().all(|assigned| {
            let holder = Holder::Reservation(Arc::clone(&reservation));
            let other = self.addresses.held.insert(assigned.address, holder);
            other.is_none()
        });
        let waiting = Waiting {
            reservation: Arc::clone(&reservation),
            durable: true,
            busy: false,
        };
        self.reservations.insert(reservation.key(), waiting);
        unique
    }

    /// Returns the reservation that the request's pod may use.
    pub(super) fn reservation_of(&self, asked: &Asked<'_>) -> Option<Arc<Reservation>> {
        let pod = asked.pod?;
        let waiting = self
            .reservations
            .get(&ReservationKey::new(pod, &asked.owner.interface))?;
        let fits = waiting.durable && !waiting.busy && waiting.reservation.is_for(pod);
        fits.then(|| Arc::clone(&waiting.reservation))
    }

    pub(in crate::pool) fn set_busy(&mut self, reservation: &Reservation, busy: bool) {
        if let Some(waiting) = self.reservations.get_mut(&reservation.key()) {
            waiting.busy = busy;
        }
    }

    /// Holds the addresses for the reservation's pod, unless it has them already.
    pub(in crate::pool) fn adopt(
        &mut self,
        reservation: &Arc<Reservation>,
    ) -> Result<Adoption, PoolError> {
        let conflict = |address: IpAddr, with: String| Conflict {
            pod: reservation.pod.to_string(),
            address,
            with,
        };
        let mut own = 0;
        for assigned in &reservation.assigned {
            let address = assigned.address;
            match self.addresses.held.get(&address) {
                None if self.is_withdrawn(address) => {
                    let with = "is no longer leased to this node".to_owned();
                    return Err(conflict(address, with).into());
                }
                None => {}
                Some(Holder::Reservation(other)) if is_same(other, reservation) => own += 1,
                Some(Holder::Reservation(other)) => {
                    let with = format!("is reserved for {} of pod {}", other.interface, other.pod);
                    return Err(conflict(address, with).into());
                }
                Some(Holder::Owner(owner)) if self.is_of(owner, reservation) => own += 1,
                Some(Holder::Owner(owner)) => {
                    return Err(conflict(address, format!("belongs to {owner}")).into());
                }
            }
        }
        let waiting = self.reservations.get(&reservation.key());
        let all = own == reservation.assigned.len();
        if let Some(first) = reservation.assigned.first()
            && !all
            && (own > 0 || waiting.is_some())
        {
            let with = "is not all that the pod has on this interface".to_owned();
            return Err(conflict(first.address, with).into());
        }
        if all {
            // Not before it is on disk, though.
            return match waiting {
                Some(waiting) if waiting.busy => {
                    Err(PoolError::ReservationBusy(reservation.pod.to_string()))
                }
                _ => Ok(Adoption::Existing),
            };
        }
        let taken = reservation
            .assigned
            .iter()
            .map(|each| self.mark_held(each.address, Holder::Reservation(Arc::clone(reservation))))
            .collect();
        let waiting = Waiting {
            reservation: Arc::clone(reservation),
            durable: false,
            busy: true,
        };
        self.reservations.insert(reservation.key(), waiting);
        Ok(Adoption::New(taken))
    }

    /// Whether the owner is a sandbox of the reservation's own pod.
    fn is_of(&self, owner: &Owner, reservation: &Reservation) -> bool {
        let pod = self
            .get(owner)
            .and_then(|allocation| allocation.pod.clone());
        pod.is_some_and(|pod| {
            ReservationKey::new(&pod, &owner.interface) == reservation.key()
                && reservation.is_for(&pod)
        })
    }

    /// Marks the reservation as durable.
    pub(in crate::pool) fn keep(&mut self, reservation: &Reservation) {
        for assigned in &reservation.assigned {
            self.borrowed.remove(&assigned.address);
        }
        if let Some(waiting) = self.reservations.get_mut(&reservation.key()) {
            waiting.durable = true;
            waiting.busy = false;
        }
    }

    /// Undoes [`Self::adopt`].
    pub(in crate::pool) fn disown(&mut self, reservation: &Reservation, taken: &[Taken]) {
        self.reservations.remove(&reservation.key());
        self.return_addresses(taken);
    }

    /// Marks the reservation as about to end.
    pub(in crate::pool) fn begin_end(
        &mut self,
        key: &ReservationKey,
    ) -> Result<Option<Arc<Reservation>>, PoolError> {
        match self.reservations.get_mut(key) {
            None => Ok(None),
            Some(waiting) if waiting.busy => Err(PoolError::ReservationBusy(
                waiting.reservation.pod.to_string(),
            )),
            Some(waiting) => {
                waiting.busy = true;
                Ok(Some(Arc::clone(&waiting.reservation)))
            }
        }
    }

    /// Ends the reservation after it is removed from disk; its addresses cool down.
    pub(in crate::pool) fn end(&mut self, reservation: &Reservation, now: Moment) {
        self.reservations.remove(&reservation.key());
        self.release(&reservation.assigned, Some(now));
    }

    /// Turns the allocation of a removed sandbox into a reservation for the pod's next one: both changes are on disk.
    pub(in crate::pool) fn turn(
        &mut self,
        allocation: &Allocation,
        reservation: &Arc<Reservation>,
        unix_seconds: u64,
    ) {
        self.history.add(allocation, unix_seconds);
        self.owners.remove(&allocation.owner);
        for assigned in &allocation.assigned {
            let holder = Holder::Reservation(Arc::clone(reservation));
            self.addresses.held.insert(assigned.address, holder);
        }
        let waiting = Waiting {
            reservation: Arc::clone(reservation),
            durable: true,
            busy: false,
        };
        self.reservations.insert(reservation.key(), waiting);
    }

    /// Whether a reservation for this interface of the pod exists or is in flight.
    pub(in crate::pool) fn is_reserved(&self, key: &ReservationKey) -> bool {
        self.reservations.contains_key(key)
    }

    pub(in crate::pool) fn reservations(&self) -> Vec<Arc<Reservation>> {
        let durable = self.reservations.values().filter(|waiting| waiting.durable);
        durable
            .map(|waiting| Arc::clone(&waiting.reservation))
            .collect()
    }

    /// Stops handing out these addresses. If one of them is in use or cools down, nothing changes.
    pub(in crate::pool) fn withdraw(&mut self, set: &AddressSet, now: Moment) -> Result<(), InUse> {
        let held = set.ranges().flat_map(|(first, last)| {
            let held = self.addresses.held.range(first..=last);
            held.map(|(address, _)| *address)
        });
        let held: Vec<IpAddr> = held.collect();
        let ripe = now.saturating_sub(self.cooldown);
        let in_cooldown = self.addresses.released_in(set);
        let in_cooldown: Vec<IpAddr> = in_cooldown
            .filter(|(moment, _)| *moment > ripe)
            .map(|(_, address)| address)
            .collect();
        if !held.is_empty() || !in_cooldown.is_empty() {
            return Err(InUse { held, in_cooldown });
        }
        let withdrawn = &mut self.withdrawn[set.family() as usize];
        *withdrawn = withdrawn.union(set);
        Ok(())
    }

    /// Undoes [`Self::withdraw`].
    pub(in crate::pool) fn restore(&mut self, set: &AddressSet) {
        let withdrawn = &mut self.withdrawn[set.family() as usize];
        *withdrawn = withdrawn.without(set);
    }
}

fn is_same(a: &Reservation, b: &Reservation) -> bool {
    a.key() == b.key() && a.is_for(&b.pod)
}
