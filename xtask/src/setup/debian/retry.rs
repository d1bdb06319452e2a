//! Retries requests to an archive: what fails with the present package lists is tried again with updated ones.
//!
//! An archive rebuilds packages and drops the old ones. Older lists then name files that are gone (404), and nothing in
//! the lists tells.

use anyhow::{Result, anyhow};

/// Runs `attempt`. If it fails, updates the lists by `read_lists` and runs it again.
///
/// # Errors
/// If both attempts fail; the error has both messages, and that of reading the lists if this failed, too. Failing to
/// read the lists alone is not an error: one of many sources may be down, and another one may have what is needed.
pub(super) fn with_lists_anew<T>(
    mut attempt: impl FnMut() -> Result<T>,
    read_lists: impl FnOnce() -> Result<()>,
) -> Result<T> {
    let first = match attempt() {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    let reading = match read_lists() {
        Ok(()) => String::new(),
        Err(error) => format!("\nreading the lists anew had failed: {error:#}"),
    };
    attempt().map_err(|second| {
        anyhow!(
            "{second:#}{reading}\nthat was the second attempt; the first one, with the package \
             lists of before, had failed: {first:#}"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::bail;

    use super::*;

    /// Simulates attempts of which the first `failing` fail; `reading` is the result of reading the lists.
    fn play(failing: u32, reading: fn() -> Result<()>) -> (Result<u32>, u32) {
        let (attempts, reads) = (Cell::new(0), Cell::new(0));
        let result = with_lists_anew(
            || {
                attempts.set(attempts.get() + 1);
                if attempts.get() <= failing {
                    bail!("404 number {}", attempts.get());
                }
                Ok(attempts.get())
            },
            || {
                reads.set(reads.get() + 1);
                reading()
            },
        );
        (result, reads.get())
    }

    #[test]
    fn what_works_at_once_reads_no_lists() {
        let (result, reads) = play(0, || Ok(()));
        assert_eq!((result.ok(), reads), (Some(1), 0));
    }

    #[test]
    fn what_fails_once_is_tried_again_with_new_lists() {
        let (result, reads) = play(1, || Ok(()));
        assert_eq!((result.ok(), reads), (Some(2), 1));
    }

    #[test]
    fn a_source_that_is_down_does_not_stop_what_another_one_serves() {
        let (result, reads) = play(1, || bail!("no route"));
        assert_eq!((result.ok(), reads), (Some(2), 1));
    }

    #[test]
    fn what_fails_twice_tells_both_and_how_reading_went() {
        let (result, reads) = play(2, || bail!("no route"));
        let error = result.expect_err("two failures").to_string();
        assert_eq!(reads, 1);
        for part in ["404 number 1", "404 number 2", "no route"] {
            assert!(error.contains(part), "no {part} in: {error}");
        }
    }
}
