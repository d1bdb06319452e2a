//! `ebbtidectl`, the operator's command line.

mod flows;
mod nics;
mod trace;

use std::{
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use ebbtide_agent::{
    doctor::{Finding, Severity},
    query::{
        AddressInfo, AddressState, FailingItem, HookLine, PodLine, PoolLine, Released, Status,
    },
};
use ebbtide_kernel::podnet::PodNet;
use ebbtide_plugin::{
    DEFAULT_SOCKET,
    wire::{self, Query, Request},
};
use ebbtide_types::printable::{printable, printable_in_json, printable_json, printable_lines};
use serde::de::DeserializeOwned;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Look at the work of this node's ebbtide-agent.
#[derive(Parser)]
#[command(name = "ebbtidectl", version)]
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
    /// What is wrong with this node, and what to do about it. Fails if any of it is serious.
    Doctor(nics::DryRunOptions),
    /// The node's links: what each is taken for, and why.
    Nics,
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
    /// The flows that are remembered for replies, the youngest first.
    Flows(flows::Options),
    /// What each eBPF program does with a pod's packets, live.
    Trace(trace::Options),
    /// The owner of an address, since when, from which pool, and the owners before.
    Ip {
        /// The address.
        address: IpAddr,
    },
    /// Release an address of a pod that no longer exists, with all other addresses of its interface.
    Release {
        /// The address.
        address: IpAddr,
        /// Also if the pod is alive, or may be: its interface is removed from it.
        #[arg(long)]
        force: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok((text, exit)) => {
            // A reader that closes the pipe early (`| head`) is no failure.
            let text = printable_lines(&text);
            let _closed = std::io::stdout().lock().write_all(text.as_bytes());
            exit
        }
        Err(e) => {
            let said = format!("{e:#}");
            let _closed = writeln!(std::io::stderr().lock(), "ebbtidectl: {}", printable(&said));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<(String, ExitCode)> {
    // Commands that print continuously.
    match &cli.command {
        Command::Flows(options) if options.watch => {
            flows::watch(options, || ask(cli, options.query()), cli.output)?;
            return Ok((String::new(), ExitCode::SUCCESS));
        }
        Command::Trace(options) => {
            trace::run(options, &cli.socket, cli.output)?;
            return Ok((String::new(), ExitCode::SUCCESS));
        }
        Command::Doctor(options) if options.dry_run => {
            return nics::dry_run(options, cli.output == Output::Json);
        }
        _ => {}
    }
    let query = match &cli.command {
        Command::Status => Query::Status,
        Command::Doctor(_) => Query::Doctor,
        Command::Nics => Query::Nics,
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
    };
    let answer = ask(cli, query)?;
    let exit = match &cli.command {
        Command::Doctor(_) => health(&parse::<Vec<Finding>>(&answer)?),
        _ => ExitCode::SUCCESS,
    };
    if cli.output == Output::Json {
        let value: serde_json::Value = understand(&answer)?;
        let text = printable_json(&serde_json::to_string_pretty(&value)?);
        return Ok((format!("{text}\n"), exit));
    }
    let text = match &cli.command {
        Command::Status => status(&parse(&answer)?),
        Command::Nics => nics::show(parse(&answer)?),
        Command::Doctor(_) => doctor(&parse::<Vec<Finding>>(&answer)?),
        Command::Pods => pods(parse(&answer)?),
        Command::Pools => pools(parse(&answer)?),
        Command::Datapath => datapath(parse(&answer)?),
        Command::Explain { .. } => {
            let nets: Vec<PodNet> = parse(&answer)?;
            let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
            texts.join("\n")
        }
        Command::Flows(_) => flows::show(&parse(&answer)?),
        Command::Trace(_) => answer,
        Command::Ip { .. } => ip(&parse(&answer)?),
        Command::Release { .. } => released(&parse(&answer)?),
    };
    Ok((text, exit))
}

/// Returns the agent's answer unchanged.
fn ask(cli: &Cli, query: Query) -> anyhow::Result<String> {
    let response = wire::ask(&cli.socket, &Request::Query(query), PATIENCE).with_context(|| {
        format!(
            "ask the agent at {} (is ebbtide-agent running, and are you root?)",
            cli.socket.display()
        )
    })?;
    if response.exit != 0 {
        bail!("{}", response.output);
    }
    Ok(response.output)
}

/// Parses the answer for a terminal, with printable names: they are chosen by others.
fn parse<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    understand(&printable_in_json(answer))
}

fn understand<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
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
    if status.not_reconciled > 0 {
        let count = status.not_reconciled;
        text.push_str(&format!("{count} of these not reconciled yet\n"));
    }
    for problem in &status.problems {
        text.push_str("problem: ");
        text.push_str(problem);
        text.push('\n');
    }
    if !status.failing.is_empty() {
        text.push_str("failing, and retried:\n");
        let now = unix_now();
        let head = ["ITEM", "SINCE", "ATTEMPTS", "NEXT", "LAST ERROR"];
        text.push_str(&table(
            head,
            status.failing.iter().map(|item| failing(item, now)),
        ));
    }
    text
}

fn failing(item: &FailingItem, now: u64) -> [String; 5] {
    [
        item.key.clone(),
        ago(item.since),
        item.attempts.to_string(),
        match item.next_try {
            Some(next) => format!("in {} s", next.saturating_sub(now)),
            None => "now".to_owned(),
        },
        item.last_error.clone(),
    ]
}

fn health(findings: &[Finding]) -> ExitCode {
    let mut serious = findings.iter().filter(|f| f.severity == Severity::Serious);
    match serious.next() {
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}

fn doctor(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong, as far as can be told from here\n".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Serious => "serious",
        };
        text.push_str(&format!(
            "{severity}: {}\n    {}\n",
            finding.what, finding.hint
        ));
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
    let mark = |line: &PoolLine| match (line.default, line.disabled) {
        (_, true) => "disabled",
        (true, false) => "default",
        (false, false) => "by name",
    };
    if lines.is_empty() {
        return "no pool is declared; declare a SpiderIPPool\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "POOL", "SUBNET", "", "USED", "COOLDOWN", "FREE", "TOTAL", "RESERVED", "FOR", "NODES",
        "NETWORKS",
    ]);
    let held: Vec<String> = lines.iter().flat_map(held).collect();
    table.add_rows(lines.into_iter().map(|line| {
        let (bar, mark) = (bar(line.used, line.in_cooldown, line.total), mark(&line));
        [
            line.name,
            line.subnet,
            bar,
            count(line.used),
            count(line.in_cooldown),
            count(line.free),
            count(line.total),
            count(line.reserved),
            mark.to_owned(),
            list(line.nodes),
            list(line.networks),
        ]
    }));
    for column in table.column_iter_mut().skip(3).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n{}", table.trim_fmt(), held.concat())
}

/// Returns a line for each address that a pool withholds, up to a limit.
fn held(line: &PoolLine) -> Vec<String> {
    const SHOWN: usize = 20;
    let mut lines: Vec<String> = line
        .held
        .iter()
        .take(SHOWN)
        .map(|held| format!("{} of {} is held: {}\n", held.address, line.name, held.why))
        .collect();
    if line.held.len() > SHOWN {
        let more = line.held.len() - SHOWN;
        lines.push(format!("{more} more of {} are held\n", line.name));
    }
    lines
}

/// Formats a number readably: a /64 has 1.8e19 addresses, and nobody needs all digits.
fn count(number: u128) -> String {
    match number {
        0..100_000_000 => number.to_string(),
        _ => format!("{:.1e}", number as f64),
    }
}

/// Draws used, cooling down and free addresses as a bar. A part that is not empty has at least one cell.
fn bar(used: u128, in_cooldown: u128, total: u128) -> String {
    const WIDTH: u128 = 20;
    // A pool of 2^128 addresses: the multiplication must not overflow.
    let cells = |count: u128| match (count, total) {
        (0, _) | (_, 0) => 0,
        _ => (count.saturating_mul(WIDTH) / total).clamp(1, WIDTH),
    };
    let used_cells = cells(used);
    let resting_cells = cells(in_cooldown).min(WIDTH - used_cells);
    let part = |symbol: &str, count: u128| symbol.repeat(usize::try_from(count).unwrap_or(0));
    let free = WIDTH - used_cells - resting_cells;
    format!(
        "{}{}{}",
        part("#", used_cells),
        part("~", resting_cells),
        part(".", free)
    )
}

fn ip(info: &AddressInfo) -> String {
    let mut lines = vec![format!("{} {}", info.address, state(info))];
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("  {name:<10} {value}"));
        }
    };
    say("pod", info.pod.clone());
    say("uid", info.uid.clone());
    say("pool", info.pool.clone());
    say("since", info.since.map(ago));
    if let Some(owner) = &info.owner {
        say("container", Some(owner.container_id.clone()));
        say("interface", Some(owner.interface.clone()));
        say("network", Some(owner.network.clone()));
    }
    say("released", info.released_at.map(ago));
    say("held", info.withheld.clone());
    for past in &info.history {
        say(
            "before",
            Some(format!(
                "{} ({}), {} to {}, container {}",
                past.pod.as_deref().unwrap_or("no pod of Kubernetes"),
                past.owner.interface,
                ago(past.since),
                ago(past.until),
                past.owner.container_id,
            )),
        );
    }
    lines.push(String::new());
    lines.join("\n")
}

fn state(info: &AddressInfo) -> String {
    match info.state {
        AddressState::Held => match info.alive {
            Some(true) => "is in use".to_owned(),
            Some(false) => "is in use by a pod whose namespace is gone".to_owned(),
            None => "is in use by a pod that cannot be looked at".to_owned(),
        },
        AddressState::Reserving => "is about to be given to a pod".to_owned(),
        AddressState::Adopted => {
            "is reserved for a running pod that another agent set up".to_owned()
        }
        AddressState::Waiting => "is reserved for its StatefulSet's pod".to_owned(),
        AddressState::Cooldown => format!("cools down for {} s more", info.cooldown_for),
        AddressState::Withheld => "is not given to pods".to_owned(),
        AddressState::Free => "is free".to_owned(),
        AddressState::Reserved => "is kept free by a SpiderReservedIP".to_owned(),
        AddressState::Gateway => "is a gateway".to_owned(),
        AddressState::NotInRange => "is in a pool's subnet, but no pool hands it out".to_owned(),
        AddressState::Unknown => "is in no pool's subnet".to_owned(),
    }
}

/// Returns the current time in seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Formats how long ago a time (seconds since 1970) was, in the largest unit with a useful value.
fn ago(unix_seconds: u64) -> String {
    let seconds = unix_now().saturating_sub(unix_seconds);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn released(released: &Released) -> String {
    let addresses: Vec<String> = released.addresses.iter().map(ToString::to_string).collect();
    format!(
        "released {} of {}{}\n",
        addresses.join(", "),
        released
            .pod
            .as_deref()
            .or(released
                .owner
                .as_ref()
                .map(|owner| owner.container_id.as_str()))
            .unwrap_or("an unknown pod"),
        if released.forced { " (forced)" } else { "" }
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
                    Some(true) => line.by,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_counting_are_short() {
        for (number, expected) in [
            (0, "0"),
            (99_999_999, "99999999"),
            (100_000_000, "1.0e8"),
            ((1 << 64) - 1, "1.8e19"),
            (u128::MAX, "3.4e38"),
        ] {
            assert_eq!(count(number), expected);
        }
    }

    #[test]
    fn a_bar_shows_whatever_is_there_at_all() {
        for (used, in_cooldown, total, expected) in [
            (0, 0, 10, "...................."),
            (5, 0, 10, "##########.........."),
            (5, 5, 10, "##########~~~~~~~~~~"),
            (1, 1, 1 << 64, "#~.................."),
            (11, 0, 10, "####################"),
            (0, 0, 0, "...................."),
            (10, 1, u128::MAX, "#~.................."),
        ] {
            assert_eq!(
                bar(used, in_cooldown, total),
                expected,
                "{used} {in_cooldown} {total}"
            );
        }
    }
}
