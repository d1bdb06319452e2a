//! Latencies of many requests, and what they come to.

use std::time::Duration;

use super::Row;

/// What was measured with so many callers.
#[derive(Debug)]
pub struct Load {
    /// How many asked at once.
    pub callers: usize,
    /// How long each request took.
    pub latencies: Vec<Duration>,
    /// How long all took together.
    pub elapsed: Duration,
}

impl Load {
    /// The row of the table.
    #[must_use]
    pub fn row(mut self, what: &str) -> Row {
        self.latencies.sort_unstable();
        Row {
            what: what.to_owned(),
            callers: self.callers,
            allocations: self.latencies.len(),
            per_second: self.latencies.len() as f64 / self.elapsed.as_secs_f64(),
            p50_us: micros(percentile(&self.latencies, 50)),
            p99_us: micros(percentile(&self.latencies, 99)),
        }
    }
}

pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The least of the (sorted) durations that so many of a hundred do not exceed; zero if there is none.
pub(super) fn percentile(sorted: &[Duration], hundredths: usize) -> Duration {
    let rank = (sorted.len() * hundredths).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let of = |count: u64| (1..=count).map(Duration::from_micros).collect::<Vec<_>>();
        for (count, hundredths, expected) in [
            (1, 50, 1),
            (1, 99, 1),
            (2, 50, 1),
            (100, 50, 50),
            (100, 99, 99),
            (1000, 99, 990),
            (0, 50, 0),
        ] {
            let found = percentile(&of(count), hundredths);
            assert_eq!(
                found,
                Duration::from_micros(expected),
                "{count} {hundredths}"
            );
        }
    }
}
