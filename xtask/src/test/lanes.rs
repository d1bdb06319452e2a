//! Runs tests in this kernel and in guests, in as many places at once as the machine can carry.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::board::{Board, Skip};
use super::suite::{Kind, Test};
use super::told::Told;
use super::why::why;
use crate::demo::test_environment;
use crate::exec::{self, quote};
use crate::here;
use crate::ui::{self, Colour};
use crate::vm::{self, Hardware, Kernel, Request};
use crate::workspace::Workspace;

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

/// The parameters of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ways {
    /// The maximum number of attempts at a test.
    pub(super) tries: u32,
    /// The number of processes that load each place.
    pub(super) load: u32,
    /// The time limit of a guest.
    pub(super) timeout: Duration,
}

/// Tests for one place, and the lanes that share them.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) place: Place,
    pub(super) tests: Vec<Test>,
    /// The number of guests (or scripts in this kernel) that share them.
    pub(super) lanes: usize,
}

/// Returns the time limit of a test in seconds. The end-to-end tests start whole clusters, and the chain from EC2 to pods
/// waits for what the cloud controller waits for.
fn limit(test: &Test) -> u32 {
    match test.group().as_str() {
        "kube::e2e" => 1500,
        "lab::cloud_chain" => 1200,
        _ => 400,
    }
}

/// A batch that is running.
struct Work<'b> {
    batch: &'b Batch,
    board: Mutex<Board>,
    script: Scratch,
    queue: Scratch,
}

/// Runs all `batches`, `at_once` lanes at a time; returns a board for each.
///
/// # Errors
/// If nothing could be started at all. What fails in one place is on its board.
pub(super) fn run(
    ws: &Workspace,
    batches: &[Batch],
    ways: Ways,
    at_once: usize,
) -> Result<Vec<Board>> {
    let mut works = Vec::new();
    for (number, batch) in batches.iter().enumerate() {
        let queue = Scratch::at(ws, &format!("queue-{}-{number}", std::process::id()))?;
        fs::create_dir_all(&queue.0)
            .with_context(|| format!("cannot make {}", queue.0.display()))?;
        let script = Scratch::at(ws, &format!("tests-{}-{number}.sh", std::process::id()))?;
        fs::write(&script.0, text(batch, ways, &queue.0))
            .with_context(|| format!("cannot write {}", script.0.display()))?;
        works.push(Work {
            batch,
            board: Mutex::new(Board::new(batch.place, &batch.tests)),
            script,
            queue,
        });
    }
    // The first lane of each batch starts first. Second lanes find work only in large batches.
    let most = batches.iter().map(|batch| batch.lanes).max().unwrap_or(0);
    let lanes: Vec<&Work<'_>> = (0..most)
        .flat_map(|lane| works.iter().filter(move |work| lane < work.batch.lanes))
        .collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..at_once.clamp(1, lanes.len().max(1)) {
            scope.spawn(|| {
                while let Some(work) = lanes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work.lane(ws, ways);
                }
            });
        }
    });
    Ok(works
        .into_iter()
        .map(|work| {
            work.board
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        })
        .collect())
}

impl Work<'_> {
    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs tests until none is left. If a guest dies, its current test has failed, and another guest continues with
    /// the rest.
    fn lane(&self, ws: &Workspace, ways: Ways) {
        let claimed = || fs::read_dir(&self.queue.0).map_or(0, Iterator::count);
        while claimed() < self.batch.tests.len() {
            let before = claimed();
            let mut lane = Lane {
                work: self,
                started: Instant::now(),
                current: None,
                text: Vec::new(),
            };
            let Err(error) = self.machine(ws, ways, &mut lane) else {
                return;
            };
            let current = lane.current.take();
            let mut board = self.board();
            if let Some(test) = current {
                board.ended(test, false, lane.started.elapsed());
                ui::line(format_args!(
                    "{}\n{}",
                    lane.text.join("\n"),
                    board.line(test)
                ));
            }
            ui::error(&error.context(format!("{} died", self.batch.place)));
            if claimed() == before {
                board.trouble(format!("{} did not run its tests", self.batch.place));
                return;
            }
        }
    }

    /// Runs the script once.
    fn machine(&self, ws: &Workspace, ways: Ways, lane: &mut Lane<'_, '_>) -> Result<()> {
        let script = self.script.0.to_string_lossy().into_owned();
        let env = test_environment(ws, &ws.unoptimised())?;
        let Place::Guest(kernel) = self.batch.place else {
            let mut sh = here::bound_to_us("sh")?;
            let mut child = sh
                .arg(script)
                .envs(env)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start `{}`", exec::line(&sh)))?;
            let stdout = child.stdout.take().context("a piped stdout is there")?;
            exec::each_line(stdout, |line| lane.told(line));
            let status = child.wait().context("cannot wait for the tests' shell")?;
            if !status.success() {
                bail!("`{}` ended with {status}", exec::line(&sh));
            }
            return Ok(());
        };
        let request = Request {
            kernel,
            timeout: ways.timeout,
            command: vec!["sh".to_owned(), script],
            env,
            hardware: Hardware::default(),
        };
        let outcome = vm::start_and(ws, &request, |line| lane.told(line))?;
        if outcome.status != 0 {
            bail!("the tests' shell ended with status {}", outcome.status);
        }
        Ok(())
    }
}

/// A running script, and its last report.
struct Lane<'w, 'b> {
    work: &'w Work<'b>,
    started: Instant,
    current: Option<usize>,
    text: Vec<String>,
}

impl Lane<'_, '_> {
    /// Handles a line of the script's output.
    fn told(&mut self, line: &str) {
        let known = |test: &usize| *test < self.work.batch.tests.len();
        match Told::parse(line) {
            Told::Ready => {
                let took = self.started.elapsed();
                self.work.board().booted(took);
            }
            Told::Start(test) if known(&test) => {
                self.started = Instant::now();
                self.current = Some(test);
                self.text.clear();
                // A guest under QEMU creates this directory only in its own memory, and the next guest must see it,
                // too.
                let _ = fs::create_dir(self.work.queue.0.join(test.to_string()));
            }
            Told::Skip(test, need, reason) if known(&test) => {
                self.work.board().skipped(
                    test,
                    Skip {
                        need: need.to_owned(),
                        reason: reason.to_owned(),
                    },
                );
            }
            Told::End(test, status, took) if known(&test) => {
                self.current = None;
                let mut board = self.work.board();
                board.ended(test, status == 0, took);
                if status != 0
                    && let Some(reason) = why(&self.text)
                {
                    board.failed_for(test, reason);
                }
                let quiet = self.work.batch.tests[test].suite.kind == Kind::Unit
                    && board.is_plain_pass(test);
                if !quiet {
                    self.text.push(board.line(test));
                    ui::line(self.text.join("\n"));
                }
                self.text.clear();
            }
            Told::Text(text) => self.text.push(text.to_owned()),
            Told::Start(_) | Told::Skip(..) | Told::End(..) => {
                ui::note(ui::paint(
                    Colour::Red,
                    format_args!("of no known test: {line}"),
                ));
            }
        }
    }
}

/// Returns the script of a batch.
fn text(batch: &Batch, ways: Ways, queue: &Path) -> String {
    let word = |path: &Path| quote(&path.to_string_lossy());
    let queue = match batch.place {
        // Guests of user-mode Linux share the directory; hostfs creates directories at once and exclusively.
        Place::Guest(Kernel::Uml) => format!(
            "queue=/run/xtask/queue\nmkdir -p $queue\nmount -t hostfs -o {} none $queue || exit 1\n",
            word(queue)
        ),
        // Under QEMU it has the contents that it had at the boot.
        Place::Guest(_) | Place::Here => format!("queue={}\n", word(queue)),
    };
    let mut text = queue + include_str!("run.sh");
    if ways.load > 0 {
        text.push_str(&format!("busy {}\n", ways.load));
    }
    for (number, test) in batch.tests.iter().enumerate() {
        text.push_str(&format!(
            "run {number} {} {} {} {} {}\n",
            limit(test),
            ways.tries,
            word(&test.suite.directory),
            word(&test.suite.executable),
            quote(&test.name)
        ));
    }
    text.push_str("exit 0\n");
    text
}

/// A file or directory below `target/vm` that is removed when this is dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn at(ws: &Workspace, name: &str) -> Result<Self> {
        let all = ws.target.join("vm");
        fs::create_dir_all(&all).with_context(|| format!("cannot make {}", all.display()))?;
        Ok(Self(all.join(name)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0).or_else(|_| fs::remove_file(&self.0));
    }
}

/// Returns how many lanes this machine can carry: one for each processor, with 4 GiB of memory each.
pub(super) fn at_once() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = info.lines().find_map(|line| {
        let kib = line
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix(" kB")?;
        kib.parse::<usize>().ok()
    });
    processors.min(free.map_or(1, |kib| kib >> 22)).max(1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::super::board::Verdict;
    use super::super::suite::tests::test;
    use super::*;

    /// Creates a directory with executables that stand for tests; each runs a shell script.
    fn executables(name: &str, scripts: &[(&str, &str)]) -> (Scratch, Vec<Test>) {
        let dir = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let executable = |(name, script): &(&str, &str)| {
            let path = dir.join(name);
            fs::write(
                &path,
                format!("#!/bin/sh\ncd {}\n{script}\n", dir.display()),
            )
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .expect("an executable");
            test(
                Kind::Integration,
                &format!("lab::x::{name}"),
                &path.to_string_lossy(),
            )
        };
        let tests = scripts.iter().map(executable).collect();
        (Scratch(dir), tests)
    }

    fn batch(tests: Vec<Test>) -> Batch {
        Batch {
            place: Place::Here,
            tests,
            lanes: 1,
        }
    }

    fn ways(tries: u32) -> Ways {
        Ways {
            tries,
            load: 0,
            timeout: Duration::ZERO,
        }
    }

    /// Returns the board after a script with this output.
    fn told(dir: &Scratch, batch: &Batch, output: &str) -> Vec<(String, Verdict)> {
        let work = work(dir, batch);
        tell(&work, output);
        let board = work.board();
        board
            .verdicts()
            .map(|(test, verdict, _)| (test.name.clone(), verdict))
            .collect()
    }

    fn work<'b>(dir: &Scratch, batch: &'b Batch) -> Work<'b> {
        Work {
            batch,
            board: Mutex::new(Board::new(batch.place, &batch.tests)),
            script: Scratch(dir.0.join("script")),
            queue: Scratch(dir.0.join("queue")),
        }
    }

    fn tell(work: &Work<'_>, output: &str) {
        let mut lane = Lane {
            work,
            started: Instant::now(),
            current: None,
            text: Vec::new(),
        };
        output.lines().for_each(|line| lane.told(line));
    }

    fn sh(script: &str) -> String {
        let ran = Command::new("sh").args(["-c", script]).output();
        let ran = ran.expect("sh runs");
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    #[test]
    fn each_test_has_its_own_end_whatever_becomes_of_the_others() {
        let (dir, tests) = executables(
            "ends",
            &[
                ("bad", "echo why >&2; exit 3"),
                ("good", "echo '@@ end 0 0 1'"),
                ("flaky", "mkdir once 2>/dev/null && exit 1; exit 0"),
                ("skipped", r#"printf 'tcx\tLinux 5\n' >>"$EBBTIDE_SKIPS""#),
            ],
        );
        let batch = batch(tests);
        let output = sh(&text(&batch, ways(2), &dir.0.join("queue")));
        assert!(output.contains("    | why\n"), "{output}");
        let expected = [
            ("x::bad", Verdict::Failed),
            ("x::good", Verdict::Passed),
            ("x::flaky", Verdict::Flaky),
            ("x::skipped", Verdict::Skipped),
        ]
        .map(|(name, verdict)| (name.to_owned(), verdict));
        assert_eq!(told(&dir, &batch, &output), expected, "{output}");
    }

    #[test]
    fn what_one_guest_has_begun_the_next_one_leaves_alone() {
        let (dir, tests) = executables("begun", &[("a", "exit 0"), ("b", "exit 0")]);
        let batch = batch(tests);
        // Like a guest that died at once: it created nothing that we can see.
        let work = work(&dir, &batch);
        fs::create_dir_all(&work.queue.0).expect("a directory");
        tell(&work, "@@ ready\n@@ start 0");
        let output = sh(&text(&batch, ways(1), &work.queue.0));
        assert!(!output.contains("@@ start 0"), "{output}");
        assert!(output.contains("@@ end 1 0 "), "{output}");
    }

    #[test]
    fn two_scripts_share_the_tests_and_none_runs_twice() {
        let scripts: Vec<(String, &str)> = (0..8)
            .map(|number| (format!("t{number}"), "exit 0"))
            .collect();
        let scripts: Vec<(&str, &str)> = scripts
            .iter()
            .map(|(name, script)| (name.as_str(), *script))
            .collect();
        let (dir, tests) = executables("share", &scripts);
        let batch = batch(tests);
        let script = text(&batch, ways(1), &dir.0.join("queue"));
        let outputs: Vec<String> = thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| sh(&script)));
            both.map(|one| one.join().expect("sh ran")).to_vec()
        });
        let mut ended: Vec<usize> = outputs
            .iter()
            .flat_map(|output| output.lines())
            .filter_map(|line| match Told::parse(line) {
                Told::End(test, 0, _) => Some(test),
                _ => None,
            })
            .collect();
        ended.sort_unstable();
        assert_eq!(ended, (0..8).collect::<Vec<_>>(), "{outputs:?}");
    }

    #[test]
    fn a_script_that_is_ended_ends_its_test_and_its_load() {
        let (dir, tests) = executables("signal", &[("slow", "echo $$ >pid; exec sleep 600")]);
        let mut ways = ways(1);
        ways.load = 1;
        let script = text(&batch(tests), ways, &dir.0.join("queue"));
        let mut running = Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::null())
            .spawn()
            .expect("sh runs");
        let patience = Instant::now() + Duration::from_secs(20);
        let pid = loop {
            let text = fs::read_to_string(dir.0.join("pid")).unwrap_or_default();
            if text.ends_with('\n') {
                break text.trim().to_owned();
            }
            assert!(Instant::now() < patience, "the test never began");
            thread::sleep(Duration::from_millis(10));
        };
        let signal = running.id().to_string();
        assert!(exec::succeeds(Command::new("kill").arg(&signal)));
        let status = running.wait().expect("it ends");
        assert_eq!(status.code(), Some(143), "{status}");
        // It has waited for them, so they are gone, not merely ending.
        assert!(!Path::new("/proc").join(&pid).exists(), "{pid} goes on");
    }
}
