//! The process of a machine: its output, its time limit, its end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::OutDir;
use crate::exec;

/// The file with the kernel's output.
pub(super) const CONSOLE: &str = "console.log";
/// How many of its lines an error shows.
const TAIL: usize = 25;

/// A machine that was not started yet.
pub(super) struct Machine<'o> {
    /// The command; its stdout is the output of the guest's command.
    pub(super) command: Command,
    pub(super) out: &'o OutDir,
}

/// The guard, a shell between xtask and the machine. User-mode Linux makes itself a process group, with helpers that
/// may outlive it. The guard ends this group when the machine or xtask ends.
const GUARD: &str = r#""$@" & machine=$!
trap 'kill -KILL -$machine $machine 2>/dev/null' TERM INT HUP
wait $machine
kill -KILL -$machine 2>/dev/null"#;

/// Returns a command for `program` that ends when xtask ends, for whatever reason.
pub(super) fn bound_to_us(program: &Path) -> Command {
    // setpriv is part of util-linux, which is essential in Debian.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", "sh", "-c"]);
    command.arg(GUARD).arg("sh").arg(program);
    command
}

/// Starts the machine and reads its command's output. Returns the end of the output after the machine has ended.
pub(super) fn run(
    machine: Machine<'_>,
    timeout: Duration,
    read: impl FnOnce(&mut dyn Read) + Send,
) -> Result<String> {
    let Machine { mut command, out } = machine;
    let log = File::create(out.file("machine.log")).context("cannot make the machine's log")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start `{}`", exec::line(&command)))?;
    let stdout = child.stdout.take().context("the machine has no output")?;
    let mut stdout = Last::of(stdout);
    thread::scope(|scope| {
        scope.spawn(|| read(&mut stdout));
        wait(&mut child, out, timeout)
    })?;
    Ok(String::from_utf8_lossy(&stdout.last).into_owned())
}

/// A reader that keeps the end of what was read.
struct Last<R> {
    from: R,
    last: Vec<u8>,
}

impl<R> Last<R> {
    /// The number of bytes that are kept, enough for a kernel's last messages.
    const MOST: usize = 64 * 1024;

    fn of(from: R) -> Self {
        Self {
            from,
            last: Vec::new(),
        }
    }
}

impl<R: Read> Read for Last<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.last.extend_from_slice(&buffer[..count]);
        let surplus = self.last.len().saturating_sub(Self::MOST);
        self.last.drain(..surplus);
        Ok(count)
    }
}

/// Waits for the machine's end, and ends it after the time limit.
fn wait(child: &mut Child, out: &OutDir, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while child
        .try_wait()
        .context("cannot wait for the machine")?
        .is_none()
    {
        if Instant::now() > deadline {
            end(child)?;
            bail!(
                "the machine was still running after {} s and was ended\n{}",
                timeout.as_secs(),
                tail(out)
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Ends the machine through its guard, by process ID.
fn end(child: &mut Child) -> Result<()> {
    let pid = child.id().to_string();
    exec::succeeds(Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &pid]));
    let patience = Instant::now() + Duration::from_secs(3);
    while child.try_wait()?.is_none() {
        if Instant::now() > patience {
            child.kill().context("cannot end the machine")?;
            child.wait().context("cannot wait for the machine")?;
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Returns the last lines of the machine's and its kernel's output.
pub(super) fn tail(out: &OutDir) -> String {
    let mut text = String::new();
    for name in ["machine.log", CONSOLE] {
        let said = std::fs::read(out.file(name)).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        for line in last_lines(&said) {
            text.push_str("  | ");
            text.push_str(line);
            text.push('\n');
        }
    }
    if text.is_empty() {
        return "its console stayed empty".to_owned();
    }
    format!("its last words:\n{}", text.trim_end())
}

/// Returns the end of `text`, after the line with a panic's reason: a backtrace may follow that line.
fn last_lines(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let (before, end) = lines.split_at(lines.len().saturating_sub(TAIL));
    let panic = before.iter().rfind(|line| line.contains("Kernel panic"));
    panic.into_iter().chain(end).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_the_last_ones_without_empty_ones() {
        let text: String = (0..40).map(|n| format!("line {n}\n\n")).collect();
        let lines = last_lines(&text);
        assert_eq!(
            (lines.len(), lines[0], lines[TAIL - 1]),
            (TAIL, "line 15", "line 39")
        );
        assert_eq!(last_lines("one\n"), ["one"]);
    }

    #[test]
    fn of_long_output_the_end_is_kept() {
        let text = [b'a'; Last::<&[u8]>::MOST].into_iter().chain(*b"the end");
        let text: Vec<u8> = text.collect();
        let mut from = Last::of(text.as_slice());
        let mut all = Vec::new();
        from.read_to_end(&mut all).expect("memory can be read");
        assert_eq!(all, text);
        assert_eq!(from.last.len(), Last::<&[u8]>::MOST);
        assert!(from.last.ends_with(b"aathe end"));
    }

    #[test]
    fn a_panic_is_shown_however_long_its_backtrace() {
        let text = format!(
            "boot\nKernel panic - not syncing: x\n{}",
            "trace\n".repeat(40)
        );
        assert_eq!(last_lines(&text)[0], "Kernel panic - not syncing: x");
        assert_eq!(last_lines(&text).len(), TAIL + 1);
    }
}
