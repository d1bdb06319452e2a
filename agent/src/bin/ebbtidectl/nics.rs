//! `ebbtidectl nics` and `ebbtidectl doctor --dry-run`: the node's links, and what an agent would change.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use ebbtide_agent::{
    doctor::{self, DryRun},
    query::NicLine,
};
use ebbtide_ipam::catalog::{Catalog, files};
use ebbtide_types::settings::Settings;

/// The options of an inspection without an agent.
#[derive(Args)]
pub(crate) struct DryRunOptions {
    /// Say what an agent would change on this node, and change nothing. Needs no agent.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The agent's configuration file, for --dry-run; the defaults without it.
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    config: Option<PathBuf>,
    /// Directory of pools and networks, for --dry-run; without it NICs are known by their routes alone.
    #[arg(long, value_name = "DIR", requires = "dry_run")]
    manifests: Option<PathBuf>,
    /// This node's name, as pools refer to it, for --dry-run.
    #[arg(
        long,
        value_name = "NAME",
        env = "NODE_NAME",
        requires = "dry_run",
        default_value = ""
    )]
    node_name: String,
}

/// Formats the links as a table.
pub(crate) fn show(lines: Vec<NicLine>) -> String {
    let head = [
        "LINK",
        "KIND",
        "ADDRESSES",
        "TAKEN FOR",
        "PODS",
        "TABLE",
        "MARK",
        "WHY",
    ];
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    super::table(
        head,
        lines.into_iter().map(|line| {
            let addresses: Vec<String> = line.addresses.iter().map(ToString::to_string).collect();
            let strict = if line.strict {
                "; filters strictly"
            } else {
                ""
            };
            [
                line.name,
                line.kind,
                addresses.join(", "),
                match line.taken_for.as_str() {
                    "nic" => "NIC".to_owned(),
                    "node" => "node's address".to_owned(),
                    _ => "others'".to_owned(),
                },
                line.pods.to_string(),
                or_none(line.table.map(|table| table.to_string())),
                or_none(line.mark.map(|mark| format!("{mark:#x}"))),
                format!("{}{strict}", line.why),
            ]
        }),
    )
}

/// Inspects this node as an agent would.
pub(crate) fn dry_run(options: &DryRunOptions, json: bool) -> anyhow::Result<(String, ExitCode)> {
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
    let exit = super::health(&found.findings);
    let text = match json {
        true => format!("{}\n", serde_json::to_string_pretty(&found)?),
        false => told(found),
    };
    Ok((text, exit))
}

fn told(found: DryRun) -> String {
    let mut text = format!("LINKS\n{}\n", show(found.links));
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
    text.push_str(&super::doctor(&found.findings));
    text
}
