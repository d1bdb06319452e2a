//! Two clocks: the monotonic one for durations, and the wall clock for dates on disk, across restarts.

use std::time::{Duration, Instant, SystemTime};

/// Milliseconds since the process began; negative for earlier moments. Never jumps.
pub(super) type Moment = i64;

#[derive(Debug, Clone)]
pub(super) enum Clock {
    System {
        start: Instant,
    },
    /// Milliseconds, set by the test; both clocks show the same.
    #[cfg(test)]
    Manual(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    pub(super) fn system() -> Self {
        Self::System {
            start: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> Moment {
        match self {
            Self::System { start } => millis(start.elapsed()),
            #[cfg(test)]
            Self::Manual(millis) => {
                i64::try_from(millis.load(std::sync::atomic::Ordering::SeqCst)).unwrap_or(i64::MAX)
            }
        }
    }

    /// Returns the milliseconds since 1970 by the wall clock.
    pub(super) fn unix_millis(&self) -> u64 {
        match self {
            Self::System { .. } => {
                let since = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
            #[cfg(test)]
            Self::Manual(millis) => millis.load(std::sync::atomic::Ordering::SeqCst),
        }
    }

    /// Converts a date of the wall clock into a moment, as precisely as possible.
    ///
    /// A date in the future (the clock was set back) counts as now: the address then cools down too
    /// long rather than too short.
    pub(super) fn moment_of(&self, unix_millis: u64) -> Moment {
        let age = self.unix_millis().saturating_sub(unix_millis);
        self.now()
            .saturating_sub(i64::try_from(age).unwrap_or(i64::MAX))
    }

    /// Converts a moment into a date of the wall clock.
    pub(super) fn date_of(&self, moment: Moment) -> u64 {
        let age = self.now().saturating_sub(moment);
        self.unix_millis()
            .saturating_sub(u64::try_from(age).unwrap_or(0))
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
