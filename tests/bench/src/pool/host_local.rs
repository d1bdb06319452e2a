//! host-local, the reference IPAM plugin (containernetworking/plugins), used as by a runtime: one process for each ADD.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::Load;

/// Its path in Debian's containernetworking-plugins.
pub(super) const PLUGIN: &str = "/usr/lib/cni/host-local";

/// Allocates with this many callers until the time is over.
pub(super) fn load(dir: &Path, callers: usize, time: Duration) -> Result<Load> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "ipvlan",
        "ipam": {"type": "host-local", "dataDir": dir, "ranges": [[{"subnet": "10.0.0.0/8"}]]},
    })
    .to_string();
    let numbers = AtomicUsize::new(0);
    let start = Instant::now();
    let results: Vec<Result<Vec<Duration>>> = thread::scope(|scope| {
        let work = || {
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let asked = Instant::now();
                add(&config, numbers.fetch_add(1, Ordering::Relaxed))?;
                latencies.push(asked.elapsed());
            }
            Ok(latencies)
        };
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(work)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| bail!("a caller panicked"))
        };
        threads.into_iter().map(join).collect()
    });
    let elapsed = start.elapsed();
    let mut latencies = Vec::new();
    for result in results {
        latencies.append(&mut result?);
    }
    Ok(Load { latencies, elapsed })
}

fn add(config: &str, number: usize) -> Result<()> {
    let mut child = Command::new(PLUGIN)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", format!("{number:064x}"))
        .env("CNI_NETNS", "/var/run/netns/bench")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {PLUGIN}"))?;
    let mut stdin = child.stdin.take().context("a piped stdin is there")?;
    stdin.write_all(config.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{PLUGIN}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}
