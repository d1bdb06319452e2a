//! The next address of one pool, in O(1) amortised whatever the pool's size.
//!
//! Nothing is materialised, not even a bitmap: a cursor stands for all addresses that were never
//! used, so a million addresses (or a /64) cost nothing until they are handed out. What was
//! released waits in a queue, the longest-rested first. The entries here are only hints; the maps of
//! held and released addresses decide, since pools of a changing catalog may come to share addresses.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::{Owner, clock::Moment};
use crate::catalog::AddressSet;

/// With this many released addresses the longest-rested goes before one that was never used, so that
/// a pool of 2^64 does not fill the disk with the memory of its released addresses.
const FRESH_LIMIT: usize = 1 << 16;

/// What is true of addresses, over all pools.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// Reserved or allocated.
    pub(super) held: HashMap<IpAddr, Arc<Owner>>,
    /// Not held, and released at this moment. Addresses in neither map were never used.
    pub(super) released: HashMap<IpAddr, Moment>,
}

impl Addresses {
    fn is_fresh(&self, address: IpAddr) -> bool {
        !self.held.contains_key(&address) && !self.released.contains_key(&address)
    }
}

#[derive(Debug)]
pub(super) struct Picker {
    pub(super) set: AddressSet,
    /// All addresses from this index on were not looked at yet.
    cursor: u128,
    /// Never used, though the cursor has passed them.
    passed: BTreeSet<u128>,
    /// Released addresses by time of release.
    queue: VecDeque<(Moment, IpAddr)>,
}

impl Picker {
    pub(super) fn new(set: AddressSet, addresses: &Addresses) -> Self {
        let mut queue: Vec<(Moment, IpAddr)> = addresses
            .released
            .iter()
            .filter(|(address, _)| set.contains(**address))
            .map(|(address, moment)| (*moment, *address))
            .collect();
        queue.sort_unstable();
        Self {
            set,
            cursor: 0,
            passed: BTreeSet::new(),
            queue: queue.into(),
        }
    }

    /// The next free address; it is for the caller to mark it held. `ripe` is the moment up to which
    /// a release is long enough ago.
    pub(super) fn next(&mut self, addresses: &Addresses, ripe: Moment) -> Option<IpAddr> {
        if self.queue.len() >= FRESH_LIMIT
            && let Some(address) = self.longest_rested(addresses, ripe)
        {
            return Some(address);
        }
        self.fresh(addresses)
            .or_else(|| self.longest_rested(addresses, ripe))
    }

    fn fresh(&mut self, addresses: &Addresses) -> Option<IpAddr> {
        while let Some(index) = self.passed.pop_first() {
            if let Some(address) = self
                .set
                .get(index)
                .filter(|address| addresses.is_fresh(*address))
            {
                return Some(address);
            }
        }
        while let Some(address) = self.set.get(self.cursor) {
            self.cursor += 1;
            if addresses.is_fresh(address) {
                return Some(address);
            }
        }
        None
    }

    fn longest_rested(&mut self, addresses: &Addresses, ripe: Moment) -> Option<IpAddr> {
        while let Some((moment, address)) = self.queue.front().copied() {
            let stale = addresses.released.get(&address) != Some(&moment);
            if !stale && moment > ripe {
                return None;
            }
            self.queue.pop_front();
            if !stale {
                return Some(address);
            }
        }
        None
    }

    /// The address is held no more and was never used.
    pub(super) fn returned(&mut self, address: IpAddr) {
        if let Some(index) = self
            .set
            .index_of(address)
            .filter(|index| *index < self.cursor)
        {
            self.passed.insert(index);
        }
    }

    /// The address was released, now or (if a reservation of it was given up) earlier.
    pub(super) fn released(&mut self, address: IpAddr, moment: Moment) {
        if self.set.contains(address) {
            let place = self
                .queue
                .partition_point(|entry| *entry < (moment, address));
            self.queue.insert(place, (moment, address));
        }
    }
}
