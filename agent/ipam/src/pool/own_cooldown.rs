//! The addresses that a pod may reuse during their cooldown.
//!
//! An address cools down because others may still send its old pod's packets to it. The same pod
//! (its uid) in a new sandbox gets the address back at once. So a pod that fails over and over,
//! each time in a new sandbox, uses one address and does not drain the pool.
//!
//! In memory only: after a restart of the agent an address cools down for every pod.

use std::{collections::HashMap, net::IpAddr};

use super::{PodRef, clock::Moment};

/// From this many addresses on, those that have cooled down are removed.
const LIMIT: usize = 1024;

/// The pod's uid and the interface.
type Key = (String, String);

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
        pod: &PodRef,
        interface: &str,
        addresses: &[IpAddr],
        now: Moment,
        ripe: Moment,
    ) {
        if pod.uid.is_empty() {
            return;
        }
        if self.by_address.len() >= self.limit {
            self.by_address.retain(|_, (_, moment)| *moment > ripe);
            let Self {
                by_address, by_pod, ..
            } = self;
            by_pod.retain(|_, all| all.iter().any(|address| by_address.contains_key(address)));
            self.limit = (self.by_address.len() * 2).max(LIMIT);
        }
        let key = (pod.uid.clone(), interface.to_owned());
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
    pub(super) fn of(&self, pod: Option<&PodRef>, interface: &str) -> Vec<IpAddr> {
        pod.map(|pod| self.of_key(&(pod.uid.clone(), interface.to_owned())))
            .unwrap_or_default()
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

    #[test]
    fn a_later_release_does_not_forget_an_earlier_ones_other_family() {
        let pod = PodRef {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "1".into(),
        };
        let [v4, v6] = ["10.0.0.1", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap());
        let mut cooldowns = OwnCooldowns::default();
        cooldowns.add(&pod, "eth0", &[v4, v6], 1, 0);
        cooldowns.taken(v4);
        cooldowns.add(&pod, "eth0", &[v4], 2, 0);
        assert_eq!(cooldowns.of(Some(&pod), "eth0"), [v4, v6]);
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
            cooldowns.add(&pod, "eth0", &[address], now, now - 100);
            assert_eq!(cooldowns.of(Some(&pod), "eth0"), [address]);
        }
        assert!(cooldowns.by_address.len() <= LIMIT && cooldowns.by_pod.len() <= LIMIT);
    }
}
