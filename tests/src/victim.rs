//! A process that takes and releases addresses until it is killed, and reports what was acknowledged.

use std::{io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Options, Owner, Pools, Request, Reserved},
};
use serde_json::json;

use ebbtide_vpc::random::Random;

const MANIFEST: &str = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, \
    metadata: {name: p}, spec: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.200], default: true}}";

/// The number of workers, each with its own containers.
const WORKERS: u64 = 8;

/// Returns the options of the pools, for the process and for the test that opens them after its death.
#[must_use]
pub fn options() -> Options {
    Options {
        cooldown: Duration::from_millis(1),
        ..Options::default()
    }
}

/// Writes a line to standard output at once: a pipe keeps what a dead process wrote.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    Ok(out.flush()?)
}

/// Takes and releases addresses until it is killed.
/// It prints `ready` once the pools are open. For each request it prints what it will do (`+? CONTAINER ADDRESS`, `-?
/// CONTAINER`), and the same without the question mark when that is acknowledged.
///
/// # Errors
/// If a request fails.
pub fn run(dir: &Path) -> Result<()> {
    let catalog = Catalog::from_texts([(Path::new("m.yaml"), MANIFEST)]);
    let pools = Pools::open(dir, options())?;
    say("ready")?;
    let seed = u64::from(std::process::id()) << 8 | 1;
    tokio::runtime::Builder::new_current_thread()
        .build()?
        .block_on(async {
            let all = (0..WORKERS).map(|worker| {
                let random = Random::new((seed + worker).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                work(pools.clone(), catalog.clone(), worker, random)
            });
            futures::future::try_join_all(all).await
        })?;
    Ok(())
}

async fn work(pools: Pools, catalog: Catalog, worker: u64, mut random: Random) -> Result<()> {
    loop {
        let container = format!("{worker}-{}", random.below(8));
        let owner = Owner {
            network: "net".into(),
            container_id: container.clone(),
            interface: "eth0".into(),
        };
        if pools.list().iter().any(|held| held.owner == owner) {
            say(&format!("-? {container}"))?;
            pools.release(&owner).await?;
            say(&format!("- {container}"))?;
        } else {
            let reserved = pools.reserve(&Request::new(&owner, "node", &catalog))?;
            let Reserved::New(grant) = reserved else {
                bail!("{container} was there")
            };
            let address = grant.assigned().first().context("no address")?.address;
            say(&format!("+? {container} {address}"))?;
            grant.commit(json!({"pod": container})).await?;
            say(&format!("+ {container} {address}"))?;
        }
    }
}
