//! `ebbtide-e2e`: a real cluster whose pods' network is Ebbtide, and what has to be so in it.
//!
//! It runs as root; `cargo xtask e2e` provides what it needs.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use ebbtide_tests::e2e::{self, Options};

/// Two nodes, two NICs each, real kubelets: everything a person does on the first day, and the bad day.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Write the rows to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the cluster running until standard input ends.
    #[arg(long)]
    stay: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(std::io::stderr(), "ebbtide-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    // What is missing was said; who asked for this wants it to run.
    let Some(report) = e2e::run(Options { stay: cli.stay })? else {
        return Ok(false);
    };
    if let Some(path) = &cli.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report.ok)
}
