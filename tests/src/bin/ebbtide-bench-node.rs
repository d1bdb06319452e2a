//! `ebbtide-bench-node`: how fast pods get their network, and how fast it is. See `cargo xtask bench`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use ebbtide_tests::bench::{add, agent, datapath, figures::Figures};

/// Measure the real binaries in network namespaces. Takes root.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// What to measure.
    #[command(subcommand)]
    what: What,
    /// Only as much as shows that it works; the figures mean nothing.
    #[arg(long, global = true)]
    short: bool,
    /// Write a Markdown report, plots and the values as JSON into DIR.
    #[arg(long, value_name = "DIR", global = true)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Subcommand)]
enum What {
    /// ADD and DEL: one by one, many at once, many in a row.
    Add,
    /// The agent itself: memory, time until it is ready, CPU at rest, with more and more pods.
    Agent,
    /// Round trips, connections, packets and streams by each path, with each way of marking.
    Datapath,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let figures = match cli.what {
        What::Add => add::run(if cli.short {
            add::Extent::SHORT
        } else {
            add::Extent::FULL
        })?,
        What::Agent => agent::run(if cli.short {
            agent::Extent::SHORT
        } else {
            agent::Extent::FULL
        })?,
        What::Datapath => datapath::run(if cli.short {
            datapath::Extent::SHORT
        } else {
            datapath::Extent::FULL
        })?,
    };
    if let Some(dir) = &cli.out {
        write(dir, &figures)?;
    }
    std::io::stdout().write_all(figures.text().as_bytes())?;
    Ok(())
}

/// `NAME.md`, `NAME.json` and the plots.
fn write(dir: &Path, figures: &Figures) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    let name = &figures.name;
    file(&format!("{name}.md"), figures.markdown())?;
    let json = serde_json::to_string_pretty(figures)?;
    file(&format!("{name}.json"), json + "\n")?;
    figures
        .plots()
        .into_iter()
        .try_for_each(|(name, svg)| file(&name, svg))
}
