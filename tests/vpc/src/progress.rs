//! What a program says while it works: one line a step, and how long it took.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Says what is being done, does it, says how long it took.
///
/// # Errors
/// Those of `work`.
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

/// A time as people read it.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// To standard output, at once.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // A reader that went away wants no more.
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}
