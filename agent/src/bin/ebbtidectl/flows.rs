//! `ebbtidectl flows`: prints the flows once, or follows them.

use std::{collections::HashSet, io::Write as _, thread, time::Duration};

use ebbtide_agent::query::{FlowLine, Flows, Place};
use ebbtide_plugin::wire::Query;

use super::{
    agent::parse,
    format::{Output, table},
};

/// The interval at which `--watch` asks the agent.
const PAUSE: Duration = Duration::from_millis(500);

/// The flows that are shown.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// `namespace/name`, `name`, or the start of a container ID.
    #[arg(required_unless_present = "node")]
    pod: Option<String>,
    /// List the flows of all pods of the node.
    #[arg(long, conflicts_with = "pod")]
    node: bool,
    /// The number of flows to show, the latest first.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    /// Print a line for each flow that is learned (+) or forgotten (-), until interrupted.
    #[arg(short, long)]
    pub(super) watch: bool,
}

impl Options {
    pub(super) fn query(&self) -> Query {
        Query::Flows {
            pod: self.pod.clone(),
            limit: self.limit.into(),
        }
    }
}

pub(super) fn show(answer: &Flows) -> String {
    let mut text = table(
        [
            "POD",
            "REMEMBERED BY",
            "IN",
            "OUT",
            "NIC",
            "PROTOCOL",
            "LOCAL",
            "REMOTE",
            "AGE",
            "PACKETS",
        ],
        answer.flows.iter().map(cells),
    );
    let more = answer.total - answer.flows.len().min(answer.total);
    if more > 0 {
        text.push_str(&format!("and {more} older ones: see --limit\n"));
    }
    text
}

fn cells(line: &FlowLine) -> [String; 10] {
    let or_none = |text: &str| match text {
        "" => "-".to_owned(),
        text => text.to_owned(),
    };
    let place = match line.place {
        Place::Pod => "the pod",
        Place::Forwarded => "the host: forwarded",
    };
    [
        or_none(&line.pod),
        place.to_owned(),
        line.came_in.clone(),
        line.leaves_by.clone(),
        or_none(&line.nic),
        line.protocol.clone(),
        line.local.to_string(),
        line.remote.to_string(),
        format!("{} s", line.age),
        line.packets.to_string(),
    ]
}

/// Prints new and forgotten flows, until interrupted or nobody reads.
pub(super) fn watch(
    options: &Options,
    ask: impl Fn() -> anyhow::Result<String>,
    output: Output,
) -> anyhow::Result<()> {
    let mut known: HashSet<FlowLine> = HashSet::new();
    loop {
        let answer: Flows = parse(&ask()?)?;
        // If not all flows are shown, older ones would seem to end with each newer one.
        let cut = answer.total > usize::from(options.limit);
        let mut now = HashSet::new();
        for mut line in answer.flows {
            // Age and packets change, but the flow is the same.
            let age = std::mem::take(&mut line.age);
            let packets = std::mem::take(&mut line.packets);
            if !known.contains(&line) {
                let seen = FlowLine {
                    age,
                    packets,
                    ..line.clone()
                };
                if !say('+', &seen, output) {
                    return Ok(());
                }
            }
            now.insert(line);
        }
        if cut {
            known.extend(now);
        } else {
            for gone in known.difference(&now) {
                if !say('-', gone, output) {
                    return Ok(());
                }
            }
            known = now;
        }
        thread::sleep(PAUSE);
    }
}

/// Prints a line; returns false if nobody reads any more.
fn say(sign: char, line: &FlowLine, output: Output) -> bool {
    let text = match output {
        // Its age at the end is not known.
        Output::Text if sign == '-' => format!("- {}", cells(line)[..7].join("  ")),
        Output::Text => format!("+ {}", cells(line).join("  ")),
        Output::Json => {
            let event = if sign == '+' { "learned" } else { "forgotten" };
            serde_json::json!({ "event": event, "flow": line }).to_string()
        }
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}
