//! `ebbtidectl`, the operator's command line.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets::NOTHING};
use ebbtide_agent::{
    podnet::PodNet,
    query::{HookLine, PodLine, PoolLine, Status},
};
use ebbtide_plugin::{
    DEFAULT_SOCKET,
    wire::{self, Query, Request},
};
use serde::de::DeserializeOwned;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Look at the work of this node's ebbtide-agent.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// The agent's socket.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// How the answer is printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Is the agent there, and are its manifests in order?
    Status,
    /// The interfaces of this node's pods.
    Pods,
    /// The pools, and how full they are.
    Pools,
    /// The eBPF programs of each interface, and what they counted (packets).
    Datapath,
    /// A pod's network as it was planned: links, addresses, routes, rules, programs.
    Explain {
        /// `namespace/name`, `name`, or the start of a container ID.
        pod: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(text) => {
            // A reader that closes the pipe early (`| head`) is no failure of ours.
            let _closed = std::io::stdout().lock().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(e) => {
            let _closed = writeln!(std::io::stderr().lock(), "ebbtidectl: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<String> {
    let query = match &cli.command {
        Command::Status => Query::Status,
        Command::Pods => Query::Pods,
        Command::Pools => Query::Pools,
        Command::Datapath => Query::Datapath,
        Command::Explain { pod } => Query::Explain { pod: pod.clone() },
    };
    let response = wire::ask(&cli.socket, &Request::Query(query), PATIENCE).with_context(|| {
        format!(
            "ask the agent at {} (is ebbtide-agent running, and are you root?)",
            cli.socket.display()
        )
    })?;
    if response.exit != 0 {
        bail!("{}", response.output);
    }
    let answer = response.output;
    if cli.output == Output::Json {
        let value: serde_json::Value = parse(&answer)?;
        return Ok(format!("{}\n", serde_json::to_string_pretty(&value)?));
    }
    Ok(match &cli.command {
        Command::Status => status(&parse(&answer)?),
        Command::Pods => pods(parse(&answer)?),
        Command::Pools => pools(parse(&answer)?),
        Command::Datapath => datapath(parse(&answer)?),
        Command::Explain { .. } => {
            let nets: Vec<PodNet> = parse(&answer)?;
            let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
            texts.join("\n")
        }
    })
}

fn parse<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer)
        .context("understand the agent's answer (are ebbtidectl and agent of one release?)")
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head);
    table.add_rows(rows);
    format!("{}\n", table.trim_fmt())
}

fn status(status: &Status) -> String {
    let mut text = format!(
        "node {}: agent {} with {} interface(s)\n",
        status.node, status.version, status.interfaces
    );
    for problem in &status.problems {
        text.push_str("problem: ");
        text.push_str(problem);
        text.push('\n');
    }
    text
}

fn pods(lines: Vec<PodLine>) -> String {
    table(
        [
            "POD",
            "INTERFACE",
            "ADDRESSES",
            "NETWORK",
            "NIC",
            "VETH",
            "CONTAINER",
        ],
        lines.into_iter().map(|line| {
            [
                line.pod,
                line.interface,
                line.addresses.join(", "),
                line.network,
                format!("{} ({})", line.master, line.mode),
                line.host_interface.unwrap_or_default(),
                line.container_id.chars().take(12).collect(),
            ]
        }),
    )
}

fn pools(lines: Vec<PoolLine>) -> String {
    let list = |names: Vec<String>| {
        if names.is_empty() {
            "any".to_owned()
        } else {
            names.join(", ")
        }
    };
    table(
        [
            "POOL", "SUBNET", "USED", "RESTING", "FREE", "TOTAL", "NODES", "NETWORKS",
        ],
        lines.into_iter().map(|line| {
            [
                line.name,
                line.subnet,
                line.used.to_string(),
                line.resting.to_string(),
                line.free.to_string(),
                line.total.to_string(),
                list(line.nodes),
                list(line.networks),
            ]
        }),
    )
}

fn datapath(lines: Vec<HookLine>) -> String {
    table(
        [
            "POD",
            "INTERFACE",
            "HOOK",
            "PROGRAM",
            "ATTACHED",
            "SEEN",
            "MARKED",
            "LEARNED",
            "REDIRECTED",
            "PASSED",
            "DROPPED",
            "WRONG NIC",
        ],
        lines.into_iter().map(|line| {
            [
                if line.pod.is_empty() {
                    "(the node)".to_owned()
                } else {
                    line.pod
                },
                line.interface,
                line.hook,
                line.program,
                match line.attached {
                    Some(true) => "yes".to_owned(),
                    Some(false) => "NO".to_owned(),
                    None => "?".to_owned(),
                },
                line.seen.to_string(),
                line.marked.to_string(),
                line.learned.to_string(),
                line.redirected.to_string(),
                line.passed.to_string(),
                line.dropped.to_string(),
                line.wrong_nic.to_string(),
            ]
        }),
    )
}
