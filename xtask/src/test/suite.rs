//! The test executables that cargo builds, and the tests in them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::cargo;
use crate::exec;
use crate::workspace::Workspace;

/// The kind of tests in an executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tests beside the code, for any machine.
    Unit,
    /// Tests of the programs, in networks that they create.
    Integration,
}

/// A test executable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) kind: Kind,
    /// The target's name: `lab`, `native`, `kube`, or the crate's.
    pub(super) name: String,
    pub(super) executable: PathBuf,
    /// The directory in which cargo would run it: its package's.
    pub(super) directory: PathBuf,
}

/// A test function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) suite: Arc<Suite>,
    /// Its name in libtest: `rows::every_row_is_as_it_must_be`.
    pub(super) name: String,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.suite.name, self.name)
    }
}

impl Test {
    /// Returns suite and module: `lab::rows`. For a unit test it is the suite alone.
    pub(super) fn group(&self) -> String {
        match (self.suite.kind, self.name.split_once("::")) {
            (Kind::Integration, Some((module, _))) => format!("{}::{module}", self.suite.name),
            _ => self.suite.name.clone(),
        }
    }
}

/// Builds every test of the workspace, and returns those whose full name contains `filter`.
pub(super) fn build(ws: &Workspace, filter: Option<&str>) -> Result<Vec<Test>> {
    let mut build = ws.cargo("test");
    build.args(["--no-run", "--locked"]);
    build.arg("--message-format=json-render-diagnostics");
    let suites = suites(&cargo::read(&mut build)?)?;
    let mut all = Vec::new();
    for suite in suites {
        let suite = Arc::new(suite);
        let listed = exec::read(
            Command::new(&suite.executable)
                .args(["--list", "--format", "terse"])
                .current_dir(&suite.directory),
        )?;
        all.extend(names(&listed).map(|name| Test {
            suite: Arc::clone(&suite),
            name: name.to_owned(),
        }));
    }
    if !all.iter().any(|test| test.suite.kind == Kind::Integration) {
        bail!("cargo built no integration test");
    }
    all.retain(|test| filter.is_none_or(|filter| test.to_string().contains(filter)));
    Ok(all)
}

/// Returns the test functions in libtest's list.
fn names(listed: &str) -> impl Iterator<Item = &str> {
    listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
}

/// Returns the test executables in cargo's messages, by name.
fn suites(messages: &str) -> Result<Vec<Suite>> {
    #[derive(Deserialize)]
    struct Message {
        manifest_path: Option<PathBuf>,
        target: Option<Target>,
        profile: Option<Profile>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message =
            serde_json::from_str(line).with_context(|| format!("cargo's message {line}"))?;
        if let (Some(target), Some(executable)) = (message.target, message.executable)
            && message.profile.is_some_and(|profile| profile.test)
        {
            let kind = match target.kind.iter().any(|kind| kind == "test") {
                true => Kind::Integration,
                false => Kind::Unit,
            };
            let manifest = message.manifest_path.unwrap_or_default();
            found.push(Suite {
                kind,
                name: target.name,
                executable,
                directory: manifest.parent().unwrap_or(Path::new(".")).to_owned(),
            });
        }
    }
    found.sort_by(|a, b| (&a.name, &a.executable).cmp(&(&b.name, &b.executable)));
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Creates a test of this name, `SUITE::MODULE::FUNCTION`, in an executable at `path`.
    pub(crate) fn test(kind: Kind, full: &str, path: &str) -> Test {
        let (suite, name) = full.split_once("::").expect("SUITE::NAME");
        Test {
            suite: Arc::new(Suite {
                kind,
                name: suite.to_owned(),
                executable: path.into(),
                directory: std::env::temp_dir(),
            }),
            name: name.to_owned(),
        }
    }

    #[test]
    fn test_executables_are_told_from_libraries_and_binaries() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/w/x/Cargo.toml","target":{"name":"x","kind":["lib"]},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/x/Cargo.toml","target":{"name":"x","kind":["lib"]},"profile":{"test":true},"executable":"/t/x-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"name":"lab","kind":["test"]},"profile":{"test":true},"executable":"/t/lab-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/x/Cargo.toml","target":{"name":"demo","kind":["bin"]},"profile":{"test":false},"executable":"/t/demo"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = suites(messages).expect("messages");
        let seen: Vec<_> = found
            .iter()
            .map(|suite| {
                (
                    suite.kind,
                    suite.name.as_str(),
                    suite.executable.to_string_lossy(),
                    suite.directory.to_string_lossy(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (
                    Kind::Integration,
                    "lab",
                    "/t/lab-1".into(),
                    "/w/tests".into()
                ),
                (Kind::Unit, "x", "/t/x-1".into(), "/w/x".into()),
            ]
        );
    }

    #[test]
    fn libtest_s_list_has_tests_and_other_things() {
        let listed = "rows::all: test\nrows::fast: benchmark\n\n1 test, 1 benchmark\n";
        assert_eq!(names(listed).collect::<Vec<_>>(), ["rows::all"]);
    }

    #[test]
    fn tests_are_grouped_by_the_module_that_a_person_edits() {
        for (kind, full, group) in [
            (Kind::Integration, "lab::rows::all::v4", "lab::rows"),
            (Kind::Unit, "agent::pool::tests::one", "agent"),
            (Kind::Integration, "lab::alone", "lab"),
        ] {
            assert_eq!(test(kind, full, "").group(), group);
        }
    }
}
