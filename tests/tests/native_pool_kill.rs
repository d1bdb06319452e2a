//! `kill -9` at random instants: what the dead process had acknowledged is there, each address has
//! one owner, and nothing is there that nobody asked for.
//!
//! EBBTIDE_KILLS says how often (the default is meant for every day; the proof is
//! `EBBTIDE_KILLS=1000`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _},
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_agent::pool::Pools;
use ebbtide_tests::victim::{Random, options};

/// About how long the killing goes on, unless EBBTIDE_KILLS says how often.
const EVERY_DAY: Duration = Duration::from_secs(30);

/// What may be on disk for one container.
type Possible = BTreeSet<Option<IpAddr>>;

/// What each container may have, by what was there before and what the dead process said.
fn expect(before: &BTreeMap<String, IpAddr>, said: &str) -> Result<BTreeMap<String, Possible>> {
    let mut all: BTreeMap<String, Possible> = before
        .iter()
        .map(|(container, address)| (container.clone(), Possible::from([Some(*address)])))
        .collect();
    for line in said.lines() {
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
    Ok(Command::new(env!("CARGO_BIN_EXE_ebbtide-pool-victim"))
        .arg(dir)
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
        .any(|line| line.is_ok_and(|line| line == "ready"));
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
    let slowness = time_to_work(&tempfile::tempdir()?.path().join("first"))?;
    // Some die before they have opened the store, some in the middle of their work.
    let window = slowness * 2 + Duration::from_millis(30);
    let kills: u32 = match std::env::var("EBBTIDE_KILLS") {
        Ok(text) => text.parse().context("EBBTIDE_KILLS")?,
        Err(_) => (EVERY_DAY.as_micros() / window.as_micros()).clamp(20, 150) as u32,
    };
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = now.as_nanos() as u64;
    let mut random = Random::new(seed);
    let mut before = BTreeMap::new();
    let mut acknowledged = 0;
    let mut unanswered = 0;
    for kill in 0..kills {
        let delay = Duration::from_micros(random.below(window.as_micros() as u64));
        let said = kill_after(dir.path(), delay)?;
        let expected = expect(&before, &said)?;
        let count = |prefix: &str| said.lines().filter(|line| line.starts_with(prefix)).count();
        acknowledged += count("+ ") + count("- ");
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
