//! A process that takes and releases addresses until it is killed, and says what it was told.

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

/// So many work at once, each on its own containers.
const WORKERS: u64 = 8;

/// What the pools are opened with, by the process and by whoever looks after its death.
#[must_use]
pub fn options() -> Options {
    Options {
        cooldown: Duration::from_millis(1),
        ..Options::default()
    }
}

/// One line at once on standard output: a pipe keeps what a dead process wrote.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    Ok(out.flush()?)
}

/// Works until it is killed. Says `ready` once the pools are open, then for each request what it is
/// about to do (`+? CONTAINER ADDRESS`, `-? CONTAINER`), and once more, without the question mark,
/// when that is acknowledged.
///
/// # Errors
/// When a request fails.
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
