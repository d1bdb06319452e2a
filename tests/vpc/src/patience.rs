//! How long things are waited for. What must come is waited for so long that a busy machine is no reason to fail;
//! only what must not come costs its whole time.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// How long an answer, or a change, is waited for that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long an answer is waited for that must not come, or that is asked for again.
pub const IMPATIENCE: Duration = Duration::from_millis(700);

const PAUSE: Duration = Duration::from_millis(50);

/// Tries again until it succeeds.
///
/// # Errors
/// The last one, if there was no success in time: with `what` was waited for.
pub fn eventually<T>(what: impl Display, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(PAUSE),
            ended => {
                return ended.with_context(|| format!("{what}: not within {PATIENCE:?}"));
            }
        }
    }
}
