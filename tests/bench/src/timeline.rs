//! Timelines: the steps of one operation as the agent logged them.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::figures::Series;

/// The width of the longest line, in characters.
const WIDTH: f64 = 48.0;

/// The steps of one kind of operation, each the median of many.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    /// The operation.
    pub title: String,
    /// The steps, by their beginning.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its beginning, in microseconds after the operation's.
    pub start: f64,
    /// Its duration in microseconds.
    pub took: f64,
}

impl Timeline {
    /// Reads the agent's log: lines with `steps="NAME START+TOOK, ..."`, in microseconds, that contain `of`. Returns
    /// `None` if there are none.
    #[must_use]
    pub fn from_log(title: &str, log: &str, of: &str) -> Option<Self> {
        let mut all: BTreeMap<&str, (Series, Series)> = BTreeMap::new();
        for line in log.lines().filter(|line| line.contains(of)) {
            let Some((_, rest)) = line.split_once("steps=\"") else {
                continue;
            };
            let steps = rest.split('"').next().unwrap_or_default();
            for step in steps.split(", ") {
                let Some((name, times)) = step.rsplit_once(' ') else {
                    continue;
                };
                let Some((start, took)) = times.split_once('+') else {
                    continue;
                };
                if let (Ok(start), Ok(took)) = (start.parse(), took.parse()) {
                    let new = || (Series::new(name), Series::new(name));
                    let (starts, tooks) = all.entry(name).or_insert_with(new);
                    starts.values.push(start);
                    tooks.values.push(took);
                }
            }
        }
        let mut steps: Vec<Step> = all
            .into_iter()
            .map(|(name, (start, took))| Step {
                name: name.to_owned(),
                start: start.summary().median,
                took: took.summary().median,
            })
            .collect();
        steps.sort_by(|a, b| a.start.total_cmp(&b.start).then(b.took.total_cmp(&a.took)));
        (!steps.is_empty()).then(|| Self {
            title: title.to_owned(),
            steps,
        })
    }

    /// Adds the time that the agent does not see, of an operation that took `whole` microseconds.
    pub fn outside(&mut self, name: &str, whole: f64) {
        let inside = self.steps.iter().map(|step| step.start + step.took);
        let inside = inside.fold(0.0, f64::max);
        if whole > inside {
            self.steps.push(Step {
                name: name.to_owned(),
                start: inside,
                took: whole - inside,
            });
        }
    }

    /// Draws a bar for each step at its place in time.
    #[must_use]
    pub fn text(&self) -> String {
        let end = self
            .steps
            .iter()
            .map(|step| step.start + step.took)
            .fold(1.0, f64::max);
        let column = |time: f64| (time / end * WIDTH).round() as usize;
        let names = self.steps.iter().map(|step| step.name.chars().count());
        let width = names.max().unwrap_or(0);
        let mut text = String::new();
        for Step { name, start, took } in &self.steps {
            let (from, to) = (column(*start), column(start + took));
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "{name:<width$} {took:>7.0} us  {}{}",
                " ".repeat(from),
                "█".repeat((to - from).max(1)),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_medians_of_the_lines_that_are_meant() {
        let log = "DEBUG cni{command=ADD}: steps=\"plan 0+10, make links 10+100\"\n\
                   DEBUG cni{command=DEL}: steps=\"remove 0+5000\"\n\
                   DEBUG cni{command=ADD}: steps=\"plan 2+30, make links 32+300\"\n\
                   DEBUG cni{command=ADD}: steps=\"plan 1+20, make links 21+200\"\n\
                   INFO unrelated\n";
        let found = Timeline::from_log("ADD", log, "command=ADD").expect("three lines");
        let step = |name: &str, start, took| Step {
            name: name.into(),
            start,
            took,
        };
        assert_eq!(
            found.steps,
            [step("plan", 1.0, 20.0), step("make links", 21.0, 200.0)]
        );
        let text = found.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(Timeline::from_log("x", log, "command=CHECK").is_none());
    }
}
