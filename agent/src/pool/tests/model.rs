//! Random histories against a reference that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::catalog::Family;

/// The catalogs that the histories change between: pools move over one another, come and go.
const CATALOGS: [&str; 4] = [
    "
    a: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.4], default: true}
    b: {subnet: 10.0.0.0/24, ips: [10.0.0.5-10.0.0.6], default: true}
    six: {subnet: 'fd00::/64', ips: ['fd00::1-fd00::ffff:ffff'], default: true}",
    "
    a: {subnet: 10.0.0.0/24, ips: [10.0.0.3-10.0.0.6], default: true}
    b: {subnet: 10.0.0.0/24, ips: [10.0.0.1, 10.0.0.9], default: true}",
    "
    c: {subnet: 10.0.0.0/24, ips: [10.0.0.2, 10.0.0.8], default: true}
    six: {subnet: 'fd00::/64', ips: ['fd00::2-fd00::4'], default: true}",
    "six: {subnet: 'fd00::/64', ips: ['fd00::1-fd00::2'], default: true}",
];

const REST: u64 = 60_000;

#[derive(Debug, Clone)]
enum Step {
    /// ADD; `keep` is false if the caller gives up before the commit.
    Add {
        owner: u8,
        keep: bool,
    },
    /// Reservations of several owners, all open at once, then all committed or dropped.
    Crowd {
        owners: BTreeSet<u8>,
        keep: bool,
    },
    Release {
        owner: u8,
    },
    Update {
        owner: u8,
        record: u8,
    },
    Restart,
    Pass {
        seconds: u64,
    },
    Catalog {
        index: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let owner = 0u8..12;
    prop_oneof![
        6 => (owner.clone(), prop::bool::weighted(0.8)).prop_map(|(owner, keep)| Step::Add { owner, keep }),
        2 => (prop::collection::btree_set(owner.clone(), 1..6), any::<bool>())
            .prop_map(|(owners, keep)| Step::Crowd { owners, keep }),
        5 => owner.clone().prop_map(|owner| Step::Release { owner }),
        1 => (owner, any::<u8>()).prop_map(|(owner, record)| Step::Update { owner, record }),
        1 => Just(Step::Restart),
        3 => (1u64..50).prop_map(|seconds| Step::Pass { seconds }),
        1 => (0..CATALOGS.len()).prop_map(|index| Step::Catalog { index }),
    ]
}

/// What must be so. Everything is looked for in the plainest way.
#[derive(Debug, Default)]
struct Reference {
    held: BTreeMap<String, (Vec<IpAddr>, u8)>,
    /// Reserved, not committed.
    open: BTreeSet<IpAddr>,
    released: BTreeMap<IpAddr, u64>,
}

impl Reference {
    fn is_taken(&self, address: IpAddr) -> bool {
        self.open.contains(&address) || self.held.values().any(|(held, _)| held.contains(&address))
    }

    /// The addresses that an ADD must get, or none if some family is full.
    fn expected(&self, catalog: &Catalog, now: u64) -> Option<Vec<IpAddr>> {
        let families: BTreeSet<Family> = catalog.pools().iter().map(|pool| pool.family).collect();
        let pick = |family: &Family| {
            let mut pools: Vec<_> = catalog
                .pools()
                .iter()
                .filter(|pool| pool.family == *family)
                .collect();
            pools.sort_by_key(|pool| &pool.name);
            pools.into_iter().find_map(|pool| {
                // No history uses more than this many of a pool.
                let all = (0..200).map_while(|index| pool.ranges.get(index));
                let free: Vec<IpAddr> = all.filter(|address| !self.is_taken(*address)).collect();
                let fresh = free
                    .iter()
                    .find(|address| !self.released.contains_key(*address));
                let rested = free
                    .iter()
                    .filter_map(|address| Some((*self.released.get(address)?, *address)))
                    .filter(|(released, _)| released + REST <= now)
                    .min();
                fresh.copied().or(rested.map(|(_, address)| address))
            })
        };
        families.iter().map(pick).collect()
    }
}

struct Run {
    lab: Lab,
    pools: Option<Pools>,
    catalog: Catalog,
    reference: Reference,
}

impl Run {
    fn now(&self) -> u64 {
        self.lab.clock.load(Ordering::SeqCst)
    }

    fn pools(&self) -> &Pools {
        self.pools.as_ref().unwrap()
    }

    /// Reserves as the reference says it must come out; a grant if there is something to commit.
    fn reserve(&mut self, number: u8) -> Result<Option<Grant>, TestCaseError> {
        let container = number.to_string();
        let reserved = reserve(self.pools(), &self.catalog, &container);
        if let Some((held, _)) = self.reference.held.get(&container) {
            let Ok(Reserved::Existing(allocation)) = reserved else {
                return Err(TestCaseError::fail(format!(
                    "{reserved:?} instead of {held:?}"
                )));
            };
            prop_assert_eq!(&addresses(&allocation.assigned), held);
            return Ok(None);
        }
        match (reserved, self.reference.expected(&self.catalog, self.now())) {
            (Ok(Reserved::New(grant)), Some(expected)) => {
                prop_assert_eq!(&addresses(grant.assigned()), &expected);
                self.reference.open.extend(expected);
                Ok(Some(grant))
            }
            (Err(PoolError::Full(_)), None) => Ok(None),
            (reserved, expected) => Err(TestCaseError::fail(format!(
                "{reserved:?} instead of {expected:?}"
            ))),
        }
    }

    fn finish(&mut self, grant: Grant, keep: bool) {
        let held = addresses(grant.assigned());
        for address in &held {
            self.reference.open.remove(address);
        }
        if keep {
            let container = grant.owner().container_id.clone();
            wait(grant.commit(json!(0))).unwrap();
            for address in &held {
                self.reference.released.remove(address);
            }
            self.reference.held.insert(container, (held, 0));
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Add { owner, keep } => {
                if let Some(grant) = self.reserve(*owner)? {
                    self.finish(grant, *keep);
                }
            }
            Step::Crowd { owners, keep } => {
                let mut grants = Vec::new();
                for owner in owners {
                    grants.extend(self.reserve(*owner)?);
                }
                for grant in grants.into_iter().rev() {
                    self.finish(grant, *keep);
                }
            }
            Step::Release { owner } => {
                let container = owner.to_string();
                let released = release(self.pools(), &container)
                    .map(|allocation| addresses(&allocation.assigned));
                let held = self.reference.held.remove(&container).map(|(held, _)| held);
                prop_assert_eq!(&released, &held);
                let now = self.now();
                self.reference
                    .released
                    .extend(held.into_iter().flatten().map(|address| (address, now)));
            }
            Step::Update {
                owner: number,
                record,
            } => {
                let container = number.to_string();
                let result = wait(
                    self.pools()
                        .update_record(&owner(&container), json!(record)),
                );
                prop_assert_eq!(result.is_ok(), self.reference.held.contains_key(&container));
                if let Some((_, kept)) = self.reference.held.get_mut(&container) {
                    *kept = *record;
                }
            }
            Step::Restart => {
                self.pools = None;
                self.pools = Some(self.lab.open());
            }
            Step::Pass { seconds } => self.lab.pass(*seconds),
            Step::Catalog { index } => self.catalog = catalog(CATALOGS[*index]),
        }
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let listed: BTreeMap<String, (Vec<IpAddr>, u8)> = self
            .pools()
            .list()
            .into_iter()
            .map(|each| {
                let record = each.record.parse().unwrap();
                (each.owner.container_id, (addresses(&each.assigned), record))
            })
            .collect();
        prop_assert_eq!(&listed, &self.reference.held);
        let all: Vec<IpAddr> = listed.values().flat_map(|(held, _)| held.clone()).collect();
        prop_assert_eq!(
            all.iter().collect::<BTreeSet<_>>().len(),
            all.len(),
            "one address, two owners"
        );
        for usage in self.pools().usage(&self.catalog) {
            let set = &self.catalog.pool(&usage.name).unwrap().ranges;
            let used = all.iter().filter(|address| set.contains(**address)).count() as u64;
            prop_assert_eq!(usage.used, used, "{}", usage.name);
            let rests = |(address, released): (&IpAddr, &u64)| {
                set.contains(*address) && released + REST > self.now()
            };
            let resting = self
                .reference
                .released
                .iter()
                .filter(|entry| rests(*entry))
                .count() as u64;
            prop_assert_eq!(usage.resting, resting, "{}", usage.name);
            prop_assert_eq!(usage.free, usage.total - u128::from(used + resting));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_history_comes_out_as_the_reference_says(steps in prop::collection::vec(step(), 1..80)) {
        let lab = Lab::new();
        let pools = Some(lab.open());
        let mut run = Run { lab, pools, catalog: catalog(CATALOGS[0]), reference: Reference::default() };
        for step in &steps {
            run.step(step)?;
        }
    }
}
