//! The pods of a node of the histories.

use std::{collections::BTreeMap, time::Duration};

use ebbtide_ipam::pool::{Families, PoolError, Pools, Request, Reserved};
use ebbtide_types::Family;
use ipnet::IpNet;

use super::{Node, Pod, Refused, WAITS, owner, wait};
use crate::cloud::histories::vpc::{LINKS, mac};

impl Node {
    fn request<T>(
        &self,
        container: u64,
        link: &str,
        families: Families,
        then: impl FnOnce(&Pools, &Request<'_>) -> T,
    ) -> T {
        let owner = owner(container);
        let node = self.name();
        let request = Request {
            metadata: Some(link),
            families,
            ..Request::new(&owner, &node, &self.catalog)
        };
        then(self.pools(), &request)
    }

    /// Adds a pod, as far as there are addresses; false if there are none. `dies` says that the agent ends before they are on
    /// disk.
    pub(in crate::cloud::histories) fn add(
        &mut self,
        container: u64,
        place: usize,
        families: Families,
        now: u64,
        dies: bool,
    ) -> bool {
        let link = LINKS[place];
        let at = self.zero + Duration::from_secs(now);
        let grant = match self.request(container, link, families, Pools::reserve) {
            Ok(Reserved::New(grant)) => grant,
            Ok(Reserved::Existing(existing)) => panic!("{container} is new: {existing:?}"),
            Err(error) => {
                let lacking = match error {
                    PoolError::Full(full) => Some(full.family),
                    PoolError::NoAddress(none) => none.family,
                    error => panic!("{container}: {error}"),
                };
                self.waiting
                    .found_none(link, &container.to_string(), lacking, at);
                let refused = Refused {
                    place,
                    families,
                    lacking,
                    at: now,
                    gave_up: false,
                };
                self.refused.insert(container, refused);
                return false;
            }
        };
        if dies {
            drop(grant);
            self.restart(now);
            return true;
        }
        let allocation = wait(grant.commit("{}".parse::<serde_json::Value>().unwrap())).unwrap();
        let has_waited = self.waiting.found(link, &container.to_string());
        let was_refused = self.refused.remove(&container);
        assert!(!has_waited || was_refused.is_some(), "{container}");
        for address in allocation.assigned.iter().map(|one| one.address) {
            let promised = self.promised.of(Family::of(address));
            let is_promised = promised.contains(address);
            assert!(
                !is_promised,
                "{container}: {address} is asked back, and surrendered"
            );
        }
        let assigned = allocation.assigned.iter();
        let pod = Pod {
            nic: 2 * self.number + place,
            addresses: assigned.map(|assigned| assigned.address).collect(),
        };
        self.pods.insert(container, pod);
        true
    }

    /// Forgets those that gave up, and are not told any more.
    pub(in crate::cloud::histories) fn forget(&mut self, now: u64) {
        let is_told = |refused: &Refused| !refused.gave_up || now - refused.at < WAITS;
        self.refused.retain(|_, refused| is_told(refused));
    }

    /// Deletes a pod.
    pub(in crate::cloud::histories) fn delete(&mut self, container: u64) {
        wait(self.pools().release(&owner(container))).unwrap();
        self.pods.remove(&container);
    }

    /// Returns the blocks of a NIC that the ledger remembers.
    fn known(&self, nic: usize) -> Vec<IpNet> {
        let held = self.ledger.held(mac(nic)).into_iter();
        let waiting = self.ledger.waiting(mac(nic)).into_iter();
        let mut known = self.ledger.usable(mac(nic));
        known.extend(held.map(|held| held.block));
        known.extend(waiting.map(|waiting| waiting.block));
        known
    }

    /// Checks that each pod has what it had, by itself, that the ledger knows of it, and who is told to wait.
    pub(in crate::cloud::histories) fn check(&self, now: u64, what: &str) {
        let mut expected = BTreeMap::new();
        for (container, pod) in &self.pods {
            for address in &pod.addresses {
                let double = expected.insert(*address, *container);
                assert_eq!(double, None, "{what}: {address} of {container}");
            }
        }
        assert_eq!(self.in_use(), expected, "{what}");
        let usable: Vec<Vec<IpNet>> = [0, 1]
            .map(|place| self.ledger.usable(mac(2 * self.number + place)))
            .to_vec();
        for pod in self.pods.values() {
            let others = &usable[1 - pod.nic % 2];
            let known = self.known(pod.nic);
            for address in &pod.addresses {
                let is_known = known.iter().any(|block| block.contains(address));
                assert!(is_known, "{what}: {address} is a pod's and forgotten");
                let other = others.iter().find(|block| block.contains(address));
                assert_eq!(other, None, "{what}: {address} is a pod's of the other NIC");
            }
        }
        for (place, link) in LINKS.iter().enumerate() {
            let mut waiting: BTreeMap<Family, u64> = BTreeMap::new();
            let refused = self.refused.values().filter(|one| one.place == place);
            for one in refused.filter(|one| now - one.at < WAITS) {
                *waiting
                    .entry(one.lacking.unwrap_or(Family::V4))
                    .or_default() += 1;
            }
            let at = self.zero + Duration::from_secs(now);
            let told = self.waiting.count(link, Family::V4, at);
            assert_eq!(told, waiting, "{what}: pods that wait for {link}");
        }
    }
}
