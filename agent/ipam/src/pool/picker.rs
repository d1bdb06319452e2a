//! Picks the next address of one pool, in O(1) amortised whatever the pool's size.
//!
//! Nothing is materialised, not even a bitmap: a cursor stands for all addresses that were never
//! used, so a million addresses (or a /64) cost nothing until they are handed out. Released addresses
//! wait in a queue, the longest-cooled first. The maps of held and released addresses decide. Every
//! picker is notified of every change, since pools of a changing catalog may come to share addresses.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::{Owner, Reservation, Withheld, clock::Moment};
use crate::catalog::AddressSet;

/// From this many released addresses on, the longest-cooled is picked before one that was never
/// used, so that a pool of 2^64 does not fill the disk with released addresses.
const FRESH_LIMIT: usize = 1 << 16;

/// The holder of an address.
#[derive(Debug, Clone)]
pub(super) enum Holder {
    Owner(Arc<Owner>),
    /// A reservation for a pod.
    Reservation(Arc<Reservation>),
}

/// The state of addresses, over all pools.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// Granted, allocated or reserved addresses.
    pub(super) held: BTreeMap<IpAddr, Holder>,
    /// Addresses not held, with the moment of their release. Addresses in neither map were never used.
    pub(super) released: BTreeMap<IpAddr, Moment>,
}

impl Addresses {
    pub(super) fn held_in(&self, set: &AddressSet) -> u64 {
        let count: usize = set
            .ranges()
            .map(|(first, last)| self.held.range(first..=last).count())
            .sum();
        count.try_into().unwrap_or(u64::MAX)
    }

    pub(super) fn released_in(&self, set: &AddressSet) -> impl Iterator<Item = (Moment, IpAddr)> {
        set.ranges().flat_map(|(first, last)| {
            let released = self.released.range(first..=last);
            released.map(|(address, moment)| (*moment, *address))
        })
    }

    fn is_fresh(&self, address: IpAddr) -> bool {
        !self.held.contains_key(&address) && !self.released.contains_key(&address)
    }
}

#[derive(Debug)]
pub(super) struct Picker {
    pub(super) set: AddressSet,
    /// The first index that was not inspected yet.
    cursor: u128,
    /// Addresses before the cursor that were never used.
    passed: BTreeSet<u128>,
    /// Exactly the released addresses of the set, by time of release.
    queue: VecDeque<(Moment, IpAddr)>,
    /// The number of held addresses of the set.
    held: u64,
}

impl Picker {
    pub(super) fn new(set: AddressSet, addresses: &Addresses) -> Self {
        let mut queue: Vec<(Moment, IpAddr)> = addresses.released_in(&set).collect();
        queue.sort_unstable();
        Self {
            held: addresses.held_in(&set),
            set,
            cursor: 0,
            passed: BTreeSet::new(),
            queue: queue.into(),
        }
    }

    /// Returns the next free address; the caller marks it held. Addresses released after `ripe`
    /// still cool down. Withheld ones keep their place.
    pub(super) fn next(
        &mut self,
        addresses: &Addresses,
        withheld: &Withheld,
        ripe: Moment,
    ) -> Option<IpAddr> {
        if self.queue.len() >= FRESH_LIMIT
            && let Some(address) = self.longest_cooled(withheld, ripe)
        {
            return Some(address);
        }
        self.fresh(addresses, withheld)
            .or_else(|| self.longest_cooled(withheld, ripe))
    }

    fn fresh(&mut self, addresses: &Addresses, withheld: &Withheld) -> Option<IpAddr> {
        let mut kept = Vec::new();
        let mut found = None;
        while let Some((index, address)) = self.not_looked_at() {
            if !addresses.is_fresh(address) {
                continue;
            }
            if withheld.why(address).is_none() {
                found = Some(address);
                break;
            }
            kept.push(index);
        }
        self.passed.extend(kept);
        found
    }

    /// Returns the first address that may never have been used.
    fn not_looked_at(&mut self) -> Option<(u128, IpAddr)> {
        let index = match self.passed.pop_first() {
            Some(index) => index,
            None => {
                self.set.get(self.cursor)?;
                self.cursor += 1;
                self.cursor - 1
            }
        };
        Some((index, self.set.get(index)?))
    }

    fn longest_cooled(&self, withheld: &Withheld, ripe: Moment) -> Option<IpAddr> {
        let cooled = self.queue.iter().take_while(|(moment, _)| *moment <= ripe);
        let mut cooled = cooled.map(|(_, address)| *address);
        cooled.find(|address| withheld.why(*address).is_none())
    }

    /// Records that the address is held; `released` is the moment of its last release, if any.
    pub(super) fn taken(&mut self, address: IpAddr, released: Option<Moment>) {
        if !self.set.contains(address) {
            return;
        }
        self.held += 1;
        if let Some(moment) = released
            && let Ok(place) = self.queue.binary_search(&(moment, address))
        {
            self.queue.remove(place);
        }
    }

    /// Records that the address is no longer held. It was released, now or (if a reservation of it
    /// ended) earlier, or it was never used.
    pub(super) fn returned(&mut self, address: IpAddr, released: Option<Moment>) {
        let Some(index) = self.set.index_of(address) else {
            return;
        };
        self.held = self.held.saturating_sub(1);
        match released {
            Some(moment) => {
                let place = self
                    .queue
                    .partition_point(|entry| *entry < (moment, address));
                self.queue.insert(place, (moment, address));
            }
            None if index < self.cursor => {
                self.passed.insert(index);
            }
            None => {}
        }
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Returns how many addresses were released after `ripe`, and when the first of these was.
    pub(super) fn in_cooldown(&self, ripe: Moment) -> (u64, Option<Moment>) {
        let start = self.queue.partition_point(|(moment, _)| *moment <= ripe);
        let first = self.queue.get(start).map(|(moment, _)| *moment);
        (
            (self.queue.len() - start).try_into().unwrap_or(u64::MAX),
            first,
        )
    }
}
