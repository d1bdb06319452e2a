//! The figures as a table.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::Report;

/// The report for people.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "",
        "CALLERS",
        "DURABLE/s",
        "p50 us",
        "p99 us",
        "MEASURED",
    ]);
    for row in &report.rows {
        table.add_row([
            row.what.clone(),
            row.callers.to_string(),
            format!("{:.0}", row.per_second),
            format!("{:.0}", row.p50_us),
            format!("{:.0}", row.p99_us),
            row.allocations.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{}\n\n", table.trim_fmt());
    let mega = |bytes: u64| bytes as f64 / 1e6;
    let cost = &report.cost;
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "memory for a pool of a million addresses  {:.1} MB\n\
         memory for 10,000 allocations             {:.1} MB (records of {} bytes)\n\
         recovery with 10,000 allocations          {:.1} ms (store {:.1} MB)\n\
         one fdatasync on this disk                {:.0} us\n",
        mega(cost.per_million_addresses),
        mega(cost.per_10000_allocations),
        report.record_bytes,
        cost.recovery_ms,
        mega(cost.store_bytes),
        report.fsync_us,
    );
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}
