//! Read-only views of the state.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ebbtide_types::Family;

use super::{Phase, State};
use crate::{
    catalog::{AddressSet, Pool},
    pool::{
        Allocation, Full, FullPool, Owner, Reservation, Standing,
        clock::{Clock, Moment},
        history::Past,
        picker::Holder,
        store::Contents,
    },
};

/// The usage of a pool.
#[derive(Debug, Clone)]
pub(in crate::pool) struct Count {
    /// The number of addresses that it may hand out.
    pub(in crate::pool) total: u128,
    /// The held ones of those.
    pub(in crate::pool) used: u64,
    /// Addresses held although they are reserved now.
    pub(in crate::pool) held_reserved: u64,
    pub(in crate::pool) in_cooldown: u64,
    /// The time until the first address leaves its cooldown.
    pub(in crate::pool) next_free: Option<Duration>,
    /// Withheld addresses, neither held nor cooling down.
    pub(in crate::pool) withheld: Vec<(IpAddr, String)>,
    /// The number of addresses that nobody holds and that are asked back.
    pub(in crate::pool) asked_back: u128,
}

/// The state of one address; moments are this process's.
#[derive(Debug)]
pub(in crate::pool) struct Lookup {
    pub(in crate::pool) holder: Option<Arc<Owner>>,
    pub(in crate::pool) allocation: Option<Arc<Allocation>>,
    pub(in crate::pool) reservation: Option<Arc<Reservation>>,
    pub(in crate::pool) released: Option<Moment>,
    pub(in crate::pool) withheld: Option<String>,
    pub(in crate::pool) past: Vec<Past>,
}

impl State {
    pub(super) fn full(&self, family: Family, pools: &[&Pool], now: Moment) -> Full {
        let pools = pools.iter().map(|pool| {
            let count = self.count(pool, now);
            FullPool {
                pool: pool.name.clone(),
                total: count.total,
                used: count.used,
                in_cooldown: count.in_cooldown,
                next_free: count.next_free,
                withheld: count.withheld,
                asked_back: count.asked_back,
            }
        });
        Full {
            family,
            pools: pools.collect(),
            passed_over: Vec::new(),
            more: None,
        }
    }

    /// Returns the usage of the pool. O(log n) for a pool in use; others have next to nothing to count.
    pub(in crate::pool) fn count(&self, pool: &Pool, now: Moment) -> Count {
        let set = self.allocatable(pool);
        let ripe = now.saturating_sub(self.cooldown);
        let in_use = self.pickers.get(&pool.name);
        let (used, (in_cooldown, first)) = match in_use.filter(|picker| picker.set == *set) {
            Some(picker) => (picker.held(), picker.in_cooldown(ripe)),
            None => {
                let in_cooldown = self.addresses.released_in(&set);
                let in_cooldown = in_cooldown
                    .map(|(moment, _)| moment)
                    .filter(|at| *at > ripe);
                let counted = in_cooldown.fold((0, None), |(count, first), moment| {
                    (
                        count + 1,
                        Some(first.map_or(moment, |first: Moment| first.min(moment))),
                    )
                });
                (self.addresses.held_in(&set), counted)
            }
        };
        let left = |moment: Moment| moment.saturating_add(self.cooldown).saturating_sub(now);
        let is_idle = |address: &IpAddr| {
            let cooldowns = self
                .addresses
                .released
                .get(address)
                .is_some_and(|at| *at > ripe);
            !cooldowns && !self.addresses.held.contains_key(address)
        };
        let withheld = self.withheld.among(&set);
        let withheld = withheld.filter(|(address, _)| is_idle(address));
        let asked_back = self.withheld.asked_back(pool.family);
        let asked_back = asked_back.map(|asked| self.of_this_node(pool).common(asked));
        let (in_all, held) = asked_back.map_or((0, 0), |asked_back| {
            (asked_back.len(), self.addresses.held_in(&asked_back))
        });
        Count {
            total: set.len().saturating_add(in_all),
            used: used.saturating_add(held),
            asked_back: in_all.saturating_sub(u128::from(held)),
            held_reserved: self.addresses.held_in(&pool.reserved),
            in_cooldown,
            next_free: first.map(|at| Duration::from_millis(u64::try_from(left(at)).unwrap_or(0))),
            withheld: withheld
                .map(|(address, why)| (address, why.to_owned()))
                .collect(),
        }
    }

    /// Returns what is not free of these addresses.
    pub(in crate::pool) fn standing(&self, of: &AddressSet, now: Moment) -> Standing {
        let (mut used, mut resting) = (Vec::new(), Vec::new());
        for (first, last) in of.ranges() {
            for (address, holder) in self.addresses.held.range(first..=last) {
                match holder {
                    Holder::Owner(_) => used.push(*address),
                    Holder::Reservation(_) => resting.push(*address),
                }
            }
        }
        let ripe = now.saturating_sub(self.cooldown);
        let released = self.addresses.released_in(of);
        let in_cooldown = released.filter(|(moment, _)| *moment > ripe);
        resting.extend(in_cooldown.map(|(_, address)| address));
        let used = AddressSet::of(of.family(), used);
        let withheld = self.withheld.among(of).map(|(address, _)| address);
        resting.extend(withheld.filter(|address| !used.contains(*address)));
        Standing {
            resting: AddressSet::of(of.family(), resting),
            used,
        }
    }

    pub(in crate::pool) fn lookup(&self, address: IpAddr) -> Lookup {
        let (holder, reservation) = match self.addresses.held.get(&address).cloned() {
            Some(Holder::Owner(owner)) => (Some(owner), None),
            Some(Holder::Reservation(reservation)) => (None, Some(reservation)),
            None => (None, None),
        };
        Lookup {
            allocation: holder.as_ref().and_then(|owner| self.get(owner)),
            holder,
            reservation,
            released: self.addresses.released.get(&address).copied(),
            withheld: self.withheld.why(address).map(str::to_owned),
            past: self.history.of(address),
        }
    }

    /// Returns what is on disk, also while a change of it is in flight.
    pub(in crate::pool) fn get(&self, owner: &Owner) -> Option<Arc<Allocation>> {
        self.owners.get(owner).and_then(Phase::allocation)
    }

    pub(in crate::pool) fn all(&self) -> Vec<Arc<Allocation>> {
        self.owners.values().filter_map(Phase::allocation).collect()
    }

    /// Returns all that is on disk, for a new journal.
    pub(in crate::pool) fn durable(&self, clock: &Clock) -> Contents {
        let all = self.all().into_iter();
        let reservations = self
            .reservations
            .iter()
            .filter(|(_, waiting)| waiting.durable);
        let released = self.addresses.released.iter().chain(&self.borrowed);
        Contents {
            allocations: all.map(|each| (each.owner.clone(), each)).collect(),
            reservations: reservations
                .map(|(key, waiting)| (key.clone(), Arc::clone(&waiting.reservation)))
                .collect(),
            released: released
                .map(|(address, moment)| (*address, clock.date_of(*moment)))
                .collect::<BTreeMap<_, _>>(),
        }
    }
}
