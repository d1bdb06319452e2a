//! The test's place in the cluster: its namespace, and servers on nodes that end with this program.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use ebbtide_agent::probe::{Asking, Exchange, Serving};
use serde_json::Value;

use super::{
    super::cluster::{CALL, Cluster},
    plan::Asker,
    topology::Node,
};

/// How much longer than what it runs an exec may take.
const EXEC: Duration = Duration::from_secs(60);

/// The cluster, and the test's place in it.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) cluster: Cluster,
    /// The test's own namespace.
    pub(super) namespace: String,
}

impl Site {
    /// Makes objects.
    pub(super) fn create(&self, objects: &Value) -> anyhow::Result<()> {
        let text = objects.to_string();
        self.cluster
            .call(&["create", "-f", "-"], text.as_bytes(), CALL)
            .map(drop)
    }

    /// Deletes the test's namespace with everything in it, and waits for its end if asked.
    pub(super) fn remove(&self, does_wait: bool) -> anyhow::Result<()> {
        let wait = format!("--wait={does_wait}");
        let words = [
            "delete",
            "namespace",
            &self.namespace,
            "--ignore-not-found",
            &wait,
        ];
        self.cluster.call(&words, b"", CALL * 2).map(drop)
    }

    /// Returns the server's version.
    pub(super) fn version(&self) -> anyhow::Result<String> {
        let text = self.cluster.call(&["version", "-o", "json"], b"", CALL)?;
        let value: Value = serde_json::from_slice(&text).context("read kubectl's version")?;
        let version = value
            .pointer("/serverVersion/gitVersion")
            .and_then(Value::as_str);
        Ok(version.unwrap_or("unknown").to_owned())
    }

    /// Has somebody ask, and returns what became of the questions.
    pub(super) fn ask(&self, asker: &Place, asking: &Asking) -> anyhow::Result<Vec<Exchange>> {
        let input = serde_json::to_vec(asking).context("write the questions")?;
        let most = Duration::from_millis(asking.deadline) + EXEC;
        let words = ["ebbtide-agent", "probe", "ask"];
        let text = match asker {
            Place::Agent(agent) => self.cluster.in_agent(agent, &words, &input, most)?,
            Place::Pod(pod) => {
                let exec = [
                    "exec",
                    "-i",
                    "-n",
                    &self.namespace,
                    pod,
                    "-c",
                    "probe",
                    "--",
                ];
                self.cluster
                    .call(&[&exec[..], &words].concat(), &input, most)?
            }
        };
        serde_json::from_slice(&text).context("understand the answers")
    }

    /// Starts a server on a node's own network, at each of its addresses, in its agent's container. It ends with its
    /// standard input.
    pub(super) fn serve(&self, node: &Node) -> anyhow::Result<(NodeServer, u16)> {
        let mut command = self.cluster.kubectl();
        command.args(self.cluster.exec(&node.agent));
        command.args(["ebbtide-agent", "probe", "serve", "--until-eof", "--port=0"]);
        command.args(["--name", &node.name, "--node", &node.name]);
        for (_, address) in node.addresses() {
            command.arg(format!("--address={address}"));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("run kubectl exec")?;
        let stdout = child.stdout.take();
        let server = NodeServer(child);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            if let Some(stdout) = stdout {
                // Without a line there is no server.
                let _read = BufReader::new(stdout).read_line(&mut line);
            }
            // The receiver may have stopped waiting.
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(EXEC).unwrap_or_default();
        let serving: Serving = serde_json::from_str(&line).with_context(|| {
            format!(
                "start a server in {} (is its agent of this release?)",
                node.agent
            )
        })?;
        Ok((server, serving.port))
    }
}

/// Where somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In an agent's pod, which is on the node's network.
    Agent(String),
    /// In a pod of the test.
    Pod(String),
}

/// A server that runs in an agent's container as long as this is held.
#[derive(Debug)]
pub(super) struct NodeServer(Child);

impl Drop for NodeServer {
    fn drop(&mut self) {
        // The end of its input tells the server to end, and then kubectl ends as well.
        drop(self.0.stdin.take());
        for _ in 0..100 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        // It may have ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs work for each item, some at once, and returns the results in the order of the items.
pub(super) fn some_at_once<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> Vec<anyhow::Result<R>> {
    let mut results = Vec::with_capacity(items.len());
    for some in items.chunks(super::super::AT_ONCE) {
        thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> = some
                .iter()
                .map(|item| scope.spawn(move || work(item)))
                .collect();
            results.extend(running.into_iter().map(|one| {
                one.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of this program ended")))
            }));
        });
    }
    results
}

/// Returns where an asker is.
pub(super) fn place(
    asker: &Asker,
    nodes: &[Node],
    name: impl Fn(&super::plan::TestPod) -> Option<String>,
) -> Option<Place> {
    match asker {
        Asker::Node(node) => {
            let mut nodes = nodes.iter();
            let node = nodes.find(|each| each.name == *node)?;
            Some(Place::Agent(node.agent.clone()))
        }
        Asker::Pod(pod) => name(pod).map(Place::Pod),
    }
}
