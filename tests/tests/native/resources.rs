//! The resources that a client of the agent's socket, or a plugin that it calls, can use: they are bounded.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_plugin::wire::{self, Invocation, Query, Request};
use ebbtide_vpc::{
    agent::Agent,
    cni::Sandbox,
    lab::Lab,
    netns::Netns,
    patience::{PATIENCE, eventually},
    plan::Plan,
};
use serde_json::json;
use tempfile::TempDir;

/// The maximum memory of the agent, for any requests: well below the chart's limit (1 GiB).
const MOST_MIB: u64 = 512;

/// So few silent connections that the agent closes none to make room for others.
const FEW: usize = 200;

/// Returns the agent's peak memory so far, in MiB.
fn peak(agent: &Agent) -> Result<u64> {
    let id = agent.process_id().context("the agent does not run")?;
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no VmHWM")? >> 10)
}

fn answers(agent: &Agent) -> Result<()> {
    for _ in 0..5 {
        let request = Request::Query(Query::Status);
        wire::ask(&agent.socket(), &request, PATIENCE).context("status")?;
    }
    Ok(())
}

/// A question is answered before any of the [`FEW`] connections that were silent before it is closed: it waits for none
/// of them. `first` is what each says before it is silent.
fn answers_before_it_closes(agent: &Agent, first: &[u8]) -> Result<()> {
    // On a machine that is too slow the agent may have closed one while the others were opened.
    eventually("an answer while all are open", || {
        let mut silent = Vec::new();
        for _ in 0..FEW {
            let mut stream = UnixStream::connect(agent.socket())?;
            stream.write_all(first)?;
            stream.set_nonblocking(true)?;
            silent.push(stream);
        }
        answers(agent)?;
        for stream in &mut silent {
            let read = std::io::Read::read(stream, &mut [0]);
            let is_open = read.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            ensure!(is_open, "one of them was closed before");
        }
        Ok(())
    })
}

/// Silent connections, each opened again when it is closed, until this is dropped.
struct Silent {
    stop: Arc<AtomicBool>,
    /// How many were opened so far.
    opened: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Silent {
    /// Opens `count` connections; `first` is what each sends before it is silent.
    fn open(socket: &Path, count: usize, first: &[u8]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(AtomicUsize::new(0));
        let threads = (0..count).map(|_| {
            let (socket, stop, first) = (socket.to_owned(), Arc::clone(&stop), first.to_vec());
            let opened = Arc::clone(&opened);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = UnixStream::connect(&socket) else {
                        thread::sleep(Duration::from_millis(20));
                        continue;
                    };
                    let _refused = stream.write_all(&first);
                    opened.fetch_add(1, Ordering::Relaxed);
                    let _patience = stream.set_read_timeout(Some(Duration::from_millis(200)));
                    // Until the agent closes it.
                    let mut nothing = [0];
                    while !stop.load(Ordering::Relaxed)
                        && matches!(std::io::Read::read(&mut stream, &mut nothing),
                            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
                    {
                    }
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            opened,
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic is reported by the thread itself.
            let _ = thread.join();
        }
    }
}

#[test]
fn silent_connections_keep_no_question_waiting() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let agent = lab.agent("master");
    let begun = {
        let mut begun = (1_u32 << 20).to_le_bytes().to_vec();
        begun.resize(90_000, b' ');
        begun
    };
    for (count, first) in [(300, &[][..]), (600, &[1, 0]), (600, &begun)] {
        let silent = Silent::open(&agent.socket(), count, first);
        eventually("silence", || {
            let opened = silent.opened.load(Ordering::Relaxed);
            ensure!(opened >= count, "{opened} of {count} were opened");
            Ok(())
        })?;
        answers(agent).with_context(|| format!("{count} that say {} bytes", first.len()))?;
        drop(silent);
    }
    for first in [&[][..], &[1, 0], &begun] {
        answers_before_it_closes(agent, first)
            .with_context(|| format!("{FEW} that say {} bytes", first.len()))?;
    }
    let peak = peak(agent)?;
    ensure!(peak < MOST_MIB, "it took {peak} MiB");
    Ok(())
}

/// Returns a request whose configuration has the maximum size and needs much more memory when it is parsed.
fn large(number: usize) -> Request {
    let unit = r#"{"":0},"#;
    let config = format!(
        r#"{{"cniVersion":"1.0.0","name":"n","network":"none","args":[{}0]}}"#,
        unit.repeat((500 << 10) / unit.len())
    );
    Request::Cni(Invocation {
        command: "ADD".into(),
        container_id: format!("large-{number}"),
        netns: "/nowhere".into(),
        if_name: "eth0".into(),
        config,
        ..Invocation::default()
    })
}

#[test]
fn many_requests_as_large_as_may_be_take_a_bounded_part_of_the_memory() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let agent = lab.agent("master");
    let clients: Vec<_> = (0..256)
        .map(|number| {
            let socket = agent.socket();
            thread::spawn(move || wire::ask(&socket, &large(number), Duration::from_secs(120)))
        })
        .collect();
    answers(agent)?;
    for client in clients {
        let answer = client
            .join()
            .map_err(|_| anyhow::anyhow!("a client panicked"))?;
        // A client that waited too long to be read sees the end of the connection.
        if let Ok(answer) = answer {
            ensure!(
                answer.exit == 1 && answer.output.contains("\"code\""),
                "{}",
                answer.output
            );
        }
    }
    let peak = peak(agent)?;
    ensure!(peak < MOST_MIB, "it took {peak} MiB");
    // A request that is too long is not read at all.
    let mut stream = UnixStream::connect(agent.socket())?;
    stream.write_all(&(64_u32 << 20).to_le_bytes())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ensure!(
        std::io::Read::read(&mut stream, &mut [0])? == 0,
        "it was answered"
    );
    Ok(())
}

#[test]
fn json_of_any_depth_is_refused() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let agent = lab.agent("master");
    let (plugin, netns) = (agent.plugin(), Netns::new("deep")?);
    let sandbox = Sandbox::new(&netns, format!("deep-{}", std::process::id()), "deep");
    for deep in [
        "[".repeat(40_000),
        r#"{"a":"#.repeat(40_000),
        format!(r#"{{"prevResult":{}"#, "[".repeat(200_000)),
    ] {
        let error = plugin.call("ADD", Some(&sandbox), &deep)?.error()?;
        ensure!([6, 7].contains(&error.code), "{error}");
        ensure!(error.to_string().len() < 1000, "{error}");
        let request = Request::Cni(Invocation {
            command: "ADD".into(),
            config: deep,
            ..Invocation::default()
        });
        let answer = wire::ask(&agent.socket(), &request, PATIENCE)?;
        ensure!(answer.exit == 1, "{}", answer.output);
    }
    answers(agent)
}

#[test]
fn a_delegate_that_prints_for_ever_costs_the_agent_nothing() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let agent = lab.agent("master");
    let plugin = agent.plugin();
    for (script, said) in [
        ("exec yes", "standard output"),
        ("exec yes >&2", "standard error"),
    ] {
        let directory = TempDir::with_prefix("ebbtide-floods-")?;
        let program = directory.path().join("mock-flood");
        fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let netns = Netns::new("flood")?;
        let sandbox = Sandbox::new(&netns, format!("flood-{}", std::process::id()), "flood");
        let config = json!({
            "cniVersion": "1.0.0", "name": "flood", "type": "ebbtide", "master": "ens5",
            "agentSocket": plugin.socket(), "ipam": {"type": "mock-flood"},
        })
        .to_string();
        let path = directory.path().as_os_str();
        let added = plugin.call_with(
            "ADD",
            Some(&sandbox),
            config.as_bytes(),
            &[("CNI_PATH", path)],
        )?;
        let error = added.error()?;
        ensure!(error.code == 5 && error.msg.contains(said), "{error}");
        ensure!(error.msg.len() < 2000, "{}", error.msg.len());
    }
    let peak = peak(agent)?;
    ensure!(peak < MOST_MIB / 2, "it took {peak} MiB");
    Ok(())
}
