//! `ebbtide-e2e`: a real cluster whose pods' network is Ebbtide, and what has to be so in it.
//!
//! It runs as root; `cargo xtask e2e` provides what it needs.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use ebbtide_e2e::{Addresses, Cloud, Options};

/// Two nodes, two NICs each, real kubelets: everything a person does on the first day, and the bad day.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Write the rows to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Whose network it is; several with commas between, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "aws,alibaba")]
    cloud: Vec<Cloud>,
    /// Declare a pool for each NIC, instead of taking the addresses that the cloud's metadata tell.
    #[arg(long)]
    pools: bool,
    /// End with the first row that has this in its name.
    #[arg(long, value_name = "ROW")]
    until: Option<String>,
    /// Leave the cluster running until standard input ends.
    #[arg(long)]
    stay: bool,
    /// Be the UDP server that pods of the test run
    #[arg(long, hide = true, value_name = "PORT")]
    serve_datagrams: Option<u16>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody can be told if standard error is closed.
            let _ = writeln!(std::io::stderr(), "ebbtide-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    if let Some(port) = cli.serve_datagrams {
        ebbtide_e2e::serve_datagrams(port)?;
    }
    let mut reports = Vec::new();
    for (number, cloud) in (1..).zip(&cli.cloud) {
        let options = Options {
            cloud: *cloud,
            addresses: match cli.pools {
                true => Addresses::Declared,
                false => Addresses::Told,
            },
            until: cli.until.clone(),
            stay: cli.stay && number == cli.cloud.len(),
        };
        // What is missing was printed; whoever runs this program wants the test to run, so it fails.
        let Some(report) = ebbtide_e2e::run(&options)? else {
            return Ok(false);
        };
        reports.push(report);
    }
    if let Some(path) = &cli.json {
        let json = serde_json::to_string_pretty(&reports)?;
        std::fs::write(path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(reports.iter().all(|report| report.ok))
}
