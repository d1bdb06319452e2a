//! The results of a benchmark: series of values in tables, as text, Markdown and JSON.

use std::fmt::Write as _;

use comfy_table::{
    CellAlignment, Table as TextTable, TableStyle,
    presets::{ASCII_MARKDOWN, NOTHING},
};
use serde::Serialize;

use super::{machine::Machine, timeline::Timeline};

/// All results of one run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// The name of the benchmark, which is also that of its files.
    pub name: String,
    /// The machine.
    pub machine: Machine,
    /// The tables, in reading order.
    pub tables: Vec<Table>,
    /// The timelines of single operations.
    pub timelines: Vec<Timeline>,
    /// What was not measured and why, and other remarks for readers.
    pub notes: Vec<String>,
}

/// The results of contenders that were measured together.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// What was measured.
    pub title: String,
    /// One sentence that says what a value is.
    pub meaning: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// The contenders.
    pub rows: Vec<Series>,
    /// The name of the row that nothing can beat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<String>,
    /// The name of the row that people use today.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The name of the row whose value of the same round is subtracted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paired: Option<String>,
}

/// One contender's values. In paired tables the `i`th values of all rows are of one round.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// The contender's name.
    pub name: String,
    /// The values, in the order of measurement.
    pub values: Vec<f64>,
}

/// Statistics of a series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// The minimum.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Series {
    /// Creates an empty series.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            values: Vec::new(),
        }
    }

    /// Returns the statistics of the values; zeros if there are none.
    #[must_use]
    pub fn summary(&self) -> Summary {
        summary(&self.values)
    }
}

fn summary(values: &[f64]) -> Summary {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = |hundredths: usize| {
        let rank = (sorted.len() * hundredths).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    };
    Summary {
        min: sorted.first().copied().unwrap_or_default(),
        median: rank(50),
        p95: rank(95),
        p99: rank(99),
    }
}

impl Table {
    /// Creates a table without rows and without references.
    #[must_use]
    pub fn new(title: impl Into<String>, meaning: impl Into<String>, unit: &'static str) -> Self {
        Self {
            title: title.into(),
            meaning: meaning.into(),
            unit,
            rows: Vec::new(),
            floor: None,
            peer: None,
            paired: None,
        }
    }

    fn row(&self, name: Option<&String>) -> Option<&Series> {
        self.rows.iter().find(|row| Some(&row.name) == name)
    }

    /// Returns the median of the differences to the paired row, round by round.
    fn difference(&self, row: &Series) -> Option<f64> {
        let paired = self.row(self.paired.as_ref())?;
        let pairs = row.values.iter().zip(&paired.values);
        let differences: Vec<f64> = pairs.map(|(own, other)| own - other).collect();
        (!differences.is_empty()).then(|| summary(&differences).median)
    }

    /// Returns the header, and the cells of every row.
    fn cells(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let is_single = self.rows.iter().all(|row| row.values.len() <= 1);
        let columns: &[&str] = match is_single {
            true => &["", "value"],
            false => &["", "n", "min", "median", "p95", "p99"],
        };
        let mut header: Vec<String> = columns.iter().copied().map(String::from).collect();
        let ratios: Vec<(&str, f64)> = [("floor", &self.floor), ("peer", &self.peer)]
            .into_iter()
            .filter_map(|(word, name)| Some((word, self.row(name.as_ref())?.summary().median)))
            .filter(|(_, median)| *median > 0.0)
            .collect();
        header.extend(ratios.iter().map(|(word, _)| format!("× {word}")));
        if let Some(name) = &self.paired {
            header.push(format!("± {name}"));
        }
        let rows = self.rows.iter().map(|row| {
            let Summary {
                min,
                median,
                p95,
                p99,
            } = row.summary();
            let mut cells = vec![row.name.clone()];
            match is_single {
                true => cells.extend(row.values.iter().copied().map(number)),
                false => {
                    cells.push(row.values.len().to_string());
                    cells.extend([min, median, p95, p99].map(number));
                }
            }
            cells.extend(ratios.iter().map(|(_, of)| format!("{:.2}", median / of)));
            if self.paired.is_some() {
                cells.push(self.difference(row).map_or_else(String::new, signed));
            }
            cells
        });
        let rows = rows.collect();
        (header, rows)
    }

    /// Formats the table in one of `comfy_table`'s styles.
    fn formatted(&self, style: TableStyle) -> String {
        let (header, rows) = self.cells();
        let mut table = TextTable::new();
        table.load_style(style).set_header(header).add_rows(rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.trim_fmt()
    }
}

/// Formats with at least three significant digits. A whole number is a count, and exact.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

fn signed(value: f64) -> String {
    format!(
        "{}{}",
        if value < 0.0 { "-" } else { "+" },
        number(value.abs())
    )
}

impl Figures {
    /// Formats the results for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        // Writing to a String does not fail.
        for table in &self.tables {
            let _ = writeln!(
                text,
                "\n{} [{}]\n{}",
                table.title,
                table.unit,
                table.formatted(NOTHING)
            );
        }
        for timeline in &self.timelines {
            let _ = write!(text, "\n{}\n{}", timeline.title, timeline.text());
        }
        for note in &self.notes {
            let _ = write!(text, "\nnote: {note}");
        }
        text.push('\n');
        text
    }

    /// Formats the results as a Markdown page, with the pictures that [`Figures::plots`] names.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut page = format!("# bench {}\n\n{}\n", self.name, self.machine);
        for (table, (plot, _)) in self.tables.iter().zip(self.plots()) {
            let _ = write!(
                page,
                "\n## {}\n\n{} Values in {}.\n\n{}\n\n![{}]({plot})\n",
                table.title,
                table.meaning,
                table.unit,
                table.formatted(ASCII_MARKDOWN),
                table.title,
            );
        }
        for timeline in &self.timelines {
            let _ = write!(
                page,
                "\n## {}\n\n```\n{}```\n",
                timeline.title,
                timeline.text()
            );
        }
        if !self.notes.is_empty() {
            page.push_str("\n## Notes\n\n");
        }
        for note in &self.notes {
            let _ = writeln!(page, "- {note}");
        }
        page
    }

    /// Returns a file name and an SVG document for each table.
    #[must_use]
    pub fn plots(&self) -> Vec<(String, String)> {
        let name = |title: &str| -> String {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
            title.to_lowercase().chars().map(plain).collect()
        };
        self.tables
            .iter()
            .map(|table| {
                let file = format!("{}-{}.svg", self.name, name(&table.title));
                (file, super::svg::bars(table))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |name: &str, values: &[f64]| Series {
            name: name.into(),
            values: values.to_vec(),
        };
        Table {
            title: "ADD, one by one".into(),
            meaning: "Wall time.".into(),
            unit: "ms",
            rows: vec![
                row("floor", &[1.0, 2.0, 3.0]),
                row("peer", &[10.0, 20.0, 30.0]),
                row("ours", &[2.5, 5.25, 6.0]),
            ],
            floor: Some("floor".into()),
            peer: Some("peer".into()),
            paired: Some("floor".into()),
        }
    }

    #[test]
    fn a_row_is_compared_with_floor_and_peer_of_the_same_run() {
        let (header, rows) = table().cells();
        assert_eq!(
            header,
            [
                "", "n", "min", "median", "p95", "p99", "× floor", "× peer", "± floor"
            ]
        );
        assert_eq!(
            rows[2],
            ["ours", "3", "2.50", "5.25", "6", "6", "2.62", "0.26", "+3"]
        );
        assert_eq!(rows[0][8], "+0");
    }

    #[test]
    fn one_value_of_each_is_no_distribution() {
        let mut table = table();
        table.paired = None;
        table.rows.iter_mut().for_each(|row| row.values.truncate(1));
        let (header, rows) = table.cells();
        assert_eq!(header, ["", "value", "× floor", "× peer"]);
        assert_eq!(rows[2], ["ours", "2.50", "2.50", "0.25"]);
    }

    #[test]
    fn percentiles_are_by_nearest_rank_and_nothing_is_zero() {
        let of = |count: u32| summary(&(1..=count).rev().map(f64::from).collect::<Vec<_>>());
        assert_eq!(of(0), Summary::default());
        let hundred = of(100);
        assert_eq!(
            [hundred.min, hundred.median, hundred.p95, hundred.p99],
            [1.0, 50.0, 95.0, 99.0]
        );
        assert_eq!(of(1).p99, 1.0);
    }

    #[test]
    fn markdown_names_the_plots_that_are_written() {
        let figures = Figures {
            name: "add".into(),
            machine: Machine::default(),
            tables: vec![table()],
            timelines: Vec::new(),
            notes: vec!["a note".into()],
        };
        let plots = figures.plots();
        assert_eq!(plots[0].0, "add-add--one-by-one.svg");
        assert!(figures.markdown().contains("(add-add--one-by-one.svg)"));
        assert!(figures.markdown().contains("- a note"));
    }
}
