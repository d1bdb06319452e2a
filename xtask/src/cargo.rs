//! Runs cargo. It prints a progress line, since a first build takes minutes, and cargo's output only on failure.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, Output};
use crate::ui;

/// The interval of progress lines in a log that is not a terminal.
const EVERY: Duration = Duration::from_secs(20);

/// Runs a cargo command. Its output is passed on, or replaced by its progress and shown on failure.
pub(crate) fn run(command: &mut Command, output: Output) -> Result<()> {
    match output {
        Output::Show => exec::run(command, output),
        Output::OnFailure => read(command).map(drop),
    }
}

/// Runs a cargo command, shows its progress, and returns what it wrote to stdout.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    // cargo's own progress line (its documentation, "term.progress"), also for a pipe.
    command
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "300")
        .env("CARGO_TERM_COLOR", "never")
        .env_remove("CARGO_TERM_QUIET");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", exec::line(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.map(|mut stdout| stdout.read_to_end(&mut text));
        read.transpose()
            .map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let said = stderr.map(follow).unwrap_or_default();
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for `{}`", exec::line(command)))?;
    let text = reader
        .join()
        .map_err(|_| anyhow::anyhow!("reading cargo's output failed"))?
        .with_context(|| format!("cannot read the output of `{}`", exec::line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})\n{said}", exec::line(command));
    }
    Ok(text)
}

/// Reads cargo's stderr, shows the progress in it, and returns the other lines.
fn follow(mut stderr: impl Read) -> String {
    let (mut rest, mut line) = (String::new(), Vec::new());
    let start = Instant::now();
    let mut shown = start;
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        for byte in &buffer[..count] {
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            match Progress::parse(&text) {
                Some(progress) if ui::live() || shown.elapsed() >= EVERY => {
                    shown = Instant::now();
                    ui::progress(progress.show(start.elapsed()));
                }
                Some(_) => {}
                None if says_something(&text) => {
                    rest.push_str(&text);
                    rest.push('\n');
                }
                None => {}
            }
        }
    }
    rest + &String::from_utf8_lossy(&line)
}

/// Whether a line of cargo's is more than a report of its work.
fn says_something(line: &str) -> bool {
    const WORKS: [&str; 8] = [
        "Compiling",
        "Checking",
        "Downloaded",
        "Downloading",
        "Updating",
        "Locking",
        "Finished",
        "Fresh",
    ];
    let first = line.split_whitespace().next().unwrap_or_default();
    !first.is_empty() && !WORKS.contains(&first)
}

/// The progress of a build: cargo's `    Building [==>   ] 12/307: syn, serde(build)`.
#[derive(Debug, PartialEq, Eq)]
struct Progress<'t> {
    done: u32,
    all: u32,
    now: &'t str,
}

impl<'t> Progress<'t> {
    fn parse(line: &'t str) -> Option<Self> {
        let (_, rest) = line.trim().strip_prefix("Building [")?.split_once("] ")?;
        let (count, now) = rest.split_once(':').unwrap_or((rest, ""));
        let (done, all) = count.split_once('/')?;
        Some(Self {
            done: done.parse().ok()?,
            all: all.parse().ok()?,
            now: now.trim(),
        })
    }

    fn show(&self, time: Duration) -> String {
        let Self { done, all, now } = self;
        // cargo names the crates first that have been compiling for the longest time.
        let now: Vec<&str> = now.split(", ").take(3).collect();
        format!(
            "{done} of {all} crates, {:.0} s: {}",
            time.as_secs_f64(),
            now.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_s_progress_is_told_from_what_else_it_says() {
        let progress = |done, all, now| Some(Progress { done, all, now });
        for (line, expected) in [
            (
                "    Building [=====>       ] 12/307: syn, serde(build)   ",
                progress(12, 307, "syn, serde(build)"),
            ),
            ("    Building [    ] 0/21", progress(0, 21, "")),
            ("   Compiling syn v3.0.9", None),
            ("error: Building [x] 1/2: y", None),
            ("    Building [=>] x/y: z", None),
            ("", None),
        ] {
            assert_eq!(Progress::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn what_a_person_is_shown_names_the_count_and_the_first_crates() {
        let progress = Progress {
            done: 12,
            all: 307,
            now: "a, b, c, d",
        };
        let shown = progress.show(Duration::from_secs(7));
        assert_eq!(shown, "12 of 307 crates, 7 s: a, b, c");
    }

    #[test]
    fn a_failure_shows_what_cargo_said_without_its_progress() {
        let script = "printf '   Compiling x v1\\n    Building [=>] 1/2: x\\rerror: no such thing\\n' >&2; exit 101";
        let error = read(Command::new("sh").args(["-c", script])).expect_err("status 101");
        let text = format!("{error:#}");
        assert!(text.contains("error: no such thing"), "{text}");
        assert!(
            !text.contains("Compiling x v1\n") && !text.contains("1/2: x\r"),
            "{text}"
        );
    }

    #[test]
    fn what_cargo_writes_to_stdout_is_returned() {
        let text = read(Command::new("sh").args(["-c", "echo out; echo noise >&2"]));
        assert_eq!(text.expect("status 0"), "out\n");
    }
}
