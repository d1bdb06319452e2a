//! The report: a table for people, JSON for programs, Markdown to attach to an issue.

use std::{collections::BTreeMap, fmt::Write as _};

use ebbtide_agent::probe::Protocol;
use serde::Serialize;

use super::{
    judge::{Row, Verdict},
    live::Started,
    plan::{Family, Group},
    topology::{Network, Node},
};
use crate::format::table;

/// How many packets were routed to a wrong NIC while a group was checked, on all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrongNic {
    /// Those that were redirected to the right one.
    pub(super) redirected: u64,
    /// Those that left by the wrong one: a cloud drops them.
    pub(super) passed: u64,
    /// The nodes whose counters could not be read.
    pub(super) unknown: Vec<String>,
}

/// Everything that was seen.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// The version of this program.
    pub(super) version: String,
    /// The version of the API server.
    pub(super) kubernetes: String,
    /// The image of the pods.
    pub(super) image: String,
    pub(super) ok: bool,
    pub(super) seconds: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) networks: Vec<Network>,
    pub(super) pods: Vec<Started>,
    /// What could not be done beside the rows.
    pub(super) notes: Vec<String>,
    pub(super) wrong_nic: BTreeMap<Group, WrongNic>,
    pub(super) rows: Vec<Row>,
}

/// The columns of protocols; a group has one for a connection, too.
const COLUMNS: [&[Protocol]; 3] = [
    &[Protocol::Tcp, Protocol::Connect],
    &[Protocol::Udp],
    &[Protocol::Icmp],
];

impl Report {
    /// Counts rows, and decides whether all is well.
    pub(super) fn finish(&mut self) {
        let lost = self.wrong_nic.values().any(|each| each.passed > 0);
        let (ok, failed, _) = count(&self.rows.iter().collect::<Vec<_>>());
        self.ok = failed == 0 && ok > 0 && !lost;
    }

    /// Returns table, failures and verdict.
    pub(super) fn text(&self) -> String {
        let mut text = self.table();
        let failed = self.failed();
        if !failed.is_empty() {
            text.push_str("\nFailed:\n");
        }
        for row in failed {
            let _infallible = writeln!(text, "  {}", one(row));
        }
        for (group, wrong) in &self.wrong_nic {
            if wrong.passed > 0 {
                let (title, passed) = (group.title(), wrong.passed);
                let _infallible = writeln!(
                    text,
                    "  {title}: {passed} packets left by a NIC that has not their address, and a cloud drops them"
                );
            }
        }
        for note in &self.notes {
            let _infallible = writeln!(text, "note: {note}");
        }
        let (ok, failed, skipped) = count(&self.rows.iter().collect::<Vec<_>>());
        let verdict = if self.ok { "All is well" } else { "FAILED" };
        let _infallible = writeln!(
            text,
            "\n{verdict}: {ok} ok, {failed} failed, {skipped} skipped, in {} s",
            self.seconds
        );
        text
    }

    fn failed(&self) -> Vec<&Row> {
        let rows = self.rows.iter();
        rows.filter(|row| row.verdict == Verdict::Failed).collect()
    }

    /// Returns the table: a line for each group and family.
    fn table(&self) -> String {
        let head = [
            "ROW",
            "FAMILY",
            "TCP",
            "UDP",
            "ICMP",
            "WRONG NIC",
            "ADDRESS KEPT",
            "LEFT BY",
        ];
        let mut lines: BTreeMap<(Group, Option<Family>), Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            lines.entry((row.group, row.family)).or_default().push(row);
        }
        let mut told = None;
        table(
            head,
            lines.iter().map(|((group, family), rows)| {
                // The counters are the group's.
                let is_first = told.replace(*group) != Some(*group);
                let [tcp, udp, icmp] = COLUMNS.map(|protocols| {
                    let of: Vec<&Row> = rows
                        .iter()
                        .filter(|row| match row.protocol {
                            Some(protocol) => protocols.contains(&protocol),
                            None => protocols.contains(&Protocol::Tcp),
                        })
                        .copied()
                        .collect();
                    cell(&of)
                });
                [
                    group.title().to_owned(),
                    family.map_or("", Family::name).to_owned(),
                    tcp,
                    udp,
                    icmp,
                    match self.wrong_nic.get(group).filter(|_| is_first) {
                        Some(wrong) => wrong.cell(),
                        None => String::new(),
                    },
                    kept(rows),
                    left_by(rows),
                ]
            }),
        )
    }

    /// Returns the report to attach to an issue.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::from("## Ebbtide connectivity\n\n");
        let verdict = if self.ok { "all is well" } else { "**failed**" };
        let _infallible = writeln!(
            text,
            "{verdict}; Ebbtide {}, Kubernetes {}, image `{}`\n",
            self.version, self.kubernetes, self.image
        );
        text.push_str(
            "| node | agent | cloud | machine | kernel | system | runtime | NICs |\n|---|---|---|---|---|---|---|---|\n",
        );
        for node in &self.nodes {
            let nics: Vec<String> = node
                .nics
                .iter()
                .map(|nic| {
                    let addresses: Vec<String> =
                        nic.addresses.iter().map(ToString::to_string).collect();
                    format!("{} {}", nic.name, addresses.join(" "))
                })
                .collect();
            let cells = [
                &node.name,
                &node.version,
                &node.cloud,
                &node.machine,
                &format!("{} {}", node.kernel, node.architecture),
                &node.os,
                &format!("{}, kubelet {}", node.runtime, node.kubelet),
                &nics.join("; "),
            ];
            let cells: Vec<String> = cells.iter().map(|text| text.replace('|', "\\|")).collect();
            let _infallible = writeln!(text, "| {} |", cells.join(" | "));
        }
        let networks: Vec<String> = self
            .networks
            .iter()
            .map(|network| format!("{} ({})", network.name, network.masters.join(", ")))
            .collect();
        let _infallible = writeln!(text, "\nNetworks: {}\n", networks.join("; "));
        let _infallible = writeln!(text, "```\n{}```\n", self.text());
        text.push_str("<details><summary>All rows</summary>\n\n```\n");
        for row in &self.rows {
            let mark = match row.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Failed => "FAILED ",
                Verdict::Skipped => "skipped",
            };
            let _infallible = writeln!(text, "{mark} {}", one(row));
        }
        text.push_str("```\n</details>\n");
        text
    }
}

impl WrongNic {
    fn cell(&self) -> String {
        let mut text = match (self.redirected, self.passed) {
            (0, 0) => "0".to_owned(),
            (redirected, 0) => format!("0 ({redirected} corrected)"),
            (_, passed) => format!("{passed} LOST"),
        };
        if !self.unknown.is_empty() {
            text = format!("? ({})", self.unknown.join(", "));
        }
        text
    }
}

/// Formats a row in one line.
pub(super) fn one(row: &Row) -> String {
    let family = row.family.map_or("", Family::name);
    let protocol = row.protocol.map_or("", Protocol::name);
    let what = [row.group.title(), family, protocol];
    let what: Vec<&str> = what.into_iter().filter(|word| !word.is_empty()).collect();
    let at = match &row.server {
        // An echo has no port.
        Some(server) if server.port() == 0 => format!(" [{}]", server.ip()),
        Some(server) => format!(" [{server}]"),
        None => String::new(),
    };
    let parties = match row.to.is_empty() {
        true => row.from.clone(),
        false => format!("{} → {}", row.from, row.to),
    };
    let detail = match row.detail.is_empty() {
        true => String::new(),
        false => format!(": {}", row.detail),
    };
    format!("{}: {parties}{at}{detail}", what.join(", "))
}

/// Returns how many rows are ok, failed and skipped.
fn count(rows: &[&Row]) -> (usize, usize, usize) {
    let of = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    (of(Verdict::Ok), of(Verdict::Failed), of(Verdict::Skipped))
}

fn cell(rows: &[&Row]) -> String {
    match count(rows) {
        (0, 0, 0) => "-".to_owned(),
        (0, 0, _) => "skipped".to_owned(),
        (ok, 0, _) => format!("{ok}/{ok}"),
        (ok, failed, _) => format!("{ok}/{} FAILED", ok + failed),
    }
}

/// Returns in how many rows the server saw the client's own address.
fn kept(rows: &[&Row]) -> String {
    let told: Vec<bool> = rows.iter().filter_map(|row| row.address_kept).collect();
    match told.len() {
        0 => "-".to_owned(),
        all => format!("{}/{all}", told.iter().filter(|kept| **kept).count()),
    }
}

fn left_by(rows: &[&Row]) -> String {
    let mut nics: BTreeMap<&str, usize> = BTreeMap::new();
    for nic in rows.iter().filter_map(|row| row.left_by.as_deref()) {
        *nics.entry(nic).or_default() += 1;
    }
    let nics: Vec<String> = nics
        .iter()
        .map(|(nic, count)| format!("{nic} {count}"))
        .collect();
    match nics.is_empty() {
        true => "-".to_owned(),
        false => nics.join(", "),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn report() -> Report {
        let row = |group, protocol| Row {
            family: Some(Family::IPv4),
            protocol: Some(protocol),
            address_kept: Some(true),
            ..Row::new(group, "pod a".into(), "pod <b>".into())
        };
        let mut report = Report {
            version: "1".into(),
            kubernetes: "v1.34".into(),
            image: "i:1".into(),
            ok: false,
            seconds: 3,
            nodes: vec![Node {
                name: "n1".into(),
                os: "Linux | GNU".into(),
                ..Node::default()
            }],
            networks: Vec::new(),
            pods: Vec::new(),
            notes: vec!["a note".into()],
            wrong_nic: BTreeMap::from([(
                Group::OtherNode,
                WrongNic {
                    redirected: 7,
                    ..WrongNic::default()
                },
            )]),
            rows: vec![
                row(Group::OtherNode, Protocol::Tcp),
                row(Group::OtherNode, Protocol::Udp).failed("timed out & \"gone\"".into()),
                row(Group::OtherNode, Protocol::Icmp).skipped("not here".into()),
                Row {
                    left_by: Some("ens6".into()),
                    ..row(Group::ReplyNic, Protocol::Tcp)
                },
            ],
        };
        report.finish();
        report
    }

    #[test]
    fn the_table_counts_each_protocol_and_failures_are_told_in_full() {
        let text = report().text();
        let line = |title: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(title))
                .unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line(Group::OtherNode.title()),
            "pod → pod, other node, each NIC IPv4 1/1 0/1 FAILED skipped 0 (7 corrected) 3/3 -"
        );
        assert!(line(Group::ReplyNic.title()).ends_with("IPv4 1/1 - - 1/1 ens6 1"));
        assert!(
            text.contains("IPv4, UDP: pod a → pod <b>: timed out & \"gone\""),
            "{text}"
        );
        assert!(
            text.contains("FAILED: 2 ok, 1 failed, 1 skipped, in 3 s"),
            "{text}"
        );
    }

    #[test]
    fn a_packet_that_left_by_the_wrong_nic_fails_the_test_even_if_all_was_answered() {
        let mut report = report();
        report.rows.retain(|row| row.verdict == Verdict::Ok);
        report.finish();
        assert!(report.ok);
        let wrong = report.wrong_nic.get_mut(&Group::OtherNode).unwrap();
        wrong.passed = 2;
        report.finish();
        assert!(!report.ok);
        assert!(report.text().contains("2 LOST"));
        // Without a row nothing is proven.
        report.wrong_nic.clear();
        report.rows.clear();
        report.finish();
        assert!(!report.ok);
    }

    #[test]
    fn json_has_every_row_and_markdown_has_the_nodes() {
        let report = report();
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["rows"][1]["verdict"], "failed");
        assert_eq!(value["rows"][1]["protocol"], "udp");
        assert_eq!(value["rows"][0]["group"], "other-node");
        assert_eq!(value["wrongNic"]["other-node"]["redirected"], 7);
        let text = report.markdown();
        assert!(
            text.contains("Linux \\| GNU") && text.contains("<details>"),
            "{text}"
        );
    }
}
