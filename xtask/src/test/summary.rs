//! The summary of a run: counts, and the name and reason of every test that did not simply pass.

use std::collections::BTreeMap;
use std::fmt;

use super::board::{Board, Verdict};
use crate::ui;

/// The user's terms for success.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// Whether a test that passes at a second attempt has passed.
    pub(super) flaky_passes: bool,
    /// The needs for which no test may be skipped.
    pub(super) required: Vec<String>,
}

/// All boards together.
#[derive(Debug, Default)]
pub(super) struct Summary {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// The lines to print, in order.
    pub(super) lines: Vec<String>,
}

impl Summary {
    /// Judges `boards` by `terms`.
    pub(super) fn of(boards: &[Board], terms: &Terms) -> Self {
        let mut summary = Self::default();
        // A test that is skipped in one place may run in another.
        let mut ran = BTreeMap::new();
        let mut skips: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for board in boards {
            for trouble in board.troubles() {
                summary.fail(trouble.clone());
            }
            for (test, verdict, reasons) in board.verdicts() {
                let name = format!("{test}, in {}", board.place);
                let skipped = verdict == Verdict::Skipped;
                *ran.entry(test.to_string()).or_insert(false) |= !skipped;
                match verdict {
                    Verdict::Passed => summary.passed += 1,
                    Verdict::Failed => summary.fail(format!("failed: {name}")),
                    Verdict::NotRun => summary.fail(format!("not run: {name}")),
                    Verdict::Flaky => {
                        let line = format!("flaky (failed, then passed): {name}");
                        match terms.flaky_passes {
                            true => {
                                summary.passed += 1;
                                summary.lines.push(line);
                            }
                            false => summary.fail(line),
                        }
                    }
                    Verdict::Skipped => {
                        summary.skipped += 1;
                        for skip in reasons {
                            let key = (skip.need.as_str(), skip.reason.as_str());
                            skips.entry(key).or_default().push(name.clone());
                        }
                    }
                }
            }
        }
        for ((need, reason), names) in &skips {
            summary.lines.push(format!(
                "skipped for want of {need} ({reason}): {}",
                names.join("; ")
            ));
        }
        summary.require(boards, terms, &ran);
        // Last, where who has only the end of a log finds it.
        for board in boards {
            for (test, reason) in board.reasons() {
                let line = format!("  why {test}, in {}: {reason}", board.place);
                summary.lines.push(line);
            }
        }
        summary
    }

    /// Fails tests that were skipped in every place for a required need.
    fn require(&mut self, boards: &[Board], terms: &Terms, ran: &BTreeMap<String, bool>) {
        let mut missed = BTreeMap::new();
        for (test, verdict, skips) in boards.iter().flat_map(Board::verdicts) {
            let name = test.to_string();
            let required = skips
                .iter()
                .find(|skip| terms.required.contains(&skip.need));
            if let Some(skip) = required
                && verdict == Verdict::Skipped
                && ran.get(&name) == Some(&false)
            {
                missed.insert(name, skip.need.clone());
            }
        }
        for (name, need) in missed {
            self.fail(format!(
                "skipped, though --require says that {need} is there: {name}"
            ));
        }
    }

    fn fail(&mut self, line: String) {
        self.failed += 1;
        self.lines.push(ui::paint(ui::Colour::Red, line));
    }

    /// Whether something ran and nothing failed.
    pub(super) fn is_ok(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        match self.skipped {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::board::tests::board;
    use super::*;

    fn terms(flaky_passes: bool, required: &[&str]) -> Terms {
        Terms {
            flaky_passes,
            required: required.iter().map(|need| (*need).to_owned()).collect(),
        }
    }

    #[test]
    fn each_verdict_is_counted_and_named() {
        type Row = (&'static str, &'static [bool], &'static [&'static str]);
        const PASS: Row = ("lab::a::pass", &[true], &[]);
        const FLAKY: Row = ("lab::a::flaky", &[false, true], &[]);
        const FAIL: Row = ("lab::a::fail", &[false, false], &[]);
        const SKIP: Row = ("kube::b::skip", &[true], &["kube"]);
        const LOST: Row = ("lab::a::lost", &[], &[]);
        for (rows, terms, ok, line, named) in [
            (
                &[PASS][..],
                terms(false, &[]),
                true,
                "1 passed, 0 failed",
                None,
            ),
            (
                &[PASS, FLAKY],
                terms(false, &[]),
                false,
                "1 passed, 1 failed",
                Some("flaky (failed, then passed): lab::a::flaky"),
            ),
            (
                &[PASS, FLAKY],
                terms(true, &[]),
                true,
                "2 passed, 0 failed",
                Some("flaky (failed, then passed): lab::a::flaky"),
            ),
            (
                &[PASS, FAIL],
                terms(true, &[]),
                false,
                "1 passed, 1 failed",
                Some("failed: lab::a::fail"),
            ),
            (
                &[PASS, SKIP],
                terms(false, &["tcx"]),
                true,
                "1 passed, 0 failed, 1 skipped",
                Some("skipped for want of kube (no kube): kube::b::skip"),
            ),
            (
                &[PASS, SKIP],
                terms(false, &["tcx", "kube"]),
                false,
                "1 passed, 1 failed, 1 skipped",
                Some("skipped, though --require says that kube is there: kube::b::skip"),
            ),
            (
                &[PASS, LOST],
                terms(false, &[]),
                false,
                "1 passed, 1 failed",
                Some("not run: lab::a::lost"),
            ),
            (&[], terms(false, &[]), false, "0 passed, 0 failed", None),
        ] {
            let summary = Summary::of(&[board(rows)], &terms);
            assert_eq!(
                (summary.is_ok(), summary.to_string().as_str()),
                (ok, line),
                "{rows:?} by {terms:?}"
            );
            let text = summary.lines.join("\n");
            assert!(text.contains(named.unwrap_or_default()), "{text}");
        }
    }

    #[test]
    fn what_is_skipped_in_one_place_and_runs_in_another_is_not_missed() {
        let boards = [
            board(&[("lab::nft::x", &[true], &["nft"])]),
            board(&[("lab::nft::x", &[true], &[])]),
        ];
        let summary = Summary::of(&boards, &terms(false, &["nft"]));
        assert_eq!(summary.to_string(), "1 passed, 0 failed, 1 skipped");
        assert!(summary.is_ok());
    }

    #[test]
    fn a_place_that_did_not_work_is_a_failure() {
        let mut board = board(&[("lab::a::x", &[true], &[])]);
        board.trouble("user-mode Linux did not run its tests".to_owned());
        let summary = Summary::of(&[board], &Terms::default());
        assert_eq!(summary.to_string(), "1 passed, 1 failed");
    }
}
