//! Parses the output of the script that runs tests (`run.sh`), line by line.

use std::time::Duration;

/// A line of the output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told<'l> {
    /// The machine is up, and the first test follows.
    Ready,
    /// The test with this number begins.
    Start(usize),
    /// The test with this number was skipped: the need, and the reason.
    Skip(usize, &'l str, &'l str),
    /// The test with this number ended, with this status and after this time.
    End(usize, i32, Duration),
    /// Any other line, usually output of a failed test.
    Text(&'l str),
}

impl<'l> Told<'l> {
    /// Parses a line.
    pub(super) fn parse(line: &'l str) -> Self {
        let line = line.trim_end_matches('\r');
        line.strip_prefix("@@ ")
            .and_then(Self::mark)
            .unwrap_or(Self::Text(line))
    }

    fn mark(line: &'l str) -> Option<Self> {
        if line == "ready" {
            return Some(Self::Ready);
        }
        let (word, rest) = line.split_once(' ')?;
        match word {
            "start" => Some(Self::Start(rest.parse().ok()?)),
            "skip" => {
                let (test, skip) = rest.split_once(' ')?;
                let (need, reason) = skip.split_once('\t')?;
                Some(Self::Skip(test.parse().ok()?, need, reason))
            }
            "end" => {
                let mut words = rest.split(' ');
                let (test, status, took) = (words.next()?, words.next()?, words.next()?);
                let took = Duration::from_millis(took.parse().ok()?);
                Some(Self::End(test.parse().ok()?, status.parse().ok()?, took))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        for (line, expected) in [
            ("@@ ready\r", Told::Ready),
            ("@@ start 7", Told::Start(7)),
            (
                "@@ skip 7 kube\tetcd is missing",
                Told::Skip(7, "kube", "etcd is missing"),
            ),
            (
                "@@ end 7 101 1234",
                Told::End(7, 101, Duration::from_millis(1234)),
            ),
            // The output of a test begins with a bar.
            ("    | @@ end 7 0 1", Told::Text("    | @@ end 7 0 1")),
            ("@@ end 7 zero 1", Told::Text("@@ end 7 zero 1")),
            ("@@ what 7", Told::Text("@@ what 7")),
            ("", Told::Text("")),
        ] {
            assert_eq!(Told::parse(line), expected, "{line:?}");
        }
    }
}
