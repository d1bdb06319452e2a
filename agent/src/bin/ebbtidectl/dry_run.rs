//! `ebbtidectl doctor --dry-run`: what an agent would change on this node. Needs no agent.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use ebbtide_agent::doctor::{self, DryRun};
use ebbtide_ipam::catalog::{Catalog, files};
use ebbtide_types::settings::Settings;

use super::{
    doctor::{health, show},
    nics,
};

/// The options of an inspection without an agent.
#[derive(Args)]
pub(super) struct Options {
    /// Show what an agent would change on this node, without changing anything. Needs no agent.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// The agent's configuration file, for --dry-run [default: built-in settings].
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    config: Option<PathBuf>,
    /// The directory of pools and networks, for --dry-run; without it, NICs are recognised by their routes alone.
    #[arg(long, value_name = "DIR", requires = "dry_run")]
    manifests: Option<PathBuf>,
    /// This node's name, as in `nodeName` of pools, for --dry-run.
    #[arg(
        long,
        value_name = "NAME",
        env = "NODE_NAME",
        requires = "dry_run",
        default_value = ""
    )]
    node_name: String,
}

/// Inspects this node as an agent would.
pub(super) fn run(options: &Options, json: bool) -> anyhow::Result<(String, ExitCode)> {
    let settings = match &options.config {
        Some(path) => Settings::load(path)?,
        None => Settings::default(),
    };
    let catalog = match &options.manifests {
        Some(dir) => files::load(dir),
        None => Catalog::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    let found = runtime.block_on(doctor::dry_run(&settings, &catalog, &options.node_name));
    let found = found.context("look at this node (are you root?)")?;
    let exit = health(&found.findings);
    let text = match json {
        true => format!("{}\n", serde_json::to_string_pretty(&found)?),
        false => told(found),
    };
    Ok((text, exit))
}

fn told(found: DryRun) -> String {
    let mut text = format!("LINKS\n{}\n", nics::show(found.links));
    text.push_str(
        "BEFORE THE FIRST POD\nnothing but the plugin's files, the agent's state and its socket; programs are \
         loaded, and attached to nothing\n\nWITH THE FIRST POD (and gone with the last, but for what is said of \
         forwarding)\n",
    );
    for line in &found.with_the_first_pod {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("\nWHAT IS WRONG\n");
    text.push_str(&show(&found.findings));
    text
}
