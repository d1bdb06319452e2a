//! The report, for people and for programs.

use std::{fmt::Write as _, time::Duration};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use super::{Addresses, Cloud};

/// The result of one row.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What the row asserts.
    pub row: String,
    /// How it was checked.
    pub how: String,
    /// What was seen, or what failed if `ok` is false.
    pub result: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// Its duration in seconds.
    pub seconds: f64,
}

/// All results.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The cloud.
    pub cloud: Cloud,
    /// What said which addresses pods may have.
    pub addresses: Addresses,
    /// Whether all rows succeeded.
    pub ok: bool,
    /// The rows, in order.
    pub rows: Vec<Row>,
    /// The duration in seconds, from the start of the VPC to the last row.
    pub seconds: f64,
}

impl Report {
    pub(super) fn finish(&mut self, took: Duration) {
        self.ok = !self.rows.is_empty() && self.rows.iter().all(|row| row.ok);
        self.seconds = took.as_secs_f64();
    }

    /// Formats the report for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(["row", "what", "result", ""]);
        for row in &self.rows {
            let verdict = if row.ok { "✔ ok" } else { "✘ FAILED" };
            let result = if row.ok { &row.result } else { "see below" };
            table.add_row([row.row.as_str(), &row.how, result, verdict]);
        }
        let mut text = format!("\n{table}\n");
        let failed: Vec<&Row> = self.rows.iter().filter(|row| !row.ok).collect();
        for row in &failed {
            let _ = writeln!(
                text,
                "✘ {}, {}:\n    {}",
                row.row,
                row.how,
                row.result.replace('\n', "\n    ")
            );
        }
        let _ = match failed.len() {
            0 => write!(text, "✔ all {} rows are as they must be", self.rows.len()),
            failed => write!(text, "✘ {failed} of {} rows FAILED", self.rows.len()),
        };
        let _ = writeln!(text, " ({}), {:.0} s", self.cloud, self.seconds);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_that_is_wrong_is_enough_and_none_is_no_success() {
        let row = |ok| Row {
            row: "node → pod".into(),
            how: "wget".into(),
            result: "no\nanswer".into(),
            ok,
            seconds: 0.0,
        };
        let of = |rows: Vec<Row>| {
            let mut report = Report {
                rows,
                ..Report::default()
            };
            report.finish(Duration::ZERO);
            report
        };
        assert!(!of(vec![]).ok);
        assert!(of(vec![row(true)]).ok);
        let bad = of(vec![row(true), row(false)]);
        assert!(!bad.ok);
        assert!(bad.text().contains("1 of 2 rows FAILED"));
        assert!(bad.text().contains("    no\n    answer"));
    }
}
