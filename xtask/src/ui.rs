//! The output for people: plain lines, with colours only where they are wanted.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Prints a line to stdout. A reader that went away (`| head`) is not an error.
pub(crate) fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Prints a progress line to stderr, so that stdout has the command's own output only.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints the error that ends the run, with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    note(format_args!("{}: {error:#}", paint(Colour::Red, "error")));
}

/// The colours.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Colour {
    Red,
    Green,
    Bold,
}

/// Whether stdout is coloured: by default if it is a terminal, or as the environment says.
pub(crate) fn coloured() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let forced = |name| set(name) && std::env::var_os(name).is_some_and(|value| value != "0");
    if forced("FORCE_COLOR") || forced("CLICOLOR_FORCE") {
        return true;
    }
    !set("NO_COLOR") && std::io::stdout().is_terminal()
}

/// Returns `text` in `colour`, if colours are wanted.
pub(crate) fn paint(colour: Colour, text: impl Display) -> String {
    let code = match colour {
        Colour::Red => "31;1",
        Colour::Green => "32",
        Colour::Bold => "1",
    };
    if coloured() {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_string()
    }
}

thread_local! {
    /// The current step of this thread.
    static STEP: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Whether stderr is a terminal, on which a line can be overwritten.
pub(crate) fn live() -> bool {
    std::io::stderr().is_terminal()
}

/// Runs a step, and prints its name before and its duration after it, on one line of stderr.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = STEP.replace(name.to_owned());
    if live() {
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "  {name} ...");
        let _ = err.flush();
    }
    let start = Instant::now();
    let result = work();
    STEP.set(before);
    let word = if result.is_ok() { "ok" } else { "FAILED" };
    let begin = if live() { "\r\u{1b}[2K" } else { "" };
    note(format_args!(
        "{begin}  {name}: {word}, {}",
        seconds(start.elapsed())
    ));
    result
}

/// Shows the progress of this thread's step: in its line on a terminal, otherwise as a line of its own.
pub(crate) fn progress(text: impl Display) {
    let name = STEP.with_borrow(Clone::clone);
    let mut err = std::io::stderr().lock();
    let _ = match live() {
        true => write!(err, "\r\u{1b}[2K  {name} ... {text}"),
        false => writeln!(err, "  {name} ... {text}"),
    };
    let _ = err.flush();
}

/// Formats a duration for people.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Formats rows as columns of equal width, two spaces apart; the last column is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_table_line_up() {
        let rows = [["a", "bbb"], ["ccc", "d"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(table(&rows), "a    bbb\nccc  d\n");
    }
}
