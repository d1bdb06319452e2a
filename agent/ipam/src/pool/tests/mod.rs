use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use super::{clock::Clock, store, *};
use crate::catalog::Catalog;

mod affinity;
mod allocation;
mod annotations;
mod damage;
mod derived;
mod disk;
mod durability;
mod faults;
mod model;
mod pain_points;
mod power;
mod requested;
mod reservations;
mod selection;
mod withheld;

/// Parses pools written as `name: {spec}`, one per line.
fn catalog(pools: &str) -> Catalog {
    let document = |line: &str| {
        let (name, spec) = line.trim().split_once(": ").unwrap();
        format!(
            "---\n{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {{name: {name}}}, spec: {spec}}}\n"
        )
    };
    let text: String = pools
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(document)
        .collect();
    let catalog = Catalog::from_texts([(Path::new("pools.yaml"), text.as_str())]);
    assert_eq!(catalog.problems(), []);
    catalog
}

fn owner(container: &str) -> Owner {
    Owner {
        network: "net".into(),
        container_id: container.into(),
        interface: "eth0".into(),
    }
}

/// A state directory (in memory, where possible) and a clock that only the test moves.
struct Lab {
    dir: tempfile::TempDir,
    clock: Arc<AtomicU64>,
    cooldown: Duration,
    sticky: bool,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        // Long after 1970, as on any machine: moments before the process began are negative.
        Self {
            dir,
            clock: Arc::new(AtomicU64::new(1_700_000_000_000)),
            cooldown: Duration::from_secs(60),
            sticky: false,
        }
    }

    fn clock(&self) -> Clock {
        Clock::Manual(Arc::clone(&self.clock))
    }

    fn open(&self) -> Pools {
        let (journal, contents) = store::open(self.dir.path()).unwrap();
        let path = self.dir.path();
        Pools::start(journal, contents, &self.options(), self.clock(), path).unwrap()
    }

    fn options(&self) -> Options {
        Options {
            cooldown: self.cooldown,
            sticky: self.sticky,
        }
    }

    fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds * 1000, Ordering::SeqCst);
    }
}

/// Runs a future to completion on this thread.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn reserve(pools: &Pools, catalog: &Catalog, container: &str) -> Result<Reserved, PoolError> {
    pools.reserve(&Request::new(&owner(container), "node", catalog))
}

fn grant(pools: &Pools, catalog: &Catalog, container: &str) -> Grant {
    match reserve(pools, catalog, container) {
        Ok(Reserved::New(grant)) => grant,
        other => panic!("{container}: {other:?}"),
    }
}

/// Adds as the agent does, and returns the addresses as text.
fn add(pools: &Pools, catalog: &Catalog, container: &str) -> Vec<String> {
    texts(
        &wait(grant(pools, catalog, container).commit(json!({ "pod": container })))
            .unwrap()
            .assigned,
    )
}

/// Returns what the owner has on disk.
fn get(pools: &Pools, owner: &Owner) -> Option<Allocation> {
    let mut all = pools.list().into_iter();
    all.find(|allocation| allocation.owner == *owner)
}

fn release(pools: &Pools, container: &str) -> Option<Allocation> {
    wait(pools.release(&owner(container))).unwrap()
}

fn texts(assigned: &[Assigned]) -> Vec<String> {
    assigned
        .iter()
        .map(|assigned| assigned.address.to_string())
        .collect()
}

fn addresses(assigned: &[Assigned]) -> Vec<IpAddr> {
    assigned.iter().map(|assigned| assigned.address).collect()
}
