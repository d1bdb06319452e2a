//! `ebbtide-bench`: benchmarks beside other software and the bare kernel. See `cargo xtask bench`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use ebbtide_bench::{add, agent, datapath, figures::Figures, pool, programs};

/// Measure the real binaries and programs in this kernel. Takes root.
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

#[derive(Subcommand)]
enum What {
    /// ADD and DEL: one by one, many at once, many in a row.
    Add,
    /// The agent itself: memory, time until it is ready, CPU at rest, with more and more pods.
    Agent,
    /// Round trips, connections, packets and streams by each path, with each way of marking.
    Datapath {
        /// How many Services kube-proxy has written rules for on the node.
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        services: usize,
    },
    /// Durable allocations: per second, latency, memory, recovery.
    Pool {
        /// A directory on the disk to measure; a new one is made in it.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
    },
    /// Each eBPF program: nanoseconds for a packet of each kind, and sizes.
    Programs,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    macro_rules! extent {
        ($of:ident) => {
            match cli.short {
                true => $of::Extent::SHORT,
                false => $of::Extent::FULL,
            }
        };
    }
    let figures = match cli.what {
        What::Add => add::run(extent!(add))?,
        What::Agent => agent::run(extent!(agent))?,
        What::Datapath { services } => datapath::run(extent!(datapath), services)?,
        What::Pool { dir } => pool::run(extent!(pool), &dir)?,
        What::Programs => programs::run(extent!(programs))?,
    };
    if let Some(dir) = &cli.out {
        write(dir, &figures)?;
    }
    std::io::stdout().write_all(figures.text().as_bytes())?;
    Ok(())
}

/// Writes `NAME.md`, `NAME.json` and the plots.
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
