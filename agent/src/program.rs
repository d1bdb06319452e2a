//! Runs another program to its end, within a time limit.

use std::{
    io::{self, Read, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// The interval at which it is checked whether the program has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long its outputs may stay open after it has ended: then a process that it left behind holds them.
const GRACE: Duration = Duration::from_secs(1);

/// Runs `command` with `input` on its standard input, and returns what it printed. If it takes longer than `patience`,
/// or prints more than `most` bytes to one of its outputs, it is killed with the processes that it started. Blocks.
///
/// # Errors
/// If it cannot be started, or had to be killed.
pub fn output(
    command: &mut Command,
    input: &[u8],
    timeout: Duration,
    most: u64,
) -> io::Result<Output> {
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut running = Running { child, ended: None };
    let deadline = Instant::now() + timeout;
    if let Some(mut stdin) = running.child.stdin.take() {
        let input = input.to_owned();
        // A program that does not read to the end may answer all the same.
        thread::spawn(move || stdin.write_all(&input));
    }
    let stdout = read(running.child.stdout.take(), most);
    let stderr = read(running.child.stderr.take(), most);
    let status = running.wait(deadline, timeout)?;
    let closed = Instant::now() + GRACE;
    Ok(Output {
        status,
        stdout: received(&stdout, closed)?,
        stderr: received(&stderr, closed)?,
    })
}

/// A running program. When this is dropped, its process group is killed and it is reaped.
struct Running {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Running {
    fn wait(&mut self, deadline: Instant, timeout: Duration) -> io::Result<ExitStatus> {
        loop {
            // It stays a zombie, so that its process ID, which is its group's, is not reused until the group is
            // killed.
            if has_ended(&self.child)? {
                let status = self.end()?;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("it had not ended after {} s", timeout.as_secs()),
                ));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Kills what is left of its group, and reaps it.
    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        // The group may be empty.
        let _ = killpg(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGKILL,
        );
        let status = self.child.wait()?;
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _reaped = self.end();
    }
}

fn has_ended(child: &Child) -> io::Result<bool> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    let found = waitid(Id::Pid(Pid::from_raw(child.id().cast_signed())), flags)?;
    Ok(found != WaitStatus::StillAlive)
}

/// Reads a pipe to its end on a thread of its own, at most `most` bytes.
fn read(pipe: Option<impl Read + Send + 'static>, most: u64) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = match pipe {
            Some(pipe) => pipe.take(most + 1).read_to_end(&mut bytes).map(drop),
            None => Ok(()),
        };
        let read = read.and_then(|()| match bytes.len() as u64 > most {
            true => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it printed more than {most} bytes"),
            )),
            false => Ok(bytes),
        });
        // The receiver may have stopped waiting.
        let _ = sender.send(read);
    });
    receiver
}

fn received(bytes: &Receiver<io::Result<Vec<u8>>>, until: Instant) -> io::Result<Vec<u8>> {
    let left = until.saturating_duration_since(Instant::now());
    bytes.recv_timeout(left).unwrap_or_else(|e| {
        Err(match e {
            RecvTimeoutError::Timeout => io::Error::new(
                io::ErrorKind::TimedOut,
                "a process that it left behind keeps its output open",
            ),
            RecvTimeoutError::Disconnected => io::Error::other("its output was not read"),
        })
    })
}

/// Writes a shell script that can be executed at once, for tests. Another process writes it: a child that another thread
/// forks meanwhile would have this process' descriptor open for writing until it executes something, and nobody can
/// execute a file that is open for writing (ETXTBSY).
#[cfg(test)]
pub(crate) fn write_script(path: &std::path::Path, script: &str) {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
        .arg(path);
    let text = format!("#!/bin/sh\n{script}\n");
    let written = output(&mut command, text.as_bytes(), Duration::from_secs(60), 1000).unwrap();
    assert!(written.status.success(), "{written:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, input: &[u8]) -> (io::Result<Output>, Duration) {
        run_within(script, input, Duration::from_secs(2))
    }

    fn run_within(script: &str, input: &[u8], timeout: Duration) -> (io::Result<Output>, Duration) {
        let start = Instant::now();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let output = output(&mut command, input, timeout, 100_000);
        (output, start.elapsed())
    }

    #[test]
    fn what_a_program_prints_is_given_with_its_status() {
        let (answer, _) = run("cat; echo err >&2; exit 3", &[b'x'; 90_000]);
        let answer = answer.unwrap();
        assert_eq!(answer.status.code(), Some(3));
        assert_eq!(answer.stdout, [b'x'; 90_000]);
        assert_eq!(answer.stderr, b"err\n");
        // Unread input blocks nobody.
        let (answer, _) = run("echo done", &[b'x'; 900_000]);
        assert_eq!(answer.unwrap().stdout, b"done\n");
    }

    #[test]
    fn no_program_is_waited_for_without_end() {
        for (script, said) in [
            ("sleep 600", "had not ended after 2 s"),
            ("trap '' TERM; sleep 600 & wait", "had not ended after 2 s"),
            ("exec yes", "more than 100000 bytes"),
            ("exec >&- 2>&-; sleep 600", "had not ended after 2 s"),
            ("head -c 100001 /dev/zero", "more than 100000 bytes"),
        ] {
            let (answer, took) = run(script, b"");
            let error = answer.unwrap_err().to_string();
            assert!(error.contains(said), "{script}: {error}");
            assert!(took < Duration::from_secs(15), "{script}: {took:?}");
        }
    }

    #[test]
    fn processes_that_it_leaves_behind_do_not_keep_its_answer() {
        const TIMEOUT: Duration = Duration::from_secs(60);
        let (answer, took) = run_within("sleep 600 & echo done", b"", TIMEOUT);
        assert_eq!(answer.unwrap().stdout, b"done\n");
        assert!(took < TIMEOUT, "{took:?}");
        // A process that has left the group is not killed, and blocks nobody.
        let left = "d=$(mktemp -d); setsid sh -c \"touch $d/on; exec sleep 5\" & until [ -e $d/on ]; do sleep 0.01; \
                    done; rm -r $d; echo done";
        let (answer, took) = run_within(left, b"", TIMEOUT);
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("keeps its output open"), "{error}");
        assert!(took < TIMEOUT, "{took:?}");
    }
}
