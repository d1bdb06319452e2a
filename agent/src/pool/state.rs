//! The truth in memory. Every method is quick and touches neither disk nor time.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use super::{
    Allocation, Assigned, Full, FullPool, Owner, PoolError,
    annotations::Wish,
    clock::{Moment, millis},
    history::{History, Past},
    picker::{Addresses, Picker},
    select::Selection,
};
use crate::catalog::{Catalog, Family, Pool, Route};

/// An address that was taken, and what it was before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub(super) address: IpAddr,
    /// When it had been released, if ever.
    released: Option<Moment>,
}

/// Where an owner stands.
#[derive(Debug)]
enum Phase {
    /// A request is under way; what was durable before it, if anything.
    Pending {
        doing: &'static str,
        allocation: Option<Arc<Allocation>>,
    },
    Held(Arc<Allocation>),
}

/// How full a pool is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count {
    /// Held, of those that it may hand out.
    pub(super) used: u64,
    /// Held though they are reserved now.
    pub(super) held_reserved: u64,
    pub(super) resting: u64,
    /// When the first of the resting may be handed out again.
    pub(super) next_free: Option<Duration>,
}

/// What is known of one address.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) holder: Option<Arc<Owner>>,
    pub(super) allocation: Option<Arc<Allocation>>,
    pub(super) released: Option<Moment>,
    pub(super) past: Vec<Past>,
}

#[derive(Debug)]
pub(super) struct State {
    history: History,
    addresses: Addresses,
    owners: HashMap<Arc<Owner>, Phase>,
    pickers: HashMap<String, Picker>,
    rest: i64,
}

impl State {
    pub(super) fn new(rest: Duration) -> Self {
        Self {
            history: History::default(),
            addresses: Addresses::default(),
            owners: HashMap::new(),
            pickers: HashMap::new(),
            rest: millis(rest),
        }
    }

    /// Takes in an allocation found on disk; false if one of its addresses has another owner.
    pub(super) fn recover(&mut self, allocation: Allocation) -> bool {
        let owner = Arc::new(allocation.owner.clone());
        let unique = allocation.assigned.iter().all(|assigned| {
            self.addresses
                .held
                .insert(assigned.address, Arc::clone(&owner))
                .is_none()
        });
        self.owners.insert(owner, Phase::Held(Arc::new(allocation)));
        unique
    }

    /// Takes in a release found on disk.
    pub(super) fn recover_released(&mut self, address: IpAddr, moment: Moment) {
        if !self.addresses.held.contains_key(&address) {
            self.addresses.released.insert(address, moment);
        }
    }

    /// What the owner has, or that something is under way.
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

    /// Marks the owner as busy with changing or giving up what it has.
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

    /// Takes one address of each family, or none at all.
    pub(super) fn take(
        &mut self,
        owner: &Arc<Owner>,
        selection: &Selection<'_>,
        wish: &Wish,
        catalog: &Catalog,
        now: Moment,
    ) -> Result<(Vec<Taken>, Vec<Assigned>), PoolError> {
        let (mut taken, mut assigned) = (Vec::new(), Vec::new());
        for (family, pools) in selection {
            let found = pools
                .iter()
                .find_map(|pool| Some((self.take_one(owner, pool, catalog, now)?, *pool)));
            let Some((one, pool)) = found else {
                self.give_back(&taken);
                return Err(self.full(*family, pools, now).into());
            };
            taken.push(one);
            assigned.push(Assigned {
                address: one.address,
                prefix_len: pool.subnet.prefix_len(),
                pool: pool.name.clone(),
                gateway: pool.gateway.filter(|_| !wish.clean_gateway),
                routes: routes(pool, &wish.routes),
            });
        }
        self.owners.insert(
            Arc::clone(owner),
            Phase::Pending {
                doing: "adding",
                allocation: None,
            },
        );
        Ok((taken, assigned))
    }

    fn take_one(
        &mut self,
        owner: &Arc<Owner>,
        pool: &Pool,
        catalog: &Catalog,
        now: Moment,
    ) -> Option<Taken> {
        let ripe = now.saturating_sub(self.rest);
        let address = self.next_of(pool, catalog, ripe)?;
        let released = self.addresses.released.remove(&address);
        self.addresses.held.insert(address, Arc::clone(owner));
        for picker in self.pickers.values_mut() {
            picker.taken(address, released);
        }
        Some(Taken { address, released })
    }

    /// The next free address of the pool as it is in this catalog.
    fn next_of(&mut self, pool: &Pool, catalog: &Catalog, ripe: Moment) -> Option<IpAddr> {
        let Self {
            addresses, pickers, ..
        } = self;
        if let Some(picker) = pickers
            .get_mut(&pool.name)
            .filter(|picker| picker.set == pool.ranges)
        {
            return picker.next(addresses, ripe);
        }
        // The pool is new or has changed; let those go that are no more.
        pickers.retain(|name, _| catalog.pool(name).is_some());
        let mut picker = Picker::new(pool.ranges.clone(), addresses);
        let address = picker.next(addresses, ripe);
        pickers.insert(pool.name.clone(), picker);
        address
    }

    fn give_back(&mut self, taken: &[Taken]) {
        for one in taken {
            self.addresses.held.remove(&one.address);
            if let Some(moment) = one.released {
                self.addresses.released.insert(one.address, moment);
            }
            for picker in self.pickers.values_mut() {
                picker.returned(one.address, one.released);
            }
        }
    }

    /// Undoes [`Self::take`]: nobody has seen the addresses.
    pub(super) fn abandon(&mut self, owner: &Owner, taken: &[Taken]) {
        self.owners.remove(owner);
        self.give_back(taken);
    }

    /// The allocation is on disk.
    pub(super) fn hold(&mut self, allocation: &Arc<Allocation>) {
        if let Some(phase) = self.owners.get_mut(&allocation.owner) {
            *phase = Phase::Held(Arc::clone(allocation));
        }
    }

    /// The allocation is on disk no more; its addresses rest from the moment given, or not at all.
    ///
    /// `unix_seconds` is the time of day, for people.
    pub(super) fn forget(
        &mut self,
        allocation: &Allocation,
        released: Option<Moment>,
        unix_seconds: u64,
    ) {
        if released.is_some() {
            self.history.add(allocation, unix_seconds);
        }
        self.owners.remove(&allocation.owner);
        let given_back: Vec<Taken> = allocation
            .assigned
            .iter()
            .map(|assigned| Taken {
                address: assigned.address,
                released,
            })
            .collect();
        self.give_back(&given_back);
    }

    /// What is on disk, also while a change of it is under way.
    pub(super) fn get(&self, owner: &Owner) -> Option<Arc<Allocation>> {
        self.owners.get(owner).and_then(Phase::allocation)
    }

    pub(super) fn all(&self) -> Vec<Arc<Allocation>> {
        self.owners.values().filter_map(Phase::allocation).collect()
    }

    fn full(&self, family: Family, pools: &[&Pool], now: Moment) -> Full {
        let pools = pools.iter().map(|pool| {
            let count = self.count(pool, now);
            FullPool {
                pool: pool.name.clone(),
                total: pool.ranges.len(),
                used: count.used,
                resting: count.resting,
                next_free: count.next_free,
            }
        });
        Full {
            family,
            pools: pools.collect(),
        }
    }

    /// How full the pool is. O(log n) for a pool in use; others have next to nothing to count.
    pub(super) fn count(&self, pool: &Pool, now: Moment) -> Count {
        let ripe = now.saturating_sub(self.rest);
        let in_use = self.pickers.get(&pool.name);
        let (used, (resting, first)) = match in_use.filter(|picker| picker.set == pool.ranges) {
            Some(picker) => (picker.held(), picker.resting(ripe)),
            None => {
                let resting = self.addresses.released_in(&pool.ranges);
                let resting = resting.map(|(moment, _)| moment).filter(|at| *at > ripe);
                let counted = resting.fold((0, None), |(count, first), moment| {
                    (
                        count + 1,
                        Some(first.map_or(moment, |first: Moment| first.min(moment))),
                    )
                });
                (self.addresses.held_in(&pool.ranges), counted)
            }
        };
        let left = |moment: Moment| moment.saturating_add(self.rest).saturating_sub(now);
        Count {
            used,
            held_reserved: self.addresses.held_in(&pool.reserved),
            resting,
            next_free: first.map(|at| Duration::from_millis(u64::try_from(left(at)).unwrap_or(0))),
        }
    }

    /// What is known of an address; moments are this process's.
    pub(super) fn look(&self, address: IpAddr) -> Look {
        let holder = self.addresses.held.get(&address).cloned();
        Look {
            allocation: holder.as_ref().and_then(|owner| self.get(owner)),
            holder,
            released: self.addresses.released.get(&address).copied(),
            past: self.history.of(address),
        }
    }
}

/// The pod's own routes that this pool's subnet can carry, and the pool's to other destinations.
fn routes(pool: &Pool, wished: &[Route]) -> Vec<Route> {
    let mut routes: Vec<Route> = wished
        .iter()
        .filter(|route| pool.subnet.contains(&route.gateway))
        .copied()
        .collect();
    let own = pool
        .routes
        .iter()
        .filter(|own| wished.iter().all(|route| route.dst != own.dst));
    routes.extend(own);
    routes
}

impl Phase {
    fn allocation(&self) -> Option<Arc<Allocation>> {
        match self {
            Self::Pending { allocation, .. } => allocation.clone(),
            Self::Held(allocation) => Some(Arc::clone(allocation)),
        }
    }
}
