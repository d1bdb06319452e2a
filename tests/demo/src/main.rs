//! `ebbtide-demo`: the strict VPC, an agent per node, pods, and traffic of every kind.
//!
//! It runs as root in a kernel with ipvlan; `cargo xtask demo` provides one.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use ebbtide_demo::{Addresses, CLOUDS, Options};

/// Shows what Ebbtide does: real traffic of every kind in a test network as strict as a cloud's.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Write rows, pods, pools and what the cloud told to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The cloud whose metadata tell the agents the addresses for pods.
    #[arg(long, value_name = "CLOUD", default_value = CLOUDS[0], value_parser = CLOUDS)]
    cloud: String,
    /// Declare pools, and ask no cloud.
    #[arg(long, conflicts_with = "cloud")]
    pools: bool,
    /// Print every exchange, and the packets of those that failed.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody can be told if standard error is closed.
            let _ = writeln!(std::io::stderr(), "ebbtide-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let addresses = match cli.pools {
        true => Addresses::Declared,
        false => Addresses::told_by(&cli.cloud).context("no such cloud")?,
    };
    let report = ebbtide_demo::run(Options {
        verbose: cli.verbose,
        colour: forced || (!refused && std::io::stdout().is_terminal()),
        addresses,
    })?;
    if let Some(path) = &cli.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report.ok)
}
