//! The state in memory. Every method is quick and touches neither disk nor clock.

mod requested;
mod reservations;
mod take;
mod view;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ebbtide_types::Family;

use super::{
    Allocation, Assigned, Owner, PoolError, Reservation, ReservationKey, Withheld,
    clock::{Moment, millis},
    history::History,
    own_cooldown::OwnCooldowns,
    picker::{Addresses, Holder, Picker},
};
use crate::catalog::AddressSet;

pub(super) use requested::can_be_met;
pub(super) use reservations::Adoption;
pub(super) use take::Asked;

/// An address that was taken, and its previous state.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub(super) address: IpAddr,
    before: Before,
}

#[derive(Debug, Clone)]
enum Before {
    NeverUsed,
    Released(Moment),
    /// It was reserved for the pod that now takes it.
    FromReservation(Arc<Reservation>),
}

/// The addresses that a request took.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) taken: Vec<Taken>,
    pub(super) assigned: Vec<Assigned>,
    /// The reservation that ends with it.
    pub(super) reservation: Option<Ending>,
}

/// A reservation that ends with a request of its pod.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) reservation: Arc<Reservation>,
    /// Whether its addresses are now the request's; otherwise they are released.
    pub(super) is_met: bool,
}

/// The phase of an owner.
#[derive(Debug)]
enum Phase {
    /// A request is in flight; with what was durable before it, if anything.
    Pending {
        doing: &'static str,
        allocation: Option<Arc<Allocation>>,
    },
    Held(Arc<Allocation>),
}

/// A reservation and its phase.
#[derive(Debug)]
struct Waiting {
    reservation: Arc<Reservation>,
    /// Whether it is on disk.
    durable: bool,
    /// Whether a request that changes it is in flight.
    busy: bool,
}

#[derive(Debug)]
pub(super) struct State {
    history: History,
    addresses: Addresses,
    owners: HashMap<Arc<Owner>, Phase>,
    reservations: BTreeMap<ReservationKey, Waiting>,
    own_cooldowns: OwnCooldowns,
    /// Addresses released earlier and taken since, by requests that are not on disk yet.
    borrowed: BTreeMap<IpAddr, Moment>,
    /// Addresses returned to a pool shared among nodes: not handed out, whatever the catalog says.
    withdrawn: [AddressSet; 2],
    /// Addresses not handed out for now.
    withheld: Withheld,
    pickers: HashMap<String, Picker>,
    cooldown: i64,
}

impl State {
    pub(super) fn new(cooldown: Duration) -> Self {
        Self {
            history: History::default(),
            addresses: Addresses::default(),
            owners: HashMap::new(),
            reservations: BTreeMap::new(),
            own_cooldowns: OwnCooldowns::default(),
            borrowed: BTreeMap::new(),
            withdrawn: Family::BOTH.map(AddressSet::empty),
            withheld: Withheld::default(),
            pickers: HashMap::new(),
            cooldown: millis(cooldown),
        }
    }

    /// Adds an allocation found on disk; false if one of its addresses has another owner.
    pub(super) fn recover(&mut self, allocation: Arc<Allocation>) -> bool {
        let owner = Arc::new(allocation.owner.clone());
        let unique = allocation.assigned.iter().all(|assigned| {
            let holder = Holder::Owner(Arc::clone(&owner));
            let other = self.addresses.held.insert(assigned.address, holder);
            other.is_none()
        });
        self.owners.insert(owner, Phase::Held(allocation));
        unique
    }

    /// Adds a release found on disk.
    pub(super) fn recover_released(&mut self, address: IpAddr, moment: Moment) {
        if !self.addresses.held.contains_key(&address) {
            self.addresses.released.insert(address, moment);
        }
    }

    /// Replaces the set of addresses that no new pod gets.
    pub(super) fn withhold(&mut self, withheld: Withheld) {
        self.withheld = withheld;
    }

    /// Returns what the owner has, or an error if a request is in flight.
    pub(super) fn existing(&self, owner: &Owner) -> Result<Option<Arc<Allocation>>, PoolError> {
        match self.owners.get(owner) {
            None => Ok(None),
            Some(Phase::Held(allocation)) => Ok(Some(Arc::clone(allocation))),
            Some(Phase::Pending { doing, .. }) => Err(PoolError::Busy {
                owner: owner.clone(),
                doing,
            }),
        }
    }

    /// Marks the owner as changing or releasing what it has.
    pub(super) fn begin(
        &mut self,
        owner: &Owner,
        doing: &'static str,
    ) -> Result<Option<Arc<Allocation>>, PoolError> {
        let existing = self.existing(owner)?;
        if let (Some(allocation), Some(phase)) = (&existing, self.owners.get_mut(owner)) {
            *phase = Phase::Pending {
                doing,
                allocation: Some(Arc::clone(allocation)),
            };
        }
        Ok(existing)
    }

    fn return_addresses(&mut self, taken: &[Taken]) {
        for one in taken {
            self.borrowed.remove(&one.address);
            let released = match &one.before {
                Before::FromReservation(reservation) => {
                    let holder = Holder::Reservation(Arc::clone(reservation));
                    self.addresses.held.insert(one.address, holder);
                    continue;
                }
                Before::NeverUsed => None,
                Before::Released(moment) => Some(*moment),
            };
            self.addresses.held.remove(&one.address);
            if let Some(moment) = released {
                self.addresses.released.insert(one.address, moment);
            }
            for picker in self.pickers.values_mut() {
                picker.returned(one.address, released);
            }
        }
    }

    /// Releases what was in use. The cooldown begins at `released`, if given.
    fn release(&mut self, assigned: &[Assigned], released: Option<Moment>) {
        let before = released.map_or(Before::NeverUsed, Before::Released);
        let given_back: Vec<Taken> = assigned
            .iter()
            .map(|assigned| Taken {
                address: assigned.address,
                before: before.clone(),
            })
            .collect();
        self.return_addresses(&given_back);
    }

    /// Reverts [`Self::take`]: the addresses were never used.
    pub(super) fn undo_reserve(
        &mut self,
        owner: &Owner,
        taken: &[Taken],
        reservation: Option<&Ending>,
    ) {
        self.owners.remove(owner);
        self.return_addresses(taken);
        if let Some(ending) = reservation {
            self.set_busy(&ending.reservation, false);
        }
    }

    /// Completes a request after its addresses, and the end of its reservation, are on disk.
    pub(super) fn add(
        &mut self,
        allocation: &Arc<Allocation>,
        reservation: Option<&Ending>,
        now: Moment,
    ) {
        for assigned in &allocation.assigned {
            self.borrowed.remove(&assigned.address);
        }
        self.hold(allocation);
        if let Some(ending) = reservation {
            self.reservations.remove(&ending.reservation.key());
            if !ending.is_met {
                self.release(&ending.reservation.assigned, Some(now));
            }
        }
    }

    /// Marks the allocation as durable.
    pub(super) fn hold(&mut self, allocation: &Arc<Allocation>) {
        if let Some(phase) = self.owners.get_mut(&allocation.owner) {
            *phase = Phase::Held(Arc::clone(allocation));
        }
    }

    /// Removes the allocation after it is removed from disk; its addresses cool down from the
    /// moment given, or not at all.
    ///
    /// `unix_seconds` is the time of day, for people.
    pub(super) fn forget(
        &mut self,
        allocation: &Allocation,
        released: Option<Moment>,
        unix_seconds: u64,
    ) {
        self.owners.remove(&allocation.owner);
        self.release(&allocation.assigned, released);
        let Some(moment) = released else {
            return;
        };
        self.history.add(allocation, unix_seconds);
        let all = allocation.assigned.iter().map(|each| each.address);
        let all: Vec<IpAddr> = all.collect();
        let ripe = moment.saturating_sub(self.cooldown);
        let (pod, owner) = (allocation.pod.as_ref(), &allocation.owner);
        self.own_cooldowns.add(pod, owner, &all, moment, ripe);
    }
}

impl Phase {
    fn allocation(&self) -> Option<Arc<Allocation>> {
        match self {
            Self::Pending { allocation, .. } => allocation.clone(),
            Self::Held(allocation) => Some(Arc::clone(allocation)),
        }
    }
}
