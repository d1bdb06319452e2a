//! `ebbtidectl`, the operator's command line.

mod addresses;
mod agent;
mod cloud;
mod datapath;
mod doctor;
mod dry_run;
mod flows;
mod format;
mod kubectl;
mod log_level;
mod nics;
mod page;
mod pages;
mod pods;
mod pools;
mod status;
mod sysdump;
mod trace;

use std::{io::Write as _, net::IpAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use ebbtide_agent::{doctor::Finding, terminal};
use ebbtide_kernel::podnet::PodNet;
use ebbtide_plugin::{DEFAULT_SOCKET, wire::Query};
use ebbtide_types::printable::{printable, printable_json, printable_lines};

use agent::{ask, parse, understand};
use format::Output;

/// Inspect and control the ebbtide-agent of this node.
#[derive(Parser)]
#[command(name = "ebbtidectl", version)]
struct Cli {
    /// The agent's socket.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// The output format.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show whether the agent runs, whether its manifests are valid, and what it fails to reconcile.
    Status,
    /// Diagnose this node: show problems and their remedies. Exits with 1 if one is serious.
    Doctor(dry_run::Options),
    /// List the node's links, with the role of each and the reason.
    Nics,
    /// Show what the cloud's metadata service tells of the NICs, and what pods may have of it.
    Cloud(cloud::Options),
    /// List the interfaces of this node's pods.
    Pods,
    /// List the address pools and their usage.
    Pools,
    /// Show the eBPF programs of each interface and their packet counters.
    Datapath,
    /// Show a pod's network as planned: links, addresses, routes, rules, programs.
    Explain {
        /// `namespace/name`, `name`, or the start of a container ID.
        pod: String,
    },
    /// List the flows that are tracked for replies, the latest first.
    Flows(flows::Options),
    /// Show live what each eBPF program does with a pod's packets.
    Trace(trace::Options),
    /// Show the owner of an address, its pool, and its former owners.
    Ip {
        /// The address.
        address: IpAddr,
    },
    /// Release an address of a pod that no longer exists, with all other addresses of its interface.
    Release {
        /// The address.
        address: IpAddr,
        /// Release it even if the pod is alive or may be: the interface is removed from the pod.
        #[arg(long)]
        force: bool,
    },
    /// Show or change what the agent logs, without a restart: `ebbtidectl log-level debug`.
    LogLevel(log_level::Options),
    /// Print the address of this node's page, for a browser: NICs, pods, addresses and flows, live; or, with `--cluster`,
    /// of a page of all nodes. It contains the token by which the page gets its data.
    Page(page::Options),
    /// Collect what is needed to understand this node from elsewhere, in one file: to attach to an issue.
    Sysdump(sysdump::Options),
    /// Prove on a Kubernetes cluster that pods, nodes and Services reach each other by every NIC, and that replies leave by
    /// the right one: makes pods in a namespace of its own, and removes them.
    Connectivity(kubectl::connectivity::Options),
    /// Print the completions for a shell: `source <(ebbtidectl completions bash)`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory; made if it does not exist.
        dir: PathBuf,
    },
}

impl Command {
    /// Whether it prints until it is stopped.
    fn lasts(&self) -> bool {
        match self {
            Self::Trace(_) => true,
            Self::Flows(options) => options.watch,
            _ => false,
        }
    }

    /// Whether the cluster is asked, wherever it is run.
    fn is_of_a_cluster(&self) -> bool {
        match self {
            Self::Connectivity(_) => true,
            Self::Page(options) => options.cluster,
            _ => false,
        }
    }
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    if name.is_some_and(|name| name.file_name() == Some(kubectl::NAME.as_ref())) {
        return kubectl::main();
    }
    let cli = Cli::parse();
    if cli.command.is_of_a_cluster() {
        // It is of a cluster, and no agent's socket is asked.
        return kubectl::main_with(std::env::args_os().skip(1));
    }
    let ended = run(&cli).and_then(|(text, exit)| {
        let mut out = std::io::stdout().lock();
        terminal::print(&mut out, &printable_lines(&text), exit)
    });
    match ended {
        Ok(exit) => exit,
        Err(e) => {
            let said = terminal::error_chain(&e);
            let _closed = writeln!(std::io::stderr().lock(), "ebbtidectl: {}", printable(&said));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<(String, ExitCode)> {
    // Commands that print continuously.
    match &cli.command {
        Command::Flows(options) if options.watch => {
            flows::watch(options, || ask(&cli.socket, options.query()), cli.output)?;
            return Ok((String::new(), ExitCode::SUCCESS));
        }
        Command::Trace(options) => {
            trace::run(options, &cli.socket, cli.output)?;
            return Ok((String::new(), ExitCode::SUCCESS));
        }
        Command::Doctor(options) if options.dry_run => {
            return dry_run::run(options, cli.output == Output::Json);
        }
        Command::Page(options) => options.check()?,
        _ => {}
    }
    let query = match &cli.command {
        Command::Status => Query::Status,
        Command::Doctor(_) => Query::Doctor,
        Command::Nics => Query::Nics,
        Command::Cloud(options) => options.query(),
        Command::Pods => Query::Pods,
        Command::Pools => Query::Pools,
        Command::Datapath => Query::Datapath,
        Command::Explain { pod } => Query::Explain { pod: pod.clone() },
        Command::Flows(options) => options.query(),
        Command::Trace(options) => options.query(),
        Command::Ip { address } => Query::Ip { address: *address },
        Command::Release { address, force } => Query::Release {
            address: *address,
            force: *force,
        },
        Command::LogLevel(options) => options.query(),
        Command::Page(_) => Query::Page,
        Command::Sysdump(options) => return sysdump::run(options, &cli.socket, cli.output),
        Command::Completions { shell } => {
            return Ok((pages::completions(*shell)?, ExitCode::SUCCESS));
        }
        Command::Man { dir } => return Ok((pages::manual(dir)?, ExitCode::SUCCESS)),
        Command::Connectivity(_) => {
            anyhow::bail!("this is of a cluster: kubectl ebbtide connectivity")
        }
    };
    let answer = ask(&cli.socket, query)?;
    let exit = match &cli.command {
        Command::Doctor(_) => doctor::health(&parse::<Vec<Finding>>(&answer)?),
        _ => ExitCode::SUCCESS,
    };
    if cli.output == Output::Json {
        let value: serde_json::Value = understand(&answer)?;
        let text = printable_json(&serde_json::to_string_pretty(&value)?);
        return Ok((format!("{text}\n"), exit));
    }
    let text = match &cli.command {
        Command::Status => status::show(&parse(&answer)?),
        Command::Nics => nics::show(parse(&answer)?),
        Command::Cloud(_) => cloud::show(&parse(&answer)?),
        Command::Doctor(_) => doctor::show(&parse::<Vec<Finding>>(&answer)?),
        Command::Pods => pods::show(parse(&answer)?),
        Command::Pools => pools::show(parse(&answer)?),
        Command::Datapath => datapath::show(parse(&answer)?),
        Command::Explain { .. } => {
            let nets: Vec<PodNet> = parse(&answer)?;
            let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
            texts.join("\n")
        }
        Command::Flows(_) => flows::show(&parse(&answer)?),
        Command::LogLevel(_) => log_level::show(&parse(&answer)?),
        Command::Page(_) => page::show(&parse(&answer)?),
        // These are done above.
        Command::Trace(_)
        | Command::Sysdump(_)
        | Command::Connectivity(_)
        | Command::Completions { .. }
        | Command::Man { .. } => answer,
        Command::Ip { .. } => addresses::show(&parse(&answer)?),
        Command::Release { .. } => addresses::released(&parse(&answer)?),
    };
    Ok((text, exit))
}
