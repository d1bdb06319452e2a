//! The report, for people and for programs.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use ebbtide_vpc::lab::Lab;
use serde::Serialize;
use serde_json::Value;

use super::{arrival::Arrival, check::Line, told};

const RIGHT: &str = "✔";
const WRONG: &str = "✘";

/// All results of the demonstration.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether everything was as expected.
    pub ok: bool,
    /// The rows of the table.
    pub rows: Vec<Line>,
    /// The agents' answers about their pods, with the node.
    pub pods: Vec<Value>,
    /// The agents' answers about their pools, with the node.
    pub pools: Vec<Value>,
    /// The agents' answers about the cloud, with the node; empty where pools are declared.
    pub cloud: Vec<Value>,
    /// The address that was assigned while the demonstration ran.
    pub arrival: Option<Arrival>,
    /// What the VPC dropped while the programs were attached: nothing, if all is well.
    pub violations: Vec<String>,
    /// The duration in seconds.
    pub seconds: f64,
}

impl Report {
    /// Creates a report, with the answers of the agents and the VPC.
    pub(super) fn new(lab: &Lab, arrival: Option<Arrival>) -> Result<Self> {
        let mut report = Self {
            ok: false,
            rows: Vec::new(),
            pods: Vec::new(),
            pools: Vec::new(),
            cloud: Vec::new(),
            arrival,
            violations: lab
                .vpc
                .violations()?
                .iter()
                .map(ToString::to_string)
                .collect(),
            seconds: 0.0,
        };
        for agent in lab.agents() {
            for (what, list) in [("pods", &mut report.pods), ("pools", &mut report.pools)] {
                let answer = agent.control_json(&[what])?;
                for mut line in answer.as_array().cloned().unwrap_or_default() {
                    line["node"] = agent.node().into();
                    list.push(line);
                }
            }
            if report.arrival.is_some() {
                let mut answer = agent.control_json(&["cloud"])?;
                answer["node"] = agent.node().into();
                report.cloud.push(answer);
            }
        }
        Ok(report)
    }

    pub(super) fn finish(&mut self, rows: Vec<Line>, took: Duration) {
        self.ok = rows.iter().all(|row| row.ok) && self.violations.is_empty();
        self.rows = rows;
        self.seconds = took.as_secs_f64();
    }

    /// Formats the report for people.
    #[must_use]
    pub fn text(&self, colour: bool) -> String {
        let mut text = format!("\n{}\n\n", self.traffic());
        let _ = writeln!(
            text,
            "{}\n",
            columns(
                &self.pods,
                &[
                    ("node", "node"),
                    ("pod", "pod"),
                    ("interface", "interface"),
                    ("addresses", "addresses"),
                    ("pools", "pools"),
                    ("network", "network"),
                    ("hostInterface", "host end"),
                ],
            )
        );
        if !self.cloud.is_empty() {
            let _ = writeln!(text, "{}\n", self.metadata());
        }
        // Every agent knows every pool; each pool is shown once, from the node that it is for.
        let own: Vec<Value> = self
            .pools
            .iter()
            .filter(|pool| match pool["nodes"].as_array() {
                Some(nodes) if !nodes.is_empty() => nodes.contains(&pool["node"]),
                _ => true,
            })
            .cloned()
            .collect();
        let mut titles = vec![
            ("node", "node"),
            ("name", "pool"),
            ("subnet", "subnet"),
            ("total", "addresses"),
            ("used", "used"),
            ("free", "free"),
        ];
        if !self.cloud.is_empty() {
            titles.push(("source", "derived from"));
        }
        let _ = writeln!(text, "{}\n", columns(&own, &titles));
        if let Some(arrival) = &self.arrival {
            text += &self.arrived(arrival);
        }
        if self.violations.is_empty() {
            let _ = writeln!(
                text,
                "{RIGHT} the VPC dropped nothing while the programs were attached"
            );
        }
        for violation in &self.violations {
            let _ = writeln!(text, "{WRONG} dropped by the VPC: {violation}");
        }
        for row in self.rows.iter().filter(|row| !row.ok) {
            let _ = writeln!(
                text,
                "{WRONG} {}, {} → {}:\n    {}",
                row.traffic,
                row.from,
                row.to,
                row.note.replace('\n', "\n    ")
            );
        }
        let failed = self.rows.iter().filter(|row| !row.ok).count();
        let verdict = if failed == 0 {
            format!("{RIGHT} all {} rows are as they must be", self.rows.len())
        } else {
            format!("{WRONG} {failed} of {} rows FAILED", self.rows.len())
        };
        let _ = writeln!(text, "{verdict}, {:.1} s", self.seconds);
        if colour {
            text = text
                .replace(RIGHT, &format!("\x1b[32m{RIGHT}\x1b[0m"))
                .replace(WRONG, &format!("\x1b[31m{WRONG}\x1b[0m"))
                .replace("FAILED", "\x1b[31mFAILED\x1b[0m");
        }
        text
    }

    /// Returns what became of the address that was assigned meanwhile.
    fn arrived(&self, arrival: &Arrival) -> String {
        let Arrival { pod, nic, .. } = arrival;
        let name = format!("{pod} {nic}");
        let mut rows = self.rows.iter().filter(|row| row.to == name);
        let (mark, answered) = match rows.all(|row| row.ok) {
            true => (RIGHT, "answered from outside"),
            false => (WRONG, "NOT answered from outside"),
        };
        let addresses: Vec<String> = arrival.addresses.iter().map(ToString::to_string).collect();
        format!(
            "{mark} pod {pod} found no address at {nic}: {}\n  \
             assigned {} to {nic} while the demo ran → told after {:.1} s → usable after {:.1} s\n  \
             → pod {pod} has it after {:.1} s, {answered}\n",
            arrival.refused,
            addresses.join(" and "),
            arrival.told,
            arrival.usable,
            arrival.ready,
        )
    }

    /// Returns the metadata's view, as the agents have it.
    fn metadata(&self) -> Table {
        let mut table = new_table();
        table.set_header(told::TITLES);
        table.add_rows(self.cloud.iter().flat_map(told::rows));
        table
    }

    fn traffic(&self) -> Table {
        let mut table = new_table();
        table.set_header([
            "traffic",
            "from",
            "to",
            "what",
            "path seen on the wires",
            "latency",
            "",
        ]);
        let mut last = "";
        for row in &self.rows {
            let traffic = if row.traffic == last {
                ""
            } else {
                &row.traffic
            };
            last = &row.traffic;
            let (path, verdict) = match (row.ok, row.expected_failure) {
                (true, false) => (row.path.clone(), format!("{RIGHT} ok")),
                (true, true) => (
                    format!("{}\n{}", row.path, row.note),
                    format!("{RIGHT} fails as it must"),
                ),
                (false, _) => (row.path.clone(), format!("{WRONG} FAILED")),
            };
            table.add_row([
                traffic,
                &row.from,
                &row.to,
                &what(row),
                &path,
                &latency(row.latency_us),
                &verdict,
            ]);
        }
        table
    }
}

/// Returns the families and protocols: `v4 v6 · TCP UDP`.
fn what(row: &Line) -> String {
    let mut families: Vec<&str> = Vec::new();
    let mut transports: Vec<String> = Vec::new();
    for exchange in &row.exchanges {
        if !families.contains(&exchange.family.as_str()) {
            families.push(&exchange.family);
        }
        let transport = exchange.transport.to_string();
        if !transports.contains(&transport) {
            transports.push(transport);
        }
    }
    format!(
        "{} · {}",
        families.join(" ").replace("IP", ""),
        transports.join(" ")
    )
}

fn latency(micros: Option<u64>) -> String {
    micros.map_or_else(String::new, |micros| {
        format!("{:.2} ms", micros as f64 / 1000.0)
    })
}

/// Creates a table of the agents' answers, with a column for each key.
fn columns(rows: &[Value], columns: &[(&str, &str)]) -> Table {
    let mut table = new_table();
    table.set_header(columns.iter().map(|(_, title)| *title));
    for row in rows {
        table.add_row(columns.iter().map(|(key, _)| cell(&row[*key])));
    }
    table
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join("\n"),
        other => other.to_string(),
    }
}

fn new_table() -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}
