//! How answers are formatted for a terminal.

use std::time::SystemTime;

use clap::ValueEnum;
use comfy_table::{Table, presets::NOTHING};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Tables and text, for people.
    Text,
    /// A JSON document.
    Json,
}

/// Lays out rows below a heading.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head);
    table.add_rows(rows);
    format!("{}\n", table.trim_fmt())
}

/// Returns the current time in seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Formats how long ago a time (seconds since 1970) was, in the largest unit with a useful value.
pub(super) fn ago(unix_seconds: u64) -> String {
    let seconds = unix_now().saturating_sub(unix_seconds);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
