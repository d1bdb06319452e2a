//! Random numbers that repeat for the same seed.

/// xorshift64* (Vigna 2016). The numbers need not be good, only different.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Default for Random {
    /// The same numbers in every run.
    fn default() -> Self {
        Self::new(0x0eb8_71de)
    }
}

impl Random {
    /// Creates a sequence; each seed has another one.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number of 64 bits. The higher ones are the better ones.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number from 0 to below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.number() >> 33) % limit
    }

    /// Returns an index into something of this length; 0 if it is empty.
    pub fn index(&mut self, length: usize) -> usize {
        let length = u64::try_from(length.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.below(length)).unwrap_or(0)
    }

    /// Returns one of the elements; none if there are none.
    pub fn pick<'t, T>(&mut self, all: &'t [T]) -> Option<&'t T> {
        all.get(self.index(all.len()))
    }
}
