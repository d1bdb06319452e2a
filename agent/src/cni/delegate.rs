//! Runs another plugin, as section 4 of the CNI specification ("Plugin Delegation") describes.

use std::{
    future::pending,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use ebbtide_kernel::podnet::Delegate;
use ebbtide_plugin::{cni::code, object::Object};
use ebbtide_types::printable::truncated;
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    task::spawn_blocking,
    time::timeout,
};

use super::Failure;
use crate::{
    host_root::{HostRoot, which},
    traces,
};

/// How long the plugin may take; Ebbtide's own plugin, which waits for it, gives up a little later.
const TIMEOUT: Duration = Duration::from_secs(45);

/// How many bytes it may print, to either of its outputs. A result has a few hundred.
const MAX_OUTPUT: u64 = 1 << 20;

/// How many characters of its output an error shows.
const SHOWN: usize = 1000;

/// How long its outputs may stay open after it has ended: then a process that it left behind holds them.
const GRACE: Duration = Duration::from_secs(1);

/// A plugin's error; many leave `cniVersion` out.
#[derive(Deserialize)]
struct Refusal {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

/// Runs the plugin with `command`, and returns what it printed. If it prints or takes too much, it is killed with all
/// processes that it started (except those that made a process group of their own).
///
/// # Errors
/// The plugin's own error as it printed it, or why it could not be run.
pub async fn call(delegate: &Delegate, command: &str) -> Result<String, Failure> {
    call_within(delegate, command, TIMEOUT, HostRoot::get()).await
}

async fn call_within(
    delegate: &Delegate,
    command: &str,
    patience: Duration,
    root: &HostRoot,
) -> Result<String, Failure> {
    let failed = |what: &str, program: &Path, e: &dyn std::fmt::Display| {
        Failure::new(
            code::IO_FAILURE,
            format!(
                "{what} the plugin {} {root} for {command}: {e}",
                program.display()
            ),
            "is it the right program for this machine, and can it be executed?",
        )
    };
    let told = traces::told();
    // The runtime's paths are the host's, and the plugin expects its own files there.
    let started = root.run(|| {
        let program = find(&delegate.kind, &delegate.path, root)?;
        let child = start(&program, delegate, command, &told, root);
        let child = child.map_err(|e| failed("start", &program, &e))?;
        Ok::<_, Failure>((program, child))
    });
    let started = started.map_err(|e| failed("look for", Path::new(&delegate.kind), &e))?;
    let (program, child) = started?;
    let Said {
        status,
        printed,
        complained,
    } = talk(child, delegate.config.clone(), patience)
        .await
        .map_err(|e| failed("wait for", &program, &e))?;
    let text = String::from_utf8_lossy(&printed).into_owned();
    if status.success() {
        return Ok(text);
    }
    let complained = String::from_utf8_lossy(&complained);
    Err(match serde_json::from_str::<Object<Refusal>>(&text) {
        Ok(Object(error)) => Failure::new(
            error.code,
            format!("{} ({command}): {}", delegate.kind, error.msg),
            error.details,
        ),
        Err(_) => failed(
            "understand",
            &program,
            &format!(
                "{status}: {}{}",
                truncated(&text, SHOWN),
                truncated(&complained, SHOWN)
            ),
        ),
    })
}

fn start(
    program: &Path,
    delegate: &Delegate,
    command: &str,
    told: &[(&'static str, String)],
    root: &HostRoot,
) -> io::Result<Child> {
    Command::new(program)
        .env_clear()
        .env("PATH", root.search_path())
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &delegate.container_id)
        .env("CNI_NETNS", &delegate.netns)
        .env("CNI_IFNAME", &delegate.interface)
        .env("CNI_ARGS", &delegate.args)
        .env("CNI_PATH", &delegate.path)
        .envs(told.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// How a plugin ended, and what it printed until then.
struct Said {
    status: ExitStatus,
    printed: Vec<u8>,
    complained: Vec<u8>,
}

async fn talk(mut child: Child, config: String, patience: Duration) -> io::Result<Said> {
    let group = child.id().map(|id| Pid::from_raw(id.cast_signed()));
    let group = group.ok_or_else(|| io::Error::other("it is not there"))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let feeding = async {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read to the end may still answer.
            let _unread = stdin.write_all(config.as_bytes()).await;
        }
    };
    let feeding = async {
        feeding.await;
        pending::<io::Result<()>>().await
    };
    // It stays a zombie, so that its process ID, which is its group's, is not reused while the group may have to be
    // killed.
    let mut ended =
        spawn_blocking(move || waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT));
    let listening = async {
        let reading = async {
            tokio::try_join!(
                read(stdout, "standard output", &mut printed),
                read(stderr, "standard error", &mut complained)
            )
        };
        tokio::pin!(reading);
        tokio::select! {
            read = &mut reading => {
                read?;
                let _is_gone = (&mut ended).await;
            }
            // What it printed is in the pipes.
            _ = &mut ended => match timeout(GRACE, &mut reading).await {
                Ok(read) => drop(read?),
                Err(_) => return Ok(true),
            }
        }
        Ok(false)
    };
    let listened = tokio::select! {
        listened = timeout(patience, listening) => listened.unwrap_or_else(|_| Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it had not ended after {} s", patience.as_secs()),
        ))),
        never = feeding => never.map(|()| false),
    };
    let leaves_processes = !matches!(listened, Ok(false));
    if leaves_processes {
        // The group may be empty.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = timeout(patience, child.wait()).await;
    listened?;
    Ok(Said {
        status: status.map_err(|_| io::Error::other("it does not end, though it was killed"))??,
        printed,
        complained,
    })
}

/// Reads an output to its end, at most [`MAX_OUTPUT`] bytes.
async fn read(
    output: Option<impl AsyncRead + Unpin>,
    name: &str,
    read: &mut Vec<u8>,
) -> io::Result<()> {
    let Some(output) = output else { return Ok(()) };
    output.take(MAX_OUTPUT + 1).read_to_end(read).await?;
    if read.len() as u64 > MAX_OUTPUT {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it printed more than {MAX_OUTPUT} bytes to its {name}, and was ended"),
        ));
    }
    Ok(())
}

/// Returns the plugin in the directories of `CNI_PATH`, as the calling thread sees them.
fn find(kind: &str, path: &str, root: &HostRoot) -> Result<PathBuf, Failure> {
    let plain = !kind.is_empty() && !kind.contains('/') && !matches!(kind, "." | "..");
    let found = plain.then(|| which(kind, path.as_ref())).flatten();
    found.ok_or_else(|| {
        Failure::new(
            code::INVALID_NETWORK_CONFIG,
            format!("the plugin {kind:?} is not in CNI_PATH ({path}) {root}"),
            "install it there, or correct `ipam.type`; an agent in a container sees the host's directories if the host's \
             root is mounted and named by --host-root (`agent.hostRoot: true` in the chart)",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;
    use crate::program::write_script;

    /// Runs a shell script as the plugin. `$0.pids` collects the process IDs of what it starts.
    async fn run(script: &str, patience: Duration) -> (Result<String, Failure>, Vec<i32>) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("mock");
        let numbers = directory.path().join("mock.pids");
        write_script(&program, &format!("echo $$ >> $0.pids\n{script}"));
        let delegate = Delegate {
            kind: "mock".into(),
            container_id: "c".into(),
            netns: String::new(),
            interface: "eth0".into(),
            args: String::new(),
            path: directory.path().display().to_string(),
            config: "x".repeat(200_000),
        };
        let answer = call_within(&delegate, "ADD", patience, &HostRoot::default()).await;
        let numbers = fs::read_to_string(numbers).unwrap();
        let numbers = numbers.lines().map(|line| line.parse().unwrap());
        (answer, numbers.collect())
    }

    /// Whether a process exists and is no zombie.
    fn runs(pid: i32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| state != 'Z' && state != 'X')
    }

    /// Waits until none of these processes runs: they were killed, for none ends by itself so soon.
    async fn end(numbers: &[i32]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while numbers.iter().any(|number| runs(*number)) {
            assert!(Instant::now() < deadline, "{numbers:?} go on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_plugin_that_prints_or_runs_for_ever_is_ended_with_all_that_it_started() {
        const CHILD: &str = "sleep 600 & echo $! >> $0.pids; ";
        const TOO_LONG: &str = "had not ended after 3 s";
        for (script, said) in [
            ("exec yes", "more than 1048576 bytes to its standard output"),
            (
                "exec yes >&2",
                "more than 1048576 bytes to its standard error",
            ),
            ("yes & echo $! >> $0.pids; wait", "more than 1048576 bytes"),
            ("sleep 600 & echo $! >> $0.pids; wait", TOO_LONG),
            ("trap '' TERM INT HUP; while :; do sleep 1; done", TOO_LONG),
            ("exec > /dev/null 2>&1; sleep 600", TOO_LONG),
            (
                "head -c 900000 /dev/zero | tr '\\0' x; exec sleep 600",
                TOO_LONG,
            ),
        ] {
            let script = format!("{CHILD}{script}");
            // Only what is to run into the limit has a short one.
            let patience = match said {
                TOO_LONG => Duration::from_secs(3),
                _ => TIMEOUT,
            };
            let (answer, numbers) = run(&script, patience).await;
            let failure = answer.unwrap_err();
            assert!(
                failure.message.contains(said),
                "{script}: {}",
                failure.message
            );
            assert!(failure.message.len() < 2000, "{script}");
            assert!(numbers.len() > 1, "{script}");
            end(&numbers).await;
        }
    }

    #[tokio::test]
    async fn what_a_plugin_leaves_behind_does_not_keep_its_answer() {
        let script = "cat > /dev/null; sleep 600 & echo $! >> $0.pids; echo '{}'";
        let (answer, numbers) = run(script, TIMEOUT).await;
        assert_eq!(answer.unwrap(), "{}\n");
        end(&numbers).await;
        // A process that holds none of its pipes is left alone.
        let quiet = "exec 3>&1 > /dev/null 2>&1; (exec 3>&-; exec sleep 60) < /dev/null & echo $! >> $0.pids; sleep 1; echo '{}' >&3";
        let (answer, numbers) = run(quiet, TIMEOUT).await;
        assert_eq!(answer.unwrap(), "{}\n");
        assert!(runs(numbers[1]));
        nix::sys::signal::kill(Pid::from_raw(numbers[1]), Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn errors_of_a_plugin_are_its_own_and_none_is_without_words() {
        for (script, code, said) in [
            (
                r#"echo '{"code": 77, "msg": "no more"}'; exit 1"#,
                77,
                "no more",
            ),
            ("echo broken >&2; exit 3", code::IO_FAILURE, "broken"),
            ("kill -9 $$", code::IO_FAILURE, "signal"),
            (
                "head -c 300000 /dev/zero; exit 1",
                code::IO_FAILURE,
                "exit status: 1",
            ),
        ] {
            let (answer, _) = run(script, TIMEOUT).await;
            let failure = answer.unwrap_err();
            assert_eq!(failure.code, code, "{script}");
            assert!(
                failure.message.contains(said),
                "{script}: {}",
                failure.message
            );
            assert!(failure.message.len() < 5000, "{script}");
        }
    }

    #[test]
    fn a_plugin_is_looked_for_in_every_directory_and_nowhere_else() {
        let first = tempfile::tempdir().unwrap();
        let second = tempfile::tempdir().unwrap();
        fs::write(second.path().join("host-local"), "").unwrap();
        let path = format!("{}:{}", first.path().display(), second.path().display());
        let here = HostRoot::default();
        let found = find("host-local", &path, &here).unwrap();
        assert_eq!(found, second.path().join("host-local"));
        for bad in ["static", "", "..", "../host-local"] {
            let failure = find(bad, &path, &here).unwrap_err();
            assert!(failure.message.contains(bad), "{}", failure.message);
        }
    }
}
