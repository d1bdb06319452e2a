//! `kill -9` at random instants: what the dead process had acknowledged is there, each address has
//! one owner, and nothing is there that nobody asked for.
//!
//! The process that is killed is this test's own executable. EBBTIDE_KILLS says how often (the
//! default is meant for every day; the proof is `EBBTIDE_KILLS=1000`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_agent::{
    catalog::Catalog,
    pool::{Options, Owner, Pools, Request, Reserved},
};
use serde_json::json;

/// The state directory, for the process that is to be killed.
const VICTIM: &str = "EBBTIDE_KILL_VICTIM";

const MANIFEST: &str = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, \
    metadata: {name: p}, spec: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.200], default: true}}";

/// About how long the killing goes on, unless EBBTIDE_KILLS says how often.
const EVERY_DAY: Duration = Duration::from_secs(30);

/// So many work at once, each on its own containers.
const WORKERS: u64 = 8;

/// xorshift64* (Vigna 2016): the moments need not be good, only different.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

fn owner(container: &str) -> Owner {
    Owner {
        network: "net".into(),
        container_id: container.into(),
        interface: "eth0".into(),
    }
}

fn options() -> Options {
    Options {
        rest: Duration::from_millis(1),
    }
}

/// One line at once on standard output: a pipe keeps what a dead process wrote.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@ {line}\n").as_bytes())?;
    Ok(out.flush()?)
}

/// Adds and releases until it is killed. `+?` and `-?` before, `+` and `-` once it is acknowledged.
async fn work(pools: Pools, catalog: Catalog, worker: u64, mut random: Random) -> Result<()> {
    loop {
        let container = format!("{worker}-{}", random.below(8));
        let owner = owner(&container);
        if pools.get(&owner).is_some() {
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

#[test]
fn victim() -> Result<()> {
    let Some(dir) = std::env::var_os(VICTIM) else {
        // This is a test only in the process that the other test starts.
        return Ok(());
    };
    let catalog = Catalog::from_texts([(Path::new("m.yaml"), MANIFEST)]);
    let pools = Pools::open(&PathBuf::from(dir), options())?;
    say("ready")?;
    let seed = u64::from(std::process::id()) << 8 | 1;
    tokio::runtime::Builder::new_current_thread()
        .build()?
        .block_on(async {
            let all = (0..WORKERS).map(|worker| {
                let random = Random((seed + worker).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                work(pools.clone(), catalog.clone(), worker, random)
            });
            futures::future::try_join_all(all).await
        })?;
    Ok(())
}

/// What may be on disk for one container.
type Possible = BTreeSet<Option<IpAddr>>;

/// What each container may have, by what was there before and what the dead process said.
fn expect(before: &BTreeMap<String, IpAddr>, said: &str) -> Result<BTreeMap<String, Possible>> {
    let mut all: BTreeMap<String, Possible> = before
        .iter()
        .map(|(container, address)| (container.clone(), Possible::from([Some(*address)])))
        .collect();
    for line in said.lines().filter_map(|line| line.strip_prefix("@ ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let possible = |container: &str| container.to_owned();
        match words.as_slice() {
            ["+?", container, address] => {
                let either = Possible::from([None, Some(address.parse()?)]);
                all.insert(possible(container), either);
            }
            ["+", container, address] => {
                all.insert(
                    possible(container),
                    Possible::from([Some(address.parse()?)]),
                );
            }
            ["-?", container] => {
                all.entry(possible(container)).or_default().insert(None);
            }
            ["-", container] => {
                all.insert(possible(container), Possible::from([None]));
            }
            _ => {}
        }
    }
    Ok(all)
}

fn start(dir: &Path) -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?)
}

/// How long this machine takes until a process is at work: an emulated one a hundred times longer
/// than a real one.
fn time_to_work(dir: &Path) -> Result<Duration> {
    let begin = Instant::now();
    let mut child = start(dir)?;
    let stdout = child.stdout.take().context("a piped stdout is there")?;
    let ready = BufReader::new(stdout)
        .lines()
        .any(|line| line.is_ok_and(|line| line == "@ ready"));
    let took = begin.elapsed();
    child.kill()?;
    child.wait()?;
    ensure!(ready, "the process ended before it was at work");
    Ok(took)
}

/// Kills a process at work after so long, and gives what it had said. The last line may be cut off.
fn kill_after(dir: &Path, delay: Duration) -> Result<String> {
    let mut child = start(dir)?;
    let mut stdout = child.stdout.take().context("a piped stdout is there")?;
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        stdout.read_to_end(&mut said).map(|_| said)
    });
    thread::sleep(delay);
    child.kill()?;
    child.wait()?;
    let said = reader.join().ok().context("the reader panicked")??;
    let mut said = String::from_utf8_lossy(&said).into_owned();
    said.truncate(said.rfind('\n').unwrap_or(0));
    Ok(said)
}

#[test]
fn what_a_process_acknowledged_before_kill_9_is_there_and_no_address_has_two_owners() -> Result<()>
{
    if std::env::var_os(VICTIM).is_some() {
        return Ok(());
    }
    let slowness = time_to_work(&tempfile::tempdir()?.path().join("first"))?;
    // Some die before they have opened the store, some in the middle of their work.
    let window = slowness * 2 + Duration::from_millis(30);
    let kills: u32 = match std::env::var("EBBTIDE_KILLS") {
        Ok(text) => text.parse().context("EBBTIDE_KILLS")?,
        Err(_) => (EVERY_DAY.as_micros() / window.as_micros()).clamp(20, 150) as u32,
    };
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = now.as_nanos() as u64 | 1;
    let mut random = Random(seed);
    let mut before = BTreeMap::new();
    let mut acknowledged = 0;
    let mut unanswered = 0;
    for kill in 0..kills {
        let delay = Duration::from_micros(random.below(window.as_micros() as u64));
        let said = kill_after(dir.path(), delay)?;
        let expected = expect(&before, &said)?;
        let count = |prefix: &str| said.lines().filter(|line| line.starts_with(prefix)).count();
        acknowledged += count("@ + ") + count("@ - ");
        unanswered += expected
            .values()
            .filter(|possible| possible.len() > 1)
            .count();
        let place = format!("kill {kill} of seed {seed}");
        let pools = Pools::open(dir.path(), options()).with_context(|| place.clone())?;
        let mut owners = BTreeMap::new();
        before.clear();
        for allocation in pools.list() {
            let container = allocation.owner.container_id.clone();
            for assigned in &allocation.assigned {
                let other = owners.insert(assigned.address, container.clone());
                ensure!(
                    other.is_none(),
                    "{place}: {} of {container} and {other:?}",
                    assigned.address
                );
                before.insert(container.clone(), assigned.address);
            }
        }
        for (container, possible) in &expected {
            let found = before.get(container).copied();
            ensure!(
                possible.contains(&found),
                "{place}: {container} has {found:?}, not {possible:?}"
            );
        }
        if let Some(stranger) = before
            .keys()
            .find(|container| !expected.contains_key(*container))
        {
            bail!("{place}: {stranger} has an address and never asked");
        }
    }
    ensure!(
        acknowledged > kills as usize,
        "the processes hardly worked: {acknowledged}"
    );
    ensure!(unanswered > 0, "no process died in the middle of a request");
    Ok(())
}
