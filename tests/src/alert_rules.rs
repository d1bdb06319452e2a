//! The shipped alerts, as text: read for what they say, and made quick for tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// How many times quicker [`quickened`] rules are: a minute of theirs is a second.
pub const QUICKER: u64 = 60;

/// Returns the path of a file in the repository.
#[must_use]
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Returns the shipped rules, as they are.
///
/// # Errors
/// If the file cannot be read.
pub fn shipped() -> Result<String> {
    let path = in_repository("deploy/helm/ebbtide/files/alerts.yaml");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Returns the names of the alerts, in their order.
#[must_use]
pub fn names(rules: &str) -> Vec<&str> {
    values(rules, "- alert: ").collect()
}

/// Returns the values of a key, one a line as the file has them.
pub fn values<'a>(rules: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    rules
        .lines()
        .filter_map(move |line| line.trim_start().strip_prefix(key))
        .map(|value| value.trim_matches('\''))
}

/// Returns the rules with each time of theirs [`QUICKER`], and what was changed, a line each. A time is that of a `for:`,
/// of a range in brackets, and what a metric in seconds is compared with. All else is as it was: expressions, labels and
/// texts.
///
/// # Errors
/// If a time is no whole number of seconds then.
///
/// # Examples
///
/// ```
/// use ebbtide_tests::alert_rules::quickened;
///
/// let (quick, changes) = quickened("expr: increase(a[10m]) > 5\nfor: 5m\n")?;
/// assert_eq!(quick, "expr: increase(a[10s]) > 5\nfor: 5s\n");
/// assert_eq!(changes, ["[10m] -> [10s]", "for: 5m -> for: 5s"]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn quickened(rules: &str) -> Result<(String, Vec<String>)> {
    let (mut quick, mut changes) = (String::new(), Vec::new());
    for line in rules.lines() {
        let mut line = line.to_owned();
        for (before, after) in [("for: ", ""), ("[", "]"), ("_seconds > ", "")] {
            line = each_time(&line, before, after, &mut changes)
                .with_context(|| format!("the line {line:?}"))?;
        }
        quick += &line;
        quick.push('\n');
    }
    Ok((quick, changes))
}

/// Makes each time between these two quicker; what is between them and no time stays.
fn each_time(line: &str, before: &str, after: &str, changes: &mut Vec<String>) -> Result<String> {
    let mut done = String::new();
    let mut rest = line;
    while let Some((head, tail)) = rest.split_once(before) {
        done += head;
        done += before;
        rest = tail;
        let end = tail
            .find(|letter: char| !letter.is_ascii_alphanumeric())
            .unwrap_or(tail.len());
        let (time, tail) = tail.split_at(end);
        let Some(seconds) = seconds(time).filter(|_| tail.starts_with(after)) else {
            continue;
        };
        ensure!(
            seconds % QUICKER == 0 && seconds > 0,
            "{time} is no whole number of minutes"
        );
        // What is compared with a metric has no unit.
        let unit = if time.ends_with(char::is_alphabetic) {
            "s"
        } else {
            ""
        };
        let quick = format!("{}{unit}", seconds / QUICKER);
        changes.push(format!("{before}{time}{after} -> {before}{quick}{after}"));
        done += &quick;
        rest = tail;
    }
    Ok(done + rest)
}

/// Reads a number of minutes, hours or seconds.
fn seconds(time: &str) -> Option<u64> {
    let unit = match time.chars().last()? {
        'h' => 3600,
        'm' => 60,
        _ => 1,
    };
    let number = time.trim_end_matches(['h', 'm', 's']);
    number.parse::<u64>().ok().map(|number| number * unit)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_times_are_changed() {
        let rules = "\
            expr: sum(increase(a{b=\"[5m]\"}[10m])) > 3\n\
            for: 30m\n\
            expr: a_oldest_seconds > 600\n\
            labels: {[m], for: them}\n";
        let (quick, changes) = quickened(rules).expect("whole seconds");
        let expected = rules
            .replace("[5m]", "[5s]")
            .replace("[10m]", "[10s]")
            .replace("30m", "30s")
            .replace("600", "10");
        assert_eq!(quick, expected);
        assert_eq!(changes.len(), 4, "{changes:?}");
        assert!(quickened("for: 90s\n").is_err());
    }

    /// Returns a heading's name in links, as GitHub makes it.
    fn anchor(heading: &str) -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            letter => (letter.is_alphanumeric() || "-_".contains(letter)).then_some(letter),
        });
        kept.collect()
    }

    #[test]
    fn each_alert_names_a_section_that_there_is() {
        let rules = shipped().expect("the rules");
        let links: Vec<&str> = values(&rules, "runbook_url: ").collect();
        assert_eq!(links.len(), names(&rules).len());
        for link in links {
            let (start, rest) = link.split_at(link.find("docs/").expect("a page"));
            assert_eq!(start, concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/"));
            let (page, section) = rest.split_once('#').expect("a section");
            let text = fs::read_to_string(in_repository(page)).expect(page);
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            assert!(headings.any(|line| anchor(line) == section), "{link}");
        }
    }

    #[test]
    fn the_page_has_each_alert_once_and_no_other() {
        let rules = shipped().expect("the rules");
        let page = fs::read_to_string(in_repository("docs/metrics.md")).expect("the page");
        let sections: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("### Ebbtide"))
            .collect();
        let expected: Vec<&str> = names(&rules)
            .into_iter()
            .filter_map(|name| name.strip_prefix("Ebbtide"))
            .collect();
        assert_eq!(sections, expected);
        let unique: BTreeSet<&&str> = expected.iter().collect();
        assert_eq!(unique.len(), expected.len());
    }
}
