//! How fast the controller asks: a token bucket of its own, and growing pauses when the cloud says that it is too much.
//!
//! EC2 counts the requests of all programs of an account in a region together. So the controller stays far below what
//! one account may, and when it is refused, all of its requests wait. Pure: the caller tells the time.

use std::time::Duration;

/// How many requests may follow each other at once.
const BURST: f64 = 10.0;

/// How many more there may be each second.
const RATE: f64 = 2.0;

/// The first pause after a refusal.
const FIRST: Duration = Duration::from_secs(1);

/// The longest one.
const LONGEST: Duration = Duration::from_secs(300);

/// The state of the bucket. Times are since any fixed moment.
#[derive(Clone, Debug)]
pub struct Throttle {
    tokens: f64,
    filled: Duration,
    refusals: u32,
    until: Duration,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            tokens: BURST,
            filled: Duration::ZERO,
            refusals: 0,
            until: Duration::ZERO,
        }
    }
}

impl Throttle {
    /// Takes a token, or returns how long to wait before asking again.
    ///
    /// # Errors
    /// The pause, if there is no token now.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        if now < self.until {
            return Err(self.until - now);
        }
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * RATE).min(BURST);
        self.filled = self.filled.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / RATE))
    }

    /// Records that the cloud refused because of too many requests, or was in trouble. `chance` is a random number from 0
    /// to 1: without it, several controllers of an account would come back together.
    pub fn refused(&mut self, now: Duration, chance: f64) {
        let longest = FIRST
            .saturating_mul(1 << self.refusals.min(16))
            .min(LONGEST);
        self.refusals = self.refusals.saturating_add(1);
        self.until = now + longest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
        // The bucket begins to fill when the pause ends: no burst follows.
        (self.tokens, self.filled) = (0.0, self.until);
    }

    /// Records that the cloud answered.
    pub fn answered(&mut self) {
        self.refusals = 0;
    }

    /// Returns when the pause after a refusal ends, if there is one.
    #[must_use]
    pub fn paused(&self, now: Duration) -> Option<Duration> {
        self.until.checked_sub(now).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_passes_and_then_two_a_second() {
        let mut throttle = Throttle::default();
        let burst = (0..20).filter(|_| throttle.take(at(0)).is_ok()).count();
        assert_eq!(burst, 10);
        assert_eq!(throttle.take(at(0)), Err(at(500)));
        assert_eq!(throttle.take(at(500)), Ok(()));
        let later = (0..100).filter(|_| throttle.take(at(3500)).is_ok()).count();
        assert_eq!(later, 6);
        // However long nothing was asked.
        let rested = (0..100)
            .filter(|_| throttle.take(at(9_000_000)).is_ok())
            .count();
        assert_eq!(rested, 10);
    }

    #[test]
    fn refusals_make_everything_wait_longer_each_time_and_an_answer_ends_it() {
        let mut throttle = Throttle::default();
        let mut pauses = Vec::new();
        let mut now = Duration::ZERO;
        for _ in 0..12 {
            throttle.refused(now, 1.0);
            let pause = throttle.paused(now).unwrap();
            assert_eq!(throttle.take(now), Err(pause));
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        // After a pause there is no burst: the bucket is empty.
        assert_eq!(throttle.take(now), Err(at(500)));
        throttle.answered();
        throttle.refused(now, 0.0);
        assert_eq!(throttle.paused(now), Some(at(500)));
    }

    #[test]
    fn a_clock_that_goes_back_harms_nobody() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.take(at(10_000)), Ok(()));
        assert_eq!(throttle.take(at(9_000)), Ok(()));
        let more = (0..100)
            .filter(|_| throttle.take(at(9_500)).is_ok())
            .count();
        assert!(more <= 10, "{more}");
    }
}
