//! The results of the tests in one place.

use std::time::Duration;

use super::lanes::Place;
use super::suite::Test;
use crate::ui::{self, Colour};

/// The reason why a test was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Skip {
    /// What it needs, as named by `--require`.
    pub(super) need: String,
    pub(super) reason: String,
}

/// The result of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// It failed, and passed when it was tried again.
    Flaky,
    Failed,
    Skipped,
    /// It was not started.
    NotRun,
}

#[derive(Debug)]
struct Entry {
    test: Test,
    tries: Vec<(bool, Duration)>,
    skips: Vec<Skip>,
    /// Why it failed, if its output says so.
    reason: Option<String>,
}

/// The tests of one place, with their results.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) place: Place,
    entries: Vec<Entry>,
    boots: Vec<Duration>,
    troubles: Vec<String>,
}

impl Board {
    /// Creates a board with `tests`, without results.
    pub(super) fn new(place: Place, tests: &[Test]) -> Self {
        let entry = |test: &Test| Entry {
            test: test.clone(),
            tries: Vec::new(),
            skips: Vec::new(),
            reason: None,
        };
        Self {
            place,
            entries: tests.iter().map(entry).collect(),
            boots: Vec::new(),
            troubles: Vec::new(),
        }
    }

    /// Records the duration of a guest's boot.
    pub(super) fn booted(&mut self, took: Duration) {
        self.boots.push(took);
    }

    /// Records a failure that belongs to no test.
    pub(super) fn trouble(&mut self, what: String) {
        self.troubles.push(what);
    }

    /// Records that a test was skipped.
    pub(super) fn skipped(&mut self, test: usize, skip: Skip) {
        self.entries[test].skips.push(skip);
    }

    /// Records the end of an attempt.
    pub(super) fn ended(&mut self, test: usize, ok: bool, took: Duration) {
        self.entries[test].tries.push((ok, took));
    }

    /// Records why the last attempt failed.
    pub(super) fn failed_for(&mut self, test: usize, reason: String) {
        self.entries[test].reason = Some(reason);
    }

    /// Whether the test passed at the first attempt.
    pub(super) fn is_plain_pass(&self, test: usize) -> bool {
        self.entries[test].verdict() == Verdict::Passed
    }

    /// Formats a line about the last attempt of a test.
    pub(super) fn line(&self, test: usize) -> String {
        let entry = &self.entries[test];
        let took = entry.tries.last().map_or(Duration::ZERO, |(_, took)| *took);
        let (word, colour) = match entry.verdict() {
            Verdict::Passed => ("ok", Colour::Green),
            Verdict::Flaky => ("flaky", Colour::Red),
            Verdict::Skipped => ("skipped", Colour::Bold),
            Verdict::Failed | Verdict::NotRun => ("FAILED", Colour::Red),
        };
        let mut line = format!(
            "{} {:>8}  {}, in {}",
            ui::paint(colour, format_args!("{word:>7}")),
            ui::seconds(took),
            entry.test,
            self.place
        );
        if entry.verdict() == Verdict::Skipped {
            for skip in &entry.skips {
                line.push_str(&format!(" ({}: {})", skip.need, skip.reason));
            }
        }
        line
    }

    /// Returns the tests with their results.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (&Test, Verdict, &[Skip])> {
        self.entries
            .iter()
            .map(|entry| (&entry.test, entry.verdict(), entry.skips.as_slice()))
    }

    /// Returns why tests failed, as far as their output says so.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (&Test, &str)> {
        self.entries
            .iter()
            .filter_map(|entry| Some((&entry.test, entry.reason.as_deref()?)))
    }

    /// Returns the failures that belong to no test.
    pub(super) fn troubles(&self) -> &[String] {
        &self.troubles
    }

    /// Returns the duration of each boot.
    pub(super) fn boots(&self) -> &[Duration] {
        &self.boots
    }

    /// Returns the number of tests and the time of each group, the longest first.
    pub(super) fn groups(&self) -> Vec<(String, usize, Duration)> {
        let mut groups: Vec<(String, usize, Duration)> = Vec::new();
        for entry in &self.entries {
            let took: Duration = entry.tries.iter().map(|(_, took)| *took).sum();
            let name = entry.test.group();
            match groups.iter_mut().find(|group| group.0 == name) {
                Some(group) => (group.1, group.2) = (group.1 + 1, group.2 + took),
                None => groups.push((name, 1, took)),
            }
        }
        groups.sort_by_key(|(_, _, took)| std::cmp::Reverse(*took));
        groups
    }
}

impl Entry {
    fn verdict(&self) -> Verdict {
        match self.tries.as_slice() {
            [] => Verdict::NotRun,
            [.., (false, _)] => Verdict::Failed,
            [(true, _)] if !self.skips.is_empty() => Verdict::Skipped,
            [(true, _)] => Verdict::Passed,
            [.., (true, _)] => Verdict::Flaky,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::test::suite::Kind;
    use crate::test::suite::tests::test;

    /// Creates a board with tests of these names, each with these attempts, and skips for these needs.
    pub(crate) fn board(rows: &[(&str, &[bool], &[&str])]) -> Board {
        let tests: Vec<Test> = rows
            .iter()
            .map(|(name, ..)| test(Kind::Integration, name, ""))
            .collect();
        let mut board = Board::new(Place::Here, &tests);
        for (number, (_, tries, needs)) in rows.iter().enumerate() {
            for ok in *tries {
                board.ended(number, *ok, Duration::from_secs(1));
            }
            for need in *needs {
                board.skipped(
                    number,
                    Skip {
                        need: (*need).to_owned(),
                        reason: format!("no {need}"),
                    },
                );
            }
        }
        board
    }

    #[test]
    fn tries_and_skips_make_a_verdict() {
        let rows: [(&str, &[bool], &[&str], Verdict); 7] = [
            ("lab::a::1", &[true], &[], Verdict::Passed),
            ("lab::a::2", &[false, true], &[], Verdict::Flaky),
            ("lab::a::3", &[false, false], &[], Verdict::Failed),
            ("lab::a::4", &[true], &["kube"], Verdict::Skipped),
            // A test that reports a skip and then fails has failed.
            ("lab::a::5", &[false], &["kube"], Verdict::Failed),
            ("lab::a::6", &[], &[], Verdict::NotRun),
            ("lab::a::7", &[false], &[], Verdict::Failed),
        ];
        let plain = rows.map(|(name, tries, needs, _)| (name, tries, needs));
        let board = board(&plain);
        for ((test, verdict, _), row) in board.verdicts().zip(rows) {
            assert_eq!((test.to_string().as_str(), verdict), (row.0, row.3));
        }
    }

    #[test]
    fn a_skipped_test_s_line_says_why() {
        let board = board(&[("kube::api::x", &[true], &["kube"])]);
        let line = board.line(0);
        assert!(line.contains("skipped"), "{line}");
        assert!(
            line.contains("kube::api::x, in this kernel (kube: no kube)"),
            "{line}"
        );
    }

    #[test]
    fn time_is_told_by_module_the_longest_first() {
        let board = board(&[
            ("lab::a::1", &[true], &[]),
            ("lab::b::1", &[true], &[]),
            ("lab::b::2", &[false, true], &[]),
        ]);
        let second = Duration::from_secs(1);
        assert_eq!(
            board.groups(),
            [
                ("lab::b".to_owned(), 2, 3 * second),
                ("lab::a".to_owned(), 1, second)
            ]
        );
    }
}
