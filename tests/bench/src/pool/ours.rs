//! Ebbtide's pools under load, by their public functions: reserve, and commit with a record, which returns once it is
//! durable.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Options, Owner, Pools, Request, Reserved},
};
use serde_json::{Value, json};

use super::Load;

/// A pool with more addresses than any run uses.
const MANIFEST: &str = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, \
    metadata: {name: bench}, spec: {subnet: 10.0.0.0/8, ips: [10.0.1.0-10.15.67.63], default: true}}";

fn catalog() -> Result<Catalog> {
    let catalog = Catalog::from_texts([(Path::new("bench.yaml"), MANIFEST)]);
    if let Some(problem) = catalog.problems().first() {
        bail!("{problem}");
    }
    Ok(catalog)
}

fn owner(number: usize) -> Owner {
    Owner {
        network: "bench".into(),
        // As long as containerd's IDs.
        container_id: format!("{number:064x}"),
        interface: "eth0".into(),
    }
}

/// Creates a record of about this size with many small values, as the agent's records have.
pub(super) fn record(bytes: usize) -> Value {
    let line = json!({"to": "172.31.16.0/20", "via": "169.254.1.1", "table": 7700, "onLink": true});
    let each = line.to_string().len() + 1;
    json!({"pod": "bench/pod", "routes": vec![line; bytes / each]})
}

/// Allocates with this many callers until the time is over.
pub(super) fn load(dir: &Path, callers: usize, time: Duration, record: &Value) -> Result<Load> {
    let catalog = Arc::new(catalog()?);
    let pools = Pools::open(dir, Options::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let numbers = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let latencies = runtime.block_on(async {
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (pools, catalog, numbers) =
                    (pools.clone(), Arc::clone(&catalog), Arc::clone(&numbers));
                let record = record.clone();
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    while start.elapsed() < time {
                        let owner = owner(numbers.fetch_add(1, Ordering::Relaxed));
                        let record = record.clone();
                        let asked = Instant::now();
                        add(&pools, &catalog, &owner, record).await?;
                        latencies.push(asked.elapsed());
                    }
                    anyhow::Ok(latencies)
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.append(&mut task.await??);
        }
        anyhow::Ok(all)
    })?;
    let elapsed = start.elapsed();
    if pools.list().len() != latencies.len() {
        bail!(
            "{} allocations, but {} answers",
            pools.list().len(),
            latencies.len()
        );
    }
    Ok(Load { latencies, elapsed })
}

async fn add(pools: &Pools, catalog: &Catalog, owner: &Owner, record: Value) -> Result<()> {
    match pools.reserve(&Request::new(owner, "node", catalog))? {
        Reserved::New(grant) => grant.commit(record).await?,
        Reserved::Existing(_) => bail!("{owner} was there before"),
    };
    Ok(())
}

/// The cost of allocations at rest.
#[derive(Debug)]
pub(super) struct Cost {
    /// The resident memory that a pool of a million addresses adds, with one of them in use.
    pub(super) pool_bytes: u64,
    /// The resident memory that the allocations add.
    pub(super) allocations_bytes: u64,
    /// The times to open the store after `kill -9`.
    pub(super) recoveries: Vec<Duration>,
    /// The longest wait of an ADD until the journal was rewritten.
    pub(super) longest: Duration,
}

/// Measures memory and recovery with this many allocations.
pub(super) fn cost(dir: &Path, allocations: usize, record: &Value) -> Result<Cost> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let live = dir.join("live");
    let pools = Pools::open(&live, Options::default())?;
    let before = resident()?;
    let catalog = catalog()?;
    runtime.block_on(add(&pools, &catalog, &owner(0), record.clone()))?;
    let with_pool = resident()?;
    runtime.block_on(async {
        for start in (1..allocations).step_by(100) {
            let end = (start + 100).min(allocations);
            let owners: Vec<Owner> = (start..end).map(owner).collect();
            let all = owners
                .iter()
                .map(|owner| add(&pools, &catalog, owner, record.clone()));
            futures::future::try_join_all(all).await?;
        }
        anyhow::Ok(())
    })?;
    let with_allocations = resident()?;
    // A killed agent leaves its files as they are while they are open.
    let mut recoveries = Vec::new();
    for round in 0..5 {
        let killed = dir.join(format!("killed-{round}"));
        copy(&live, &killed)?;
        let start = Instant::now();
        let recovered = Pools::open(&killed, Options::default())?;
        recoveries.push(start.elapsed());
        let found = recovered.list().len();
        if found != allocations {
            bail!("{found} of {allocations} allocations recovered");
        }
    }
    let longest = runtime.block_on(longest_wait(&pools, &catalog, &live, allocations, record))?;
    Ok(Cost {
        pool_bytes: with_pool.saturating_sub(before),
        allocations_bytes: with_allocations.saturating_sub(with_pool),
        recoveries,
        longest,
    })
}

/// Adds and removes pods until the journal has become shorter.
async fn longest_wait(
    pools: &Pools,
    catalog: &Catalog,
    dir: &Path,
    allocations: usize,
    record: &Value,
) -> Result<Duration> {
    const CROWD: usize = 64;
    let mut length = size(dir)?;
    let mut longest = Duration::ZERO;
    for round in 0.. {
        let first = allocations + round * CROWD;
        let crowd = (first..first + CROWD).map(owner).map(|owner| async move {
            let asked = Instant::now();
            add(pools, catalog, &owner, record.clone()).await?;
            let waited = asked.elapsed();
            pools.release(&owner).await?;
            anyhow::Ok(waited)
        });
        let waits = futures::future::try_join_all(crowd).await?;
        longest = waits.into_iter().fold(longest, Duration::max);
        let now = size(dir)?;
        if now < length {
            break;
        }
        length = now;
    }
    Ok(longest)
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        // A file that was listed a moment ago may have been renamed.
        bytes += entry?.metadata().map_or(0, |file| file.len());
    }
    Ok(bytes)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Returns the resident memory of this process, in bytes (proc(5), statm, in pages of 4 KiB).
fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/statm").context("read /proc/self/statm")?;
    let pages = text
        .split_whitespace()
        .nth(1)
        .context("statm has no second field")?;
    Ok(pages.parse::<u64>()? * 4096)
}
