//! Measures durable allocations: throughput, latency, memory, and recovery after `kill -9`. Ebbtide's pools and
//! host-local take turns on one disk.

mod host_local;
mod ours;

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::Value;

use super::{
    figures::{Figures, Series, Table},
    machine::Machine,
};

/// The size of the record with each allocation, in bytes. A pod's plan has some 1900 with an IPv4 address, 3000 with
/// both families.
const RECORD: usize = 2000;

const OURS: &str = "ebbtide";
const PEER: &str = "host-local";

/// The extent of a run.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The numbers of callers at once; each has its own tables.
    pub callers: &'static [usize],
    /// Rounds in which all take turns.
    pub rounds: usize,
    /// The duration of one turn.
    pub turn: Duration,
    /// The number of allocations for which memory and recovery are measured.
    pub allocations: usize,
}

impl Extent {
    /// Enough for figures.
    pub const FULL: Self = Self {
        callers: &[1, 8, 64],
        rounds: 5,
        turn: Duration::from_millis(600),
        allocations: 10_000,
    };
    /// Just enough to see that it works.
    pub const SHORT: Self = Self {
        callers: &[1, 4],
        rounds: 1,
        turn: Duration::from_millis(50),
        allocations: 100,
    };
}

/// How long each request took, and all of them together.
#[derive(Debug)]
struct Load {
    latencies: Vec<Duration>,
    elapsed: Duration,
}

/// Runs the benchmark on the disk of `dir`.
///
/// # Errors
/// If an allocation fails.
pub fn run(extent: Extent, dir: &Path) -> Result<Figures> {
    let machine = Machine::look();
    let dir = tempfile::Builder::new()
        .prefix("ebbtide-bench-")
        .tempdir_in(dir)
        .with_context(|| format!("make a directory in {}", dir.display()))?;
    let record = ours::record(RECORD);
    let mut notes = vec![
        "host-local is a process for each ADD and does not sync its files; ebbtide is measured in its agent, \
         without the plugin's process"
            .to_owned(),
        format!("with each allocation a record of {RECORD} bytes is kept"),
    ];
    if statfs(dir.path())?.filesystem_type() == TMPFS_MAGIC {
        notes.push("this directory is in memory: fdatasync costs nothing, use --dir".to_owned());
    }
    let peer = Path::new(host_local::PLUGIN).is_file();
    if !peer {
        notes.push(format!(
            "host-local was not measured: {} is not there (Debian: containernetworking-plugins)",
            host_local::PLUGIN
        ));
    }
    // This comes first: memory that was in use before would be reused, and not be seen.
    let at_rest = at_rest(&extent, &dir.path().join("rest"), &record)?;
    let mut tables = Vec::new();
    for &callers in extent.callers {
        tables.extend(under_load(&extent, callers, dir.path(), &record, peer)?);
    }
    tables.extend(at_rest);
    Ok(Figures {
        name: "pool".to_owned(),
        machine,
        tables,
        timelines: Vec::new(),
        notes,
    })
}

/// Measures with this many callers, in turns: allocations per second, and the latency of one.
fn under_load(
    extent: &Extent,
    callers: usize,
    dir: &Path,
    record: &Value,
    peer: bool,
) -> Result<[Table; 2]> {
    let mut rates = vec![Series::new(OURS)];
    let mut waits = vec![Series::new("one fdatasync of 4 KiB"), Series::new(OURS)];
    if peer {
        rates.push(Series::new(PEER));
        waits.push(Series::new(PEER));
    }
    for round in 0..extent.rounds {
        let place = |who: &str| dir.join(format!("{who}-{callers}-{round}"));
        waits[0].values.extend(micros(&fsync(dir)?));
        let ours = ours::load(&place(OURS), callers, extent.turn, record)?;
        let mut loads = vec![ours];
        if peer {
            loads.push(host_local::load(&place(PEER), callers, extent.turn)?);
        }
        for (number, load) in loads.iter().enumerate() {
            let rate = load.latencies.len() as f64 / load.elapsed.as_secs_f64();
            rates[number].values.push(rate);
            waits[number + 1].values.extend(micros(&load.latencies));
        }
    }
    let many = match callers {
        1 => "1 caller".to_owned(),
        _ => format!("{callers} callers"),
    };
    let peer = peer.then(|| PEER.to_owned());
    let rates = Table {
        title: format!("durable allocations in a second, {many}"),
        meaning: "Answered once they are on the disk; more is better.".to_owned(),
        unit: "1/s",
        rows: rates,
        floor: None,
        peer: peer.clone(),
        paired: None,
    };
    let latencies = Table {
        title: format!("one allocation, {many}"),
        meaning: "From asking to the answer. The disk alone is the floor of who asks alone."
            .to_owned(),
        unit: "us",
        floor: Some(waits[0].name.clone()),
        rows: waits,
        peer,
        paired: None,
    };
    Ok([rates, latencies])
}

/// Measures memory, recovery, and the cost of rewriting the journal.
fn at_rest(extent: &Extent, dir: &Path, record: &Value) -> Result<Vec<Table>> {
    let count = extent.allocations;
    let cost = ours::cost(dir, count, record)?;
    let table = |title: String, meaning: &str, unit, values| Table {
        rows: vec![Series {
            name: OURS.to_owned(),
            values,
        }],
        ..Table::new(title, meaning, unit)
    };
    let mega = |bytes: u64| vec![bytes as f64 / 1e6];
    Ok(vec![
        table(
            "memory for a pool of a million addresses".to_owned(),
            "Resident memory that it adds, with one address in use.",
            "MB",
            mega(cost.pool_bytes),
        ),
        table(
            format!("memory for {count} allocations"),
            "Resident memory that they add, with their records.",
            "MB",
            mega(cost.allocations_bytes),
        ),
        table(
            format!("recovery with {count} allocations"),
            "From opening the state directory that a killed agent left to the first answer.",
            "ms",
            cost.recoveries
                .iter()
                .map(|time| time.as_secs_f64() * 1e3)
                .collect(),
        ),
        table(
            format!("the longest wait, with {count} allocations"),
            "64 callers, while the journal has grown long and begins anew.",
            "ms",
            vec![cost.longest.as_secs_f64() * 1e3],
        ),
    ])
}

fn micros(latencies: &[Duration]) -> impl Iterator<Item = f64> {
    latencies.iter().map(|time| time.as_secs_f64() * 1e6)
}

/// Measures one small durable write.
fn fsync(dir: &Path) -> Result<Vec<Duration>> {
    let file = File::create(dir.join("fsync"))?;
    (0..40)
        .map(|number| {
            let asked = Instant::now();
            file.write_all_at(&[1; 4096], number * 4096)?;
            file.sync_data()?;
            Ok(asked.elapsed())
        })
        .collect()
}
