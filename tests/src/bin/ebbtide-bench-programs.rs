//! `ebbtide-bench-programs`: what each eBPF program costs. See `cargo xtask bench programs`.

use std::{io::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use ebbtide_tests::bench::programs;

/// Measure the eBPF programs by BPF_PROG_TEST_RUN. Needs root.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Packets for each measurement.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    repeat: u32,
    /// Write the figures to FILE as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let report = programs::measure(cli.repeat)?;
    if let Some(file) = &cli.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("write {}", file.display()))?;
    }
    std::io::stdout().write_all(programs::text(&report).as_bytes())?;
    Ok(())
}
