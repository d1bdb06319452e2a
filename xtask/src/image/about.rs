//! What an image says about itself: the annotations that the OCI image specification defines, which are labels as well.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exec;
use crate::workspace::Workspace;

/// The variable with the time that a build is to note, in seconds since 1970 (reproducible-builds.org). Without it there
/// is none: the present time would make each image another one.
const TIME: &str = "SOURCE_DATE_EPOCH";

/// Returns the annotations, by their names without `org.opencontainers.image.`, and the time.
pub(super) fn annotations(ws: &Workspace) -> Result<(BTreeMap<String, String>, Option<String>)> {
    let created = match std::env::var(TIME) {
        Ok(seconds) => {
            let seconds = seconds.parse();
            Some(rfc3339(
                seconds.with_context(|| format!("{TIME} is not a number"))?,
            ))
        }
        Err(_) => None,
    };
    Ok((of(revision(ws), created.clone()), created))
}

fn of(revision: Option<String>, created: Option<String>) -> BTreeMap<String, String> {
    [
        ("title", Some("ebbtide".to_owned())),
        (
            "description",
            Some("CNI plugin and node agent: pods on the node's own NICs".to_owned()),
        ),
        ("version", Some(env!("CARGO_PKG_VERSION").to_owned())),
        ("licenses", Some("Apache-2.0".to_owned())),
        ("source", Some(env!("CARGO_PKG_REPOSITORY").to_owned())),
        ("revision", revision),
        ("created", created),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((format!("org.opencontainers.image.{name}"), value?)))
    .collect()
}

/// Returns the commit, with `-dirty` if files differ from it; nothing outside of a repository.
fn revision(ws: &Workspace) -> Option<String> {
    let mut git = Command::new("git");
    // Without tags: the version is told apart.
    git.args([
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=40",
        "--dirty",
    ])
    .current_dir(&ws.root);
    Some(exec::read(&mut git).ok()?.trim().to_owned())
}

/// Returns a time in UTC (RFC 3339) by its seconds since 1970.
fn rfc3339(seconds: u64) -> String {
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_740_787_200, "2025-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let names = |created: Option<&str>| {
            let all = of(None, created.map(str::to_owned));
            all.into_keys().collect::<Vec<_>>()
        };
        let has = |created| names(created).contains(&"org.opencontainers.image.created".to_owned());
        assert!(has(Some("1970-01-01T00:00:00Z")));
        assert!(!has(None));
        assert!(!names(None).contains(&"org.opencontainers.image.revision".to_owned()));
    }
}
