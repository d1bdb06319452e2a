//! `kill -9` at random moments: everything that was acknowledged is on disk, each address has one owner, and nothing is
//! there that nobody requested.
//!
//! EBBTIDE_KILLS is the number of kills (the default is for every day; the proof is `EBBTIDE_KILLS=1000`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead as _, BufReader},
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_ipam::pool::Pools;
use ebbtide_tests::victim::options;
use ebbtide_vpc::random::Random;
use tempfile::TempDir;

/// The approximate duration without EBBTIDE_KILLS.
const EVERY_DAY: Duration = Duration::from_secs(10);

/// The minimum and maximum numbers of kills then, however slow the machine is.
const FEWEST: u32 = 20;
const MOST: u32 = 150;

/// How long a process may work before it is killed.
const AT_WORK: Duration = Duration::from_millis(30);

/// The states that the disk may have for one container.
type Possible = BTreeSet<Option<IpAddr>>;

/// Returns the possible states of each container, by the earlier state and the output of the killed process.
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

/// A process that takes and releases addresses until it is killed.
struct Victim {
    child: Child,
    /// Receives one message when the first request was acknowledged.
    at_work: Receiver<()>,
    /// Reads its output to the end.
    reader: JoinHandle<io::Result<Vec<u8>>>,
}

impl Victim {
    fn start(dir: &Path) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ebbtide-victim"))
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("a piped stdout is there")?);
        let (sender, at_work) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut said = Vec::new();
            loop {
                let line = said.len();
                if stdout.read_until(b'\n', &mut said)? == 0 {
                    return Ok(said);
                }
                if acknowledges(&String::from_utf8_lossy(&said[line..])) {
                    // Nobody may wait for it.
                    let _ = sender.send(());
                }
            }
        });
        Ok(Self {
            child,
            at_work,
            reader,
        })
    }

    /// Returns when a request has been acknowledged. From then on the process is always in the middle of several
    /// others.
    fn wait_until_at_work(&self) -> Result<()> {
        let word = self.at_work.recv();
        word.context("the process ended before it was at work")
    }

    /// Kills it and returns its output. The last line may be incomplete.
    fn kill(mut self) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        let said = self.reader.join().ok().context("the reader panicked")??;
        let mut said = String::from_utf8_lossy(&said).into_owned();
        said.truncate(said.rfind('\n').unwrap_or(0));
        Ok(said)
    }
}

/// Whether the line acknowledges a request.
fn acknowledges(line: &str) -> bool {
    ["+ ", "- "].iter().any(|prefix| line.starts_with(prefix))
}

/// Creates a directory for a store. Memory is enough: processes are killed, not the machine.
fn in_memory() -> io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// Measures how long a process takes to begin its work: on an emulated machine a hundred times longer than on a real
/// one.
fn time_to_work(dir: &Path) -> Result<Duration> {
    let begin = Instant::now();
    let victim = Victim::start(dir)?;
    victim.wait_until_at_work()?;
    let took = begin.elapsed();
    victim.kill()?;
    Ok(took)
}

#[test]
fn what_a_process_acknowledged_before_kill_9_is_there_and_no_address_has_two_owners() -> Result<()>
{
    let slowness = time_to_work(in_memory()?.path())?;
    let wanted: Option<u32> = match std::env::var("EBBTIDE_KILLS") {
        Ok(text) => Some(text.parse().context("EBBTIDE_KILLS")?),
        Err(_) => None,
    };
    let dir = in_memory()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = now.as_nanos() as u64;
    let mut random = Random::new(seed);
    let mut before = BTreeMap::new();
    let mut acknowledged = 0;
    let mut unanswered = 0;
    let begin = Instant::now();
    let mut kills: u32 = 0;
    while match wanted {
        Some(number) => kills < number,
        None => kills < FEWEST || (kills < MOST && begin.elapsed() < EVERY_DAY),
    } {
        let kill = kills;
        kills += 1;
        let victim = Victim::start(dir.path())?;
        let below = |random: &mut Random, limit: Duration| {
            Duration::from_micros(random.below(limit.as_micros() as u64))
        };
        // One process dies during its start, where it opens the store. The next one has begun its work, however slow
        // the machine has become, and dies in the middle of it.
        let delay = if kill.is_multiple_of(2) {
            below(&mut random, slowness * 2)
        } else {
            victim.wait_until_at_work()?;
            below(&mut random, AT_WORK)
        };
        thread::sleep(delay);
        let said = victim.kill()?;
        let expected = expect(&before, &said)?;
        acknowledged += said.lines().filter(|line| acknowledges(line)).count();
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
        acknowledged >= kills as usize / 2,
        "the processes hardly worked: {acknowledged}"
    );
    ensure!(unanswered > 0, "no process died in the middle of a request");
    Ok(())
}
