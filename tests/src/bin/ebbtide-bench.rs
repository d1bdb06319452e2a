//! `ebbtide-bench`: how fast durable addresses are, beside host-local. See `cargo xtask bench pool`.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use ebbtide_tests::bench::{Load, Report, host_local, pools, report};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// Measure durable allocations, recovery and memory.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// A directory on the disk to measure; a new one is made in it.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Callers at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 64])]
    callers: Vec<usize>,
    /// How long each row is measured, in seconds.
    #[arg(long, value_name = "SECS", default_value_t = 2.0)]
    seconds: f64,
    /// The size of the record kept with each allocation. The plan of a pod with an IPv4 address has
    /// some 1900 bytes, with both families 3000.
    #[arg(long, value_name = "BYTES", default_value_t = 2000)]
    record: usize,
    /// Write the figures to FILE as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let dir = tempfile::Builder::new()
        .prefix("ebbtide-bench-")
        .tempdir_in(&cli.dir)
        .with_context(|| format!("make a directory in {}", cli.dir.display()))?;
    let time = Duration::try_from_secs_f64(cli.seconds).context("--seconds")?;
    let mut notes = Vec::new();
    if statfs(dir.path())?.filesystem_type() == TMPFS_MAGIC {
        notes.push("this directory is in memory: fsync costs nothing, use --dir".to_owned());
    }
    let record = pools::record(cli.record);
    let mut rows = Vec::new();
    for &callers in &cli.callers {
        let load = pools::load(
            &dir.path().join(format!("pools-{callers}")),
            callers,
            time,
            &record,
        )?;
        rows.push(load.row("ebbtide"));
    }
    if Path::new(host_local::PLUGIN).is_file() {
        for &callers in &cli.callers {
            let data = dir.path().join(format!("host-local-{callers}"));
            rows.push(host_local::load(&data, callers, time)?.row("host-local"));
        }
        notes.push(
            "host-local is a process for each ADD and does not sync its files; \
             ebbtide is measured in its agent, without the plugin's process"
                .to_owned(),
        );
    } else {
        notes.push(format!(
            "host-local was not measured: {} is not there (Debian: containernetworking-plugins)",
            host_local::PLUGIN
        ));
    }
    let report = Report {
        rows,
        cost: pools::cost(&dir.path().join("cost"), &record)?,
        record_bytes: record.to_string().len(),
        fsync_us: fsync(dir.path())?.p50_us,
        notes,
    };
    if let Some(file) = &cli.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("write {}", file.display()))?;
    }
    std::io::stdout().write_all(report::text(&report).as_bytes())?;
    Ok(())
}

/// What the disk takes for one small write that is to last.
fn fsync(dir: &Path) -> Result<ebbtide_tests::bench::Row> {
    let file = File::create(dir.join("fsync"))?;
    let start = Instant::now();
    let mut latencies = Vec::new();
    for number in 0..200 {
        let asked = Instant::now();
        file.write_all_at(&[1; 4096], number * 4096)?;
        file.sync_data()?;
        latencies.push(asked.elapsed());
    }
    let load = Load {
        callers: 1,
        latencies,
        elapsed: start.elapsed(),
    };
    Ok(load.row("fdatasync"))
}
