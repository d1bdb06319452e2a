//! Progress of a program: one line for each step, with its duration.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Runs a step, and prints its name before and its duration after it.
///
/// # Errors
/// If `work` fails.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print(&format!("{what} ... "));
    let start = Instant::now();
    let result = work();
    let took = seconds(start.elapsed());
    print(&match &result {
        Ok(_) => format!("{took}\n"),
        Err(_) => format!("failed after {took}\n"),
    });
    result
}

/// Formats a duration for people.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Prints to standard output without a buffer.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // A reader that went away needs no more output.
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}
