//! What Rust's test harness says at the end.

use std::fmt;

/// How many test functions passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: u32,
    pub(super) failed: u32,
}

impl Count {
    /// Takes those of `other` in.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// The sum of all `test result:` lines in `text`.
pub(super) fn count(text: &str) -> Count {
    let mut sum = Count::default();
    for line in text.lines() {
        // A test that writes without a newline puts its words before ours.
        let Some((_, result)) = line.split_once("test result: ") else {
            continue;
        };
        sum.add(Count {
            passed: number(result, "passed"),
            failed: number(result, "failed"),
        });
    }
    sum
}

/// The number before `word` in `ok. 3 passed; 0 failed; ...`.
fn number(result: &str, word: &str) -> u32 {
    result
        .split([';', '.'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_executables_are_summed() {
        let text = "running 3 tests\n...\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.10s\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\r\n\
            noise test result: ok. 1 passed; 0 failed\n";
        assert_eq!(
            count(text),
            Count {
                passed: 14,
                failed: 2
            }
        );
    }

    #[test]
    fn nothing_ran_is_nothing_counted() {
        assert_eq!(count("running 0 tests\n"), Count::default());
        assert_eq!(count("test result: garbage"), Count::default());
    }

    #[test]
    fn the_last_line_has_exactly_this_form() {
        assert_eq!(
            Count {
                passed: 12,
                failed: 0
            }
            .to_string(),
            "12 passed, 0 failed"
        );
    }
}
