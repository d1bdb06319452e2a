//! Takes the addresses for a request.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use ebbtide_types::Family;

use super::{Before, Bundle, Ending, Phase, State, Taken, requested};
use crate::{
    catalog::{AddressSet, Catalog, Pool, Route},
    pool::{
        Assigned, Owner, PodRef, PoolError, Reservation,
        annotations::Requested,
        clock::Moment,
        picker::{Holder, Picker},
        select::{Choice, Selection},
    },
};

/// A request in the form that the state needs.
pub(in crate::pool) struct Asked<'a> {
    pub(in crate::pool) owner: &'a Arc<Owner>,
    pub(in crate::pool) pod: Option<&'a PodRef>,
    pub(in crate::pool) selection: &'a Selection<'a>,
    pub(in crate::pool) requested: &'a Requested,
    /// The requested addresses, at most one of a family: it gets these or fails.
    pub(in crate::pool) requested_addresses: &'a [IpAddr],
    pub(in crate::pool) catalog: &'a Catalog,
    pub(in crate::pool) now: Moment,
}

impl State {
    /// Takes one address of each family, or none at all.
    pub(in crate::pool) fn take(&mut self, asked: &Asked<'_>) -> Result<Bundle, PoolError> {
        let reservation = self.reservation_of(asked);
        let kept = reservation
            .as_ref()
            .and_then(|reservation| kept(asked, reservation));
        let is_wanted = |(address, _): &(IpAddr, &Pool)| {
            requested::of_family(asked.requested_addresses, Family::of(*address))
                .is_none_or(|requested_addresses| requested_addresses == *address)
        };
        let kept = kept.filter(|chosen| {
            let mut chosen = chosen.iter();
            chosen.all(|one| is_wanted(one) && self.withheld.why_for_its_own(one.0).is_none())
        });
        let is_met = kept.is_some();
        let reserved: Vec<Taken> = reservation.iter().flat_map(before_reserved).collect();
        let (taken, chosen) = match kept {
            Some(chosen) => (reserved, chosen),
            None => self.take_new(asked)?,
        };
        for one in &taken {
            let holder = Holder::Owner(Arc::clone(asked.owner));
            self.addresses.held.insert(one.address, holder);
        }
        self.owners.insert(
            Arc::clone(asked.owner),
            Phase::Pending {
                doing: "adding",
                allocation: None,
            },
        );
        if let Some(reservation) = &reservation {
            self.set_busy(reservation, true);
        }
        let assign = |(address, pool): (IpAddr, &Pool)| Assigned {
            address,
            prefix_len: pool.subnet.prefix_len(),
            pool: pool.name.clone(),
            gateway: pool.gateway.filter(|_| !asked.requested.clean_gateway),
            routes: routes(pool, &asked.requested.routes),
        };
        Ok(Bundle {
            taken,
            assigned: chosen.into_iter().map(assign).collect(),
            reservation: reservation.map(|reservation| Ending {
                reservation,
                is_met,
            }),
        })
    }

    /// Takes free addresses.
    fn take_new<'a>(&mut self, asked: &Asked<'a>) -> Result<(Vec<Taken>, Chosen<'a>), PoolError> {
        let (mut taken, mut chosen) = (Vec::new(), Chosen::new());
        for choice in asked.selection {
            let Choice {
                family,
                pools,
                passed_over,
            } = choice;
            if let Some(address) = requested::of_family(asked.requested_addresses, *family) {
                match self.requested_addresses(address, choice, asked) {
                    Ok((address, pool)) => {
                        taken.push(self.take_one(asked.owner, address));
                        chosen.push((address, pool));
                        continue;
                    }
                    Err(unavailable) => {
                        self.return_addresses(&taken);
                        return Err(unavailable.into());
                    }
                }
            }
            let found = self.own_in_cooldown(asked, pools).or_else(|| {
                pools.iter().find_map(|pool| {
                    let ripe = asked.now.saturating_sub(self.cooldown);
                    Some((self.next_of(pool, asked.catalog, ripe)?, *pool))
                })
            });
            let Some((address, pool)) = found else {
                self.return_addresses(&taken);
                let mut full = self.full(*family, pools, asked.now);
                full.passed_over.clone_from(passed_over);
                full.more = pools.iter().find_map(|pool| {
                    let note = asked.catalog.derived_note(pool.derived_of()?);
                    Some(note.map_or_else(String::new, |note| note.more.clone()))
                });
                return Err(full.into());
            };
            taken.push(self.take_one(asked.owner, address));
            chosen.push((address, pool));
        }
        Ok((taken, chosen))
    }

    fn take_one(&mut self, owner: &Arc<Owner>, address: IpAddr) -> Taken {
        let holder = Holder::Owner(Arc::clone(owner));
        self.mark_held(address, holder)
    }

    /// Marks a free address as held.
    pub(super) fn mark_held(&mut self, address: IpAddr, holder: Holder) -> Taken {
        let released = self.addresses.released.remove(&address);
        self.own_cooldowns.taken(address);
        self.addresses.held.insert(address, holder);
        for picker in self.pickers.values_mut() {
            picker.taken(address, released);
        }
        let before = released.map_or(Before::NeverUsed, |moment| {
            self.borrowed.insert(address, moment);
            Before::Released(moment)
        });
        Taken { address, before }
    }

    /// Returns what the pod itself released a moment ago, if these pools may still hand it out.
    fn own_in_cooldown<'a>(
        &self,
        asked: &Asked<'_>,
        pools: &[&'a Pool],
    ) -> Option<(IpAddr, &'a Pool)> {
        let own = self.own_cooldowns.of(asked.pod, asked.owner);
        own.into_iter().find_map(|address| {
            let is_free = self.addresses.released.contains_key(&address)
                && !self.is_withdrawn(address)
                && self.withheld.why(address).is_none();
            let mut pools = pools.iter().filter(|_| is_free);
            let pool = pools.find(|pool| pool.ranges.contains(address))?;
            Some((address, *pool))
        })
    }

    /// Returns the next free address of the pool as it is in this catalog.
    fn next_of(&mut self, pool: &Pool, catalog: &Catalog, ripe: Moment) -> Option<IpAddr> {
        let set = self.allocatable(pool);
        let Self {
            addresses,
            pickers,
            withheld,
            ..
        } = self;
        if let Some(picker) = pickers
            .get_mut(&pool.name)
            .filter(|picker| picker.set == *set)
        {
            return picker.next(addresses, withheld, ripe);
        }
        // The pool is new or has changed; drop the pickers of removed pools.
        pickers.retain(|name, _| catalog.pool(name).is_some());
        let mut picker = Picker::new(set.into_owned(), addresses);
        let address = picker.next(addresses, withheld, ripe);
        pickers.insert(pool.name.clone(), picker);
        address
    }

    /// Returns the pool's addresses without the withdrawn ones and those that are asked back.
    pub(super) fn allocatable<'a>(&self, pool: &'a Pool) -> Cow<'a, AddressSet> {
        let own = self.of_this_node(pool);
        match self.withheld.asked_back(pool.family) {
            Some(asked_back) => Cow::Owned(own.without(asked_back)),
            None => own,
        }
    }

    /// Returns the pool's addresses without the withdrawn ones.
    pub(super) fn of_this_node<'a>(&self, pool: &'a Pool) -> Cow<'a, AddressSet> {
        let withdrawn = &self.withdrawn[pool.family as usize];
        if withdrawn.is_empty() {
            Cow::Borrowed(&pool.ranges)
        } else {
            Cow::Owned(pool.ranges.without(withdrawn))
        }
    }

    pub(super) fn is_withdrawn(&self, address: IpAddr) -> bool {
        self.withdrawn[Family::of(address) as usize].contains(address)
    }
}

type Chosen<'a> = Vec<(IpAddr, &'a Pool)>;

/// Returns the reservation's addresses with their pools, if these are the pools and families that the request is for.
fn kept<'a>(asked: &Asked<'a>, reservation: &Reservation) -> Option<Chosen<'a>> {
    let mut selection = asked.selection.iter();
    let chosen: Option<Chosen<'a>> = reservation
        .assigned
        .iter()
        .map(|assigned| {
            let choice = selection.next()?;
            let mut pools = choice.pools.iter();
            let pool = pools.find(|pool| {
                pool.ranges.contains(assigned.address) || pool.reserved.contains(assigned.address)
            })?;
            (choice.family == Family::of(assigned.address)).then_some((assigned.address, *pool))
        })
        .collect();
    chosen.filter(|_| selection.next().is_none())
}

fn before_reserved(reservation: &Arc<Reservation>) -> impl Iterator<Item = Taken> + '_ {
    reservation.assigned.iter().map(|assigned| Taken {
        address: assigned.address,
        before: Before::FromReservation(Arc::clone(reservation)),
    })
}

/// Merges the pod's routes with a gateway in this pool's subnet or the pool's own one, and the
/// pool's to other destinations.
fn routes(pool: &Pool, requested: &[Route]) -> Vec<Route> {
    let mut routes: Vec<Route> = requested
        .iter()
        .filter(|route| pool.subnet.contains(&route.gateway) || pool.gateway == Some(route.gateway))
        .copied()
        .collect();
    let own = pool
        .routes
        .iter()
        .filter(|own| requested.iter().all(|route| route.dst != own.dst));
    routes.extend(own);
    routes
}
