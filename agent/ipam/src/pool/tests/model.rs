//! Random histories compared with a reference that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_types::Family;
use proptest::prelude::*;

use super::*;

/// The catalogs that the histories switch between: pools overlap, appear and disappear.
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
    /// Requests of several owners, all open at once, then all committed or dropped.
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
    /// The owner's pod has the first pool's address of this index already.
    Adopt {
        owner: u8,
        index: u8,
    },
    EndReservation {
        owner: u8,
    },
    Restart,
    Pass {
        seconds: u64,
    },
    Catalog {
        index: usize,
    },
    /// These of the pools' addresses are the node's own now, and no others.
    Withhold {
        addresses: BTreeSet<IpAddr>,
    },
}

/// Addresses that are in pools of the catalogs, and some that are in none.
fn of_the_node() -> impl Strategy<Value = BTreeSet<IpAddr>> {
    let v4 = (0u8..11).prop_map(|last| IpAddr::from([10, 0, 0, last]));
    let v6 = (0u16..6).prop_map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]));
    prop::collection::btree_set(prop_oneof![v4, v6], 0..6)
}

fn step() -> impl Strategy<Value = Step> {
    let owner = 0u8..12;
    prop_oneof![
        6 => (owner.clone(), prop::bool::weighted(0.8)).prop_map(|(owner, keep)| Step::Add { owner, keep }),
        2 => (prop::collection::btree_set(owner.clone(), 1..6), any::<bool>())
            .prop_map(|(owners, keep)| Step::Crowd { owners, keep }),
        5 => owner.clone().prop_map(|owner| Step::Release { owner }),
        1 => (owner.clone(), any::<u8>()).prop_map(|(owner, record)| Step::Update { owner, record }),
        1 => (owner.clone(), 0u8..6).prop_map(|(owner, index)| Step::Adopt { owner, index }),
        1 => owner.prop_map(|owner| Step::EndReservation { owner }),
        1 => Just(Step::Restart),
        3 => (1u64..50).prop_map(|seconds| Step::Pass { seconds }),
        1 => (0..CATALOGS.len()).prop_map(|index| Step::Catalog { index }),
        2 => of_the_node().prop_map(|addresses| Step::Withhold { addresses }),
    ]
}

/// The expected state, computed in the plainest way.
#[derive(Debug, Default)]
struct Reference {
    held: BTreeMap<String, (Vec<IpAddr>, u8)>,
    /// Granted, not committed.
    open: BTreeSet<IpAddr>,
    released: BTreeMap<IpAddr, u64>,
    /// The reservation for the owner's pod.
    reservations: BTreeMap<String, Vec<IpAddr>>,
    /// Released by this owner, and not taken since. Lost at a restart.
    own: BTreeMap<IpAddr, String>,
    /// No new pod gets these. Lost at a restart.
    withheld: BTreeSet<IpAddr>,
}

/// Every third pod is a StatefulSet's.
fn is_stateful(container: &str) -> bool {
    container.parse::<u8>().unwrap().is_multiple_of(3)
}

fn subject(container: &str) -> Subject {
    Subject {
        pod: Object::named(format!("web-{container}")),
        namespace: Object::named("shop"),
        pod_uid: format!("uid-{container}"),
        controller: is_stateful(container).then(|| Controller {
            kind: "StatefulSet".into(),
            name: "web".into(),
        }),
        ..Subject::UNKNOWN
    }
}

impl Reference {
    fn is_taken(&self, address: IpAddr) -> bool {
        let mut all = self
            .held
            .values()
            .map(|(held, _)| held)
            .chain(self.reservations.values());
        self.open.contains(&address) || all.any(|held| held.contains(&address))
    }

    /// Returns the reservation of the pod, if it is of this catalog's pools, one address of each family.
    fn waiting(&self, container: &str, catalog: &Catalog) -> Option<Vec<IpAddr>> {
        let reservation = self.reservations.get(container)?;
        let families: BTreeSet<Family> = catalog.pools().iter().map(|pool| pool.family).collect();
        let reserved = reservation
            .iter()
            .map(|address| Family::of(*address))
            .collect();
        let is_there = |address: &IpAddr| {
            let mut pools = catalog.pools().iter();
            pools.any(|pool| pool.ranges.contains(*address)) && !self.withheld.contains(address)
        };
        (families == reserved && reservation.iter().all(is_there)).then(|| reservation.clone())
    }

    /// Returns the addresses that an ADD must get, or none if some family is full.
    fn expected(&self, container: &str, catalog: &Catalog, now: u64) -> Option<Vec<IpAddr>> {
        if let Some(waiting) = self.waiting(container, catalog) {
            return Some(waiting);
        }
        let families: BTreeSet<Family> = catalog.pools().iter().map(|pool| pool.family).collect();
        let pick = |family: &Family| {
            let mut pools: Vec<_> = catalog
                .pools()
                .iter()
                .filter(|pool| pool.family == *family)
                .collect();
            pools.sort_by_key(|pool| &pool.name);
            let own = self.own.iter().find(|(address, owner)| {
                *owner == container
                    && !self.withheld.contains(address)
                    && pools.iter().any(|pool| pool.ranges.contains(**address))
            });
            if let Some((address, _)) = own {
                return Some(*address);
            }
            pools.into_iter().find_map(|pool| {
                // No history uses more addresses of a pool.
                let all = (0..200).map_while(|index| pool.ranges.get(index));
                let is_free =
                    |address: &IpAddr| !self.is_taken(*address) && !self.withheld.contains(address);
                let free: Vec<IpAddr> = all.filter(is_free).collect();
                let fresh = free
                    .iter()
                    .find(|address| !self.released.contains_key(*address));
                let cooled = free
                    .iter()
                    .filter_map(|address| Some((*self.released.get(address)?, *address)))
                    .filter(|(released, _)| released + REST <= now)
                    .min();
                fresh.copied().or(cooled.map(|(_, address)| address))
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

    /// Reserves and compares with the reference; a grant if there is something to commit.
    fn reserve(&mut self, number: u8) -> Result<Option<Grant>, TestCaseError> {
        let container = number.to_string();
        let (owner, subject) = (owner(&container), subject(&container));
        let request = Request {
            subject: &subject,
            ..Request::new(&owner, "node", &self.catalog)
        };
        let reserved = self.pools().reserve(&request);
        if let Some((held, _)) = self.reference.held.get(&container) {
            let Ok(Reserved::Existing(allocation)) = reserved else {
                return Err(TestCaseError::fail(format!(
                    "{reserved:?} instead of {held:?}"
                )));
            };
            prop_assert_eq!(&addresses(&allocation.assigned), held);
            return Ok(None);
        }
        let expected = self
            .reference
            .expected(&container, &self.catalog, self.now());
        match (reserved, expected) {
            (Ok(Reserved::New(grant)), Some(expected)) => {
                prop_assert_eq!(&addresses(grant.assigned()), &expected);
                self.reference
                    .own
                    .retain(|address, _| !expected.contains(address));
                self.reference.open.extend(expected);
                Ok(Some(grant))
            }
            (Err(PoolError::Full(_)), None) => Ok(None),
            (reserved, expected) => Err(TestCaseError::fail(format!(
                "{reserved:?} instead of {expected:?}"
            ))),
        }
    }

    fn adopt(&mut self, container: &str, index: u8) -> Result<(), TestCaseError> {
        let pool = &self.catalog.pools()[0];
        let Some(address) = pool.ranges.get(index.into()) else {
            return Ok(());
        };
        let subject = subject(container);
        let pod = PodRef {
            namespace: "shop".into(),
            name: subject.pod.name,
            uid: subject.pod_uid,
        };
        let requested = Adopt {
            pod: &pod,
            interface: "eth0",
            addresses: &[(&pool.name, address)],
        };
        let found = wait(self.pools().adopt(&requested, &self.catalog)).ok();
        let reference = &mut self.reference;
        let held = reference.held.get(container);
        let expected = match reference.reservations.get(container) {
            Some(reservation) if reservation.contains(&address) => Some(false),
            _ if held.is_some_and(|(held, _)| held.contains(&address)) => Some(false),
            Some(_) => None,
            None => (!reference.is_taken(address)).then_some(true),
        };
        prop_assert_eq!(found, expected, "{} {}", container, address);
        if expected == Some(true) {
            reference.released.remove(&address);
            reference.own.remove(&address);
            reference
                .reservations
                .insert(container.to_owned(), vec![address]);
        }
        Ok(())
    }

    fn finish(&mut self, grant: Grant, keep: bool) {
        let held = addresses(grant.assigned());
        for address in &held {
            self.reference.open.remove(address);
        }
        if keep {
            let container = grant.owner().container_id.clone();
            wait(grant.commit(json!(0))).unwrap();
            let now = self.now();
            if let Some(reservation) = self.reference.reservations.remove(&container) {
                let released = reservation.into_iter().map(|address| (address, now));
                self.reference.released.extend(released);
            }
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
                let waits = is_stateful(&container);
                match held {
                    Some(held)
                        if waits && !self.reference.reservations.contains_key(&container) =>
                    {
                        self.reference.reservations.insert(container, held);
                    }
                    held => {
                        for address in held.into_iter().flatten() {
                            self.reference.released.insert(address, self.now());
                            self.reference.own.insert(address, container.clone());
                        }
                    }
                }
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
            Step::Adopt {
                owner: number,
                index,
            } => self.adopt(&number.to_string(), *index)?,
            Step::EndReservation { owner: number } => {
                let container = number.to_string();
                let key = ReservationKey {
                    namespace: "shop".into(),
                    name: format!("web-{container}"),
                    interface: "eth0".into(),
                };
                let ended = wait(self.pools().end_reservation(&key)).unwrap();
                let ended = ended.map(|reservation| addresses(&reservation.assigned));
                let reservation = self.reference.reservations.remove(&container);
                prop_assert_eq!(&ended, &reservation);
                for address in reservation.into_iter().flatten() {
                    self.reference.released.insert(address, self.now());
                }
            }
            Step::Restart => {
                self.reference.own.clear();
                self.reference.withheld.clear();
                self.pools = None;
                self.pools = Some(self.lab.open());
            }
            Step::Pass { seconds } => self.lab.pass(*seconds),
            Step::Catalog { index } => self.catalog = catalog(CATALOGS[*index]),
            Step::Withhold { addresses } => {
                let reasons = addresses
                    .iter()
                    .map(|address| (*address, "the node".to_owned()));
                self.pools().withhold(Withheld::new(reasons));
                self.reference.withheld.clone_from(addresses);
            }
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
        let reservations: BTreeMap<String, Vec<IpAddr>> = self
            .pools()
            .reservations()
            .into_iter()
            .map(|reservation| {
                let number = reservation.pod.name.trim_start_matches("web-").to_owned();
                (number, addresses(&reservation.assigned))
            })
            .collect();
        prop_assert_eq!(&reservations, &self.reference.reservations);
        let held = listed.values().map(|(held, _)| held);
        let all: Vec<IpAddr> = held
            .chain(reservations.values())
            .flatten()
            .copied()
            .collect();
        prop_assert_eq!(
            all.iter().collect::<BTreeSet<_>>().len(),
            all.len(),
            "one address, two owners"
        );
        for usage in self.pools().usage(&self.catalog) {
            let set = &self.catalog.pool(&usage.name).unwrap().ranges;
            let used = all.iter().filter(|address| set.contains(**address)).count() as u64;
            prop_assert_eq!(usage.used, used, "{}", usage.name);
            let cooldowns = |(address, released): (&IpAddr, &u64)| {
                set.contains(*address) && released + REST > self.now()
            };
            let in_cooldown = self
                .reference
                .released
                .iter()
                .filter(|entry| cooldowns(*entry))
                .count() as u64;
            prop_assert_eq!(usage.in_cooldown, in_cooldown, "{}", usage.name);
            let idle = |address: &IpAddr| {
                set.contains(*address)
                    && !all.contains(address)
                    && !self
                        .reference
                        .released
                        .iter()
                        .any(|(other, at)| other == address && cooldowns((other, at)))
            };
            let withheld: Vec<IpAddr> = self
                .reference
                .withheld
                .iter()
                .copied()
                .filter(idle)
                .collect();
            let said: Vec<IpAddr> = usage.withheld.iter().map(|(address, _)| *address).collect();
            prop_assert_eq!(&said, &withheld, "{}", usage.name);
            let not_free = u128::from(used + in_cooldown) + withheld.len() as u128;
            prop_assert_eq!(usage.free, usage.total - not_free);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_history_comes_out_as_the_reference_says(steps in prop::collection::vec(step(), 1..80)) {
        let lab = Lab { sticky: true, ..Lab::new() };
        let pools = Some(lab.open());
        let mut run = Run { lab, pools, catalog: catalog(CATALOGS[0]), reference: Reference::default() };
        for step in &steps {
            run.step(step)?;
        }
    }
}
