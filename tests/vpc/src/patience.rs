//! Time limits of tests, and waiting.
//! Limits for events that must happen are so long that a busy machine is no reason to fail. Only a wait for an event
//! that must not happen takes its whole time.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// The time limit for an answer or a change that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The time limit for an answer that must not come, or that is requested again.
pub const IMPATIENCE: Duration = Duration::from_millis(700);

const PAUSE: Duration = Duration::from_millis(50);

/// Tries again until it succeeds.
///
/// # Errors
/// The last error, with `what`, if no attempt succeeded in time.
///
/// # Examples
///
/// ```
/// use ebbtide_vpc::patience::eventually;
///
/// let mut attempts = 0;
/// eventually("the third attempt", || {
///     attempts += 1;
///     anyhow::ensure!(attempts == 3, "not yet");
///     Ok(())
/// })?;
/// # Ok::<(), anyhow::Error>(())
/// ```
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
