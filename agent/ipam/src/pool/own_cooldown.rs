//! The addresses that a pod may reuse during their cooldown.
//!
//! An address cools down because others may still send its old pod's packets to it. The same pod
//! (its uid) in a new sandbox gets the address back at once. So a pod that fails over and over,
//! each time in a new sandbox, uses one address and does not drain the pool. Without a uid, as podman
//! and nerdctl call, it is the container by its ID, which they keep when they restart it.
//!
//! In memory only: after a restart of the agent an address cools down for every pod.

use std::{collections::HashMap, net::IpAddr};

use super::{Owner, PodRef, clock::Moment};

/// From this many addresses on, those that have cooled down are removed.
const LIMIT: usize = 1024;

/// The pod's uid, or else the container's ID, and the interface.
type Key = (String, String);

fn key(pod: Option<&PodRef>, owner: &Owner) -> Key {
    let uid = pod.map(|pod| &pod.uid).filter(|uid| !uid.is_empty());
    let id = uid.unwrap_or(&owner.container_id);
    (id.clone(), owner.interface.clone())
}

#[derive(Debug)]
pub(super) struct OwnCooldowns {
    /// The last owner, if the address was not taken since.
    by_address: HashMap<IpAddr, (Key, Moment)>,
    by_pod: HashMap<Key, Vec<IpAddr>>,
    /// The number of addresses from which on a cleanup is worth it.
    limit: usize,
}

impl Default for OwnCooldowns {
    fn default() -> Self {
        Self {
            by_address: HashMap::new(),
            by_pod: HashMap::new(),
            limit: LIMIT,
        }
    }
}

impl OwnCooldowns {
    /// Records that the pod's interface released these. `ripe` is as for the pickers.
    pub(super) fn add(
        &mut self,
        pod: Option<&PodRef>,
        owner: &Owner,
        addresses: &[IpAddr],
        now: Moment,
        ripe: Moment,
    ) {
        if self.by_address.len() >= self.limit {
            self.by_address.retain(|_, (_, moment)| *moment > ripe);
            let Self {
                by_address, by_pod, ..
            } = self;
            by_pod.retain(|_, all| all.iter().any(|address| by_address.contains_key(address)));
            self.limit = (self.by_address.len() * 2).max(LIMIT);
        }
        let key = key(pod, owner);
        for address in addresses {
            self.by_address.insert(*address, (key.clone(), now));
        }
        // What it released earlier, perhaps with one more family, is still its own.
        let mut all = self.of_key(&key);
        all.extend(addresses);
        all.sort_unstable();
        all.dedup();
        self.by_pod.insert(key, all);
    }

    /// Records that the address was taken.
    pub(super) fn taken(&mut self, address: IpAddr) {
        self.by_address.remove(&address);
    }

    /// Returns the addresses that this pod's interface released and that were not taken since.
    pub(super) fn of(&self, pod: Option<&PodRef>, owner: &Owner) -> Vec<IpAddr> {
        self.of_key(&key(pod, owner))
    }

    fn of_key(&self, key: &Key) -> Vec<IpAddr> {
        let all = self.by_pod.get(key).into_iter().flatten().copied();
        let own = |address: &IpAddr| {
            let last = self.by_address.get(address);
            last.is_some_and(|(last, _)| last == key)
        };
        all.filter(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container_id: &str) -> Owner {
        Owner {
            network: "ebbtide".into(),
            container_id: container_id.into(),
            interface: "eth0".into(),
        }
    }

    #[test]
    fn a_container_without_uid_is_known_by_its_id_and_a_pod_by_its_uid() {
        let pod = |uid: &str| PodRef {
            namespace: String::new(),
            name: "web".into(),
            uid: uid.into(),
        };
        let address = |number: u8| IpAddr::from([10, 0, 0, number]);
        let mut cooldowns = OwnCooldowns::default();
        cooldowns.add(None, &owner("nerdctl"), &[address(1)], 1, 0);
        cooldowns.add(Some(&pod("")), &owner("podman"), &[address(2)], 1, 0);
        cooldowns.add(Some(&pod("u")), &owner("first"), &[address(3)], 1, 0);
        for (pod, container, found) in [
            (None, "nerdctl", vec![address(1)]),
            (Some(pod("")), "podman", vec![address(2)]),
            (Some(pod("u")), "second", vec![address(3)]),
            (None, "another", vec![]),
            (Some(pod("")), "another", vec![]),
            (Some(pod("v")), "first", vec![]),
        ] {
            let own = cooldowns.of(pod.as_ref(), &owner(container));
            assert_eq!(own, found, "{pod:?} {container}");
        }
    }

    #[test]
    fn a_later_release_does_not_forget_an_earlier_ones_other_family() {
        let pod = PodRef {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "1".into(),
        };
        let [v4, v6] = ["10.0.0.1", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap());
        let mut cooldowns = OwnCooldowns::default();
        cooldowns.add(Some(&pod), &owner("c"), &[v4, v6], 1, 0);
        cooldowns.taken(v4);
        cooldowns.add(Some(&pod), &owner("c"), &[v4], 2, 0);
        assert_eq!(cooldowns.of(Some(&pod), &owner("c")), [v4, v6]);
    }

    #[test]
    fn what_has_rested_is_forgotten() {
        let mut cooldowns = OwnCooldowns::default();
        for number in 0..20_000u32 {
            let pod = PodRef {
                namespace: "shop".into(),
                name: "job".into(),
                uid: number.to_string(),
            };
            let (now, address) = (i64::from(number), IpAddr::from(number.to_be_bytes()));
            cooldowns.add(Some(&pod), &owner("c"), &[address], now, now - 100);
            assert_eq!(cooldowns.of(Some(&pod), &owner("c")), [address]);
        }
        assert!(cooldowns.by_address.len() <= LIMIT && cooldowns.by_pod.len() <= LIMIT);
    }
}
