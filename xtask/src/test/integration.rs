//! The integration tests: executables of their own, run in kernels that can carry them.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::demo::test_environment;
use crate::exec::{self, quote};
use crate::here;
use crate::vm::{self, Hardware, Kernel, Request};
use crate::workspace::Workspace;

/// A test executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Executable {
    pub(super) name: String,
    pub(super) path: String,
}

/// A kernel to run tests in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Here,
    Guest(Kernel),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("this kernel"),
            Self::Guest(kernel) => kernel.fmt(f),
        }
    }
}

/// How tests are run.
#[derive(Debug)]
pub(super) struct Runs<'a> {
    pub(super) filter: Option<&'a str>,
    pub(super) threads: u32,
    pub(super) timeout: Duration,
}

/// Gets what the tests need.
pub(super) fn setup(ws: &Workspace, kernels: &[Kernel]) -> Result<()> {
    crate::setup::for_tests(ws, kernels)
}

/// Builds the test executables and finds out where cargo put them.
pub(super) fn build(ws: &Workspace) -> Result<Vec<Executable>> {
    let mut cargo = ws.cargo("test");
    cargo.args([
        "--no-run",
        "--quiet",
        "--locked",
        "-p",
        "ebbtide-tests",
        "--test",
        "*",
    ]);
    let found = executables(&exec::read(
        cargo.arg("--message-format=json-render-diagnostics"),
    )?)?;
    if found.is_empty() {
        bail!("package ebbtide-tests has no integration tests");
    }
    Ok(found)
}

/// The test executables in cargo's messages, by name.
fn executables(messages: &str) -> Result<Vec<Executable>> {
    #[derive(Deserialize)]
    struct Message {
        target: Option<Target>,
        executable: Option<String>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message =
            serde_json::from_str(line).with_context(|| format!("cargo's message {line}"))?;
        if let (Some(target), Some(path)) = (message.target, message.executable)
            && target.kind.iter().any(|kind| kind == "test")
        {
            found.push(Executable {
                name: target.name,
                path,
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Runs<'_> {
    /// Runs `tests`, one after another, in one boot; whether all went well, and what they wrote.
    pub(super) fn run(
        &self,
        ws: &Workspace,
        place: Place,
        tests: &[Executable],
    ) -> Result<(bool, String)> {
        let script = ws
            .target
            .join("vm")
            .join(format!("tests-{}.sh", std::process::id()));
        fs::create_dir_all(ws.target.join("vm"))
            .and_then(|()| fs::write(&script, self.script(&ws.root.join("tests"), tests)))
            .with_context(|| format!("cannot write {}", script.display()))?;
        let ran = self.run_script(ws, place, script.to_string_lossy().into_owned());
        let _ = fs::remove_file(&script);
        ran
    }

    fn run_script(&self, ws: &Workspace, place: Place, script: String) -> Result<(bool, String)> {
        let env = test_environment(ws)?;
        match place {
            Place::Here => exec::tee(here::command("sh")?.arg(script).envs(env)),
            Place::Guest(kernel) => {
                let command = vec!["sh".to_owned(), script];
                let request = Request {
                    kernel,
                    timeout: self.timeout,
                    command,
                    env,
                    hardware: Hardware::default(),
                };
                let outcome = vm::start(ws, &request)?;
                Ok((outcome.status == 0, outcome.text))
            }
        }
    }

    /// A shell script that runs all `tests`, whatever becomes of one, and fails if one failed.
    fn script(&self, dir: &std::path::Path, tests: &[Executable]) -> String {
        let mut text = format!("cd {} || exit 1\n", quote(&dir.to_string_lossy()));
        text.push_str(include_str!("run.sh"));
        for test in tests {
            let (name, path) = (quote(&test.name), quote(&test.path));
            let filter = self
                .filter
                .map_or_else(String::new, |filter| format!(" {}", quote(filter)));
            text.push_str(&format!(
                "run {name} {path} --test-threads={}{filter}\n",
                self.threads
            ));
        }
        text.push_str("exit $failed\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    #[test]
    fn test_executables_are_told_from_libraries_and_binaries() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"x","kind":["lib"]},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"paths","kind":["test"]},"executable":"/t/paths-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"demo","kind":["bin"]},"executable":"/t/demo"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = executables(messages).expect("messages");
        let only = Executable {
            name: "paths".to_owned(),
            path: "/t/paths-1".to_owned(),
        };
        assert_eq!(found, [only]);
    }

    #[test]
    fn a_failure_does_not_keep_the_rest_from_running_and_is_not_forgotten() {
        let runs = Runs {
            filter: None,
            threads: 1,
            timeout: Duration::ZERO,
        };
        let test = |name: &str, path: PathBuf| Executable {
            name: name.to_owned(),
            path: path.to_string_lossy().into_owned(),
        };
        // neither cares for its arguments
        let tests = [
            test("bad", "/bin/false".into()),
            test("good", "/bin/true".into()),
        ];
        let script = runs.script(&std::env::temp_dir(), &tests);
        let ran = Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("sh runs");
        assert_eq!(ran.status.code(), Some(1));
        let text = String::from_utf8_lossy(&ran.stdout);
        assert!(text.contains("bad: FAILED"), "{text}");
        assert!(text.contains("good: ok"), "{text}");
    }
}
