//! Sends damaged requests to a running agent, and compares the node before and after.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_plugin::wire::{Invocation, MAX_REQUEST, Request, Response, receive, send};
use ebbtide_vpc::{
    agent::Agent,
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    snapshot::{Snapshot, ip},
};
use serde_json::{Value, json};

use super::{End, memory, mutated};
use ebbtide_vpc::random::Random;

/// The time after which the agent counts as stuck. Requests have shorter limits of their own.
const STUCK: Duration = Duration::from_secs(60);

/// How much the agent's memory may grow, in bytes.
const MOST_MEMORY: u64 = 64 << 20;

/// Counts of the answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answers {
    /// The number of requests.
    pub requests: u64,
    /// How many of them succeeded.
    pub done: u64,
    /// How many were refused.
    pub refused: u64,
    /// How many were not requests, so that the agent closed the connection.
    pub unread: u64,
}

/// The node's state: what `ip` shows of it and of the pod, the agent's files, and the addresses in use.
#[derive(Debug)]
struct Before {
    node: Snapshot,
    pod: Snapshot,
    files: BTreeSet<String>,
}

/// Sends damaged requests to an agent on a node of its own, undoes those that succeeded, and compares the node.
///
/// # Errors
/// The first request that did harm, or what was left behind.
pub fn requests(seed: u64, end: End) -> Result<Answers> {
    // No route leads to the pod's pair, whose other end is in the pod as well.
    let mut lab = Lab::configured(Plan::default(), "foreignSubnets: [10.88.0.0/24]\n")?;
    let node = lab.vpc.node("master").clone();
    let agent = lab.agent("master");
    let (process, socket) = (agent.process_id(), agent.socket());
    let process = process.context("the agent does not run")?;
    let pod = Netns::new("fuzzed")?;
    for command in [
        &["link", "add", "eth7", "type", "veth", "peer", "name", "far"][..],
        &["link", "set", "far", "up"],
        &["link", "set", "eth7", "up"],
        &["address", "add", "10.88.0.60/24", "dev", "eth7"],
    ] {
        ip(&pod, command)?;
    }
    let mut asking = Asking {
        random: Random::new(seed),
        places: places(&node, &pod),
        configurations: configurations(),
        texts: Vec::new(),
    };
    asking.texts = asking
        .configurations
        .iter()
        .map(|one| one.to_string().into_bytes())
        .collect();
    let before = Before::of(agent, &node, &pod)?;
    let (begun, mut answers, mut memory) = (Instant::now(), Answers::default(), 0);
    let mut made = Vec::new();
    while !end.is_reached(answers.requests, begun) {
        let number = answers.requests;
        let request = asking.next();
        let said = || format!("request {number} of seed {seed}: {}", request.shown());
        let answered = request.ask(&socket).with_context(said)?;
        answers.count(&answered);
        if let (Sent::Whole(invocation), Answered::Done) = (&request, &answered)
            && invocation.command == "ADD"
        {
            made.push(invocation.clone());
        }
        ensure!(
            agent.process_id() == Some(process),
            "{}: the agent is another",
            said()
        );
        if answers.requests == 200 {
            memory = memory::resident_of(process)?;
        }
    }
    let grown = memory::resident_of(process)?.saturating_sub(memory);
    ensure!(
        memory == 0 || grown < MOST_MEMORY,
        "the agent has {} MiB more",
        grown >> 20
    );
    end_all(&made, &socket)?;
    let agent = lab.agent("master");
    agent.control(&["status"]).context("status, afterwards")?;
    ensure!(agent.addresses_in_use()? == 0, "addresses are in use still");
    let agent = lab.agent("master");
    eventually("the node is as it was", || {
        before
            .node
            .assert_same(&Snapshot::of(&node)?)
            .context("the node")?;
        before
            .pod
            .assert_same(&Snapshot::of(&pod)?)
            .context("the pod")?;
        let files = files(&agent.state())?;
        let new: Vec<_> = files.difference(&before.files).collect();
        ensure!(new.is_empty(), "files are left: {new:?}");
        Ok(())
    })?;
    Ok(answers)
}

impl Before {
    fn of(agent: &Agent, node: &Netns, pod: &Netns) -> Result<Self> {
        Ok(Self {
            node: Snapshot::of(node)?,
            pod: Snapshot::of(pod)?,
            files: files(&agent.state())?,
        })
    }
}

/// Returns the names of all files below a directory.
fn files(directory: &Path) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    let entries = std::fs::read_dir(directory);
    for entry in entries.with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(files(&path)?);
        } else {
            all.insert(path.display().to_string());
        }
    }
    Ok(all)
}

/// Undoes what was begun, with the same request, as a runtime does. Refused requests left nothing behind.
fn end_all(begun: &[Invocation], socket: &Path) -> Result<()> {
    for invocation in begun {
        let request = Sent::Whole(Invocation {
            command: "DEL".into(),
            ..invocation.clone()
        });
        let answered = request.ask(socket).with_context(|| request.shown())?;
        ensure!(
            matches!(answered, Answered::Done),
            "refused: {}",
            request.shown()
        );
    }
    Ok(())
}

/// The input of one connection.
#[derive(Debug)]
enum Sent {
    Whole(Invocation),
    /// Any bytes, and whether the length prefix is right.
    Bytes(Vec<u8>, bool),
}

#[derive(Debug)]
enum Answered {
    Done,
    Refused,
    /// The agent closed the connection.
    Unread,
}

impl Answers {
    const fn count(&mut self, answered: &Answered) {
        self.requests += 1;
        match answered {
            Answered::Done => self.done += 1,
            Answered::Refused => self.refused += 1,
            Answered::Unread => self.unread += 1,
        }
    }
}

impl Sent {
    fn shown(&self) -> String {
        match self {
            Self::Whole(invocation) => format!("{invocation:?}"),
            Self::Bytes(bytes, whole) => format!("{:?}, {whole}", String::from_utf8_lossy(bytes)),
        }
    }

    /// Returns what is sent of a request. The plugin sends none that is too long, but somebody else may.
    fn of(invocation: Invocation) -> Self {
        let bytes = serde_json::to_vec(&Request::Cni(invocation.clone())).unwrap_or_default();
        match bytes.len() > MAX_REQUEST as usize {
            true => Self::Bytes(bytes, true),
            false => Self::Whole(invocation),
        }
    }

    fn ask(&self, socket: &Path) -> Result<Answered> {
        let mut stream = UnixStream::connect(socket).context("connect")?;
        stream.set_read_timeout(Some(STUCK))?;
        stream.set_write_timeout(Some(STUCK))?;
        match self {
            Self::Whole(invocation) => {
                send(&mut stream, &Request::Cni(invocation.clone())).context("send")?;
                let response: Response = receive(&mut stream).context("receive")?;
                invocation_answered(&response)
            }
            Self::Bytes(bytes, whole) => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let head = if *whole {
                    length.to_le_bytes().to_vec()
                } else {
                    Vec::new()
                };
                // The agent may close the connection before it has read everything.
                let _ = stream.write_all(&[&head[..], bytes].concat());
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let mut all = Vec::new();
                match stream.read_to_end(&mut all) {
                    Ok(_) => Ok(Answered::Unread),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                        Ok(Answered::Unread)
                    }
                    Err(error) => bail!("the connection is kept: {error}"),
                }
            }
        }
    }
}

/// Checks that an answer follows CNI: a result, an error with its code, or nothing if nothing is due.
fn invocation_answered(response: &Response) -> Result<Answered> {
    if response.exit == 0 {
        ensure!(
            response.output.is_empty() || serde_json::from_str::<Value>(&response.output).is_ok(),
            "no JSON: {:?}",
            response.output
        );
        return Ok(Answered::Done);
    }
    let error: Value = serde_json::from_str(&response.output)
        .with_context(|| format!("exit {}, and no JSON: {:?}", response.exit, response.output))?;
    ensure!(
        error["code"].is_u64() && error["msg"].is_string(),
        "no error of CNI's: {error}"
    );
    let text = error.to_string();
    ensure!(!text.contains("panicked"), "{text}");
    Ok(Answered::Refused)
}

#[derive(Debug)]
struct Asking {
    random: Random,
    places: Vec<String>,
    configurations: Vec<Value>,
    texts: Vec<Vec<u8>>,
}

impl Asking {
    fn next(&mut self) -> Sent {
        let random = &mut self.random;
        let config = match random.below(3) {
            0 => String::from_utf8_lossy(&mutated(random, &self.texts)).into_owned(),
            1 => damaged(random, &self.configurations).to_string(),
            _ => random
                .pick(&self.configurations)
                .unwrap_or(&Value::Null)
                .to_string(),
        };
        let mut one_of = |usual: &str, others: &[&str]| match random.below(4) {
            0 => random.pick(others).map_or(usual, |other| *other).to_owned(),
            _ => usual.to_owned(),
        };
        let command = one_of(
            "ADD",
            &["DEL", "CHECK", "STATUS", "GC", "VERSION", "", "add"],
        );
        let container_id = one_of(
            "fuzzed",
            &[
                "",
                "..",
                "a/b",
                "\n",
                "x1",
                "x2",
                "\u{1b}[2J",
                &"y".repeat(300),
            ],
        );
        let if_name = one_of(
            "eth7",
            &[
                "eth0",
                "lo",
                "net1",
                "",
                ".",
                "a b",
                "%d",
                "eth7:1",
                "veth0",
                "sixteen-letters-",
            ],
        );
        let args = one_of(
            "K8S_POD_NAMESPACE=default;K8S_POD_NAME=fuzzed",
            &[
                "",
                "a",
                "K8S_POD_NAME=\n",
                "IgnoreUnknown=1;K8S_POD_UID=u",
                "IP=10.0.0.1;MAC=x",
                &"a=b;".repeat(5000),
            ],
        );
        let traceparent = one_of(
            "",
            &[
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
                "\u{1b}[2J",
            ],
        );
        let tracestate = one_of("", &["a=1", "a=\n", &"a=b,".repeat(5000)]);
        let netns = random.pick(&self.places).cloned().unwrap_or_default();
        let invocation = Invocation {
            command,
            container_id,
            netns,
            if_name,
            args,
            path: "/nonexistent".into(),
            config,
            traceparent,
            tracestate,
        };
        match random.below(5) {
            0 => {
                let whole = serde_json::to_vec(&Request::Cni(invocation)).unwrap_or_default();
                // A mutated request that is still readable is sent as any other.
                let bytes = mutated(random, &[whole]);
                match serde_json::from_slice::<Request>(&bytes) {
                    Ok(Request::Cni(invocation)) => Sent::of(invocation),
                    Ok(Request::Query(_)) => Sent::Whole(Invocation::default()),
                    Err(_) => Sent::Bytes(bytes, random.below(4) > 0),
                }
            }
            _ => Sent::of(invocation),
        }
    }
}

/// Returns one of the values with another value somewhere in it.
fn damaged(random: &mut Random, all: &[Value]) -> Value {
    let mut conf = random.pick(all).cloned().unwrap_or_default();
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(33),
        json!(129),
        json!(1e300),
        json!(""),
        json!("x"),
        json!("lo"),
        json!("ens5"),
        json!("ens6"),
        json!("l2"),
        json!("0.0.0.0/0"),
        json!("1.2.3.4/1"),
        json!("::/1"),
        json!("10.0.0.255/24"),
        json!("224.0.0.1/4"),
        json!("169.254.169.254/32"),
        json!([]),
        json!({}),
        json!([[]]),
        json!([{"dst": "0.0.0.0/0", "gw": "9.9.9.9"}]),
        json!([{"address": "1.2.3.4/1", "gateway": "5.6.7.8"}]),
    ];
    for _ in 0..=random.below(3) {
        let mut here = &mut conf;
        loop {
            let deeper = match here {
                Value::Object(fields) => !fields.is_empty() && random.below(4) > 0,
                Value::Array(items) => !items.is_empty() && random.below(4) > 0,
                _ => false,
            };
            if !deeper {
                break;
            }
            here = match here {
                Value::Object(fields) => {
                    let at = random.index(fields.len());
                    match fields.values_mut().nth(at) {
                        Some(value) => value,
                        None => return conf,
                    }
                }
                Value::Array(items) => {
                    let at = random.index(items.len());
                    &mut items[at]
                }
                _ => return conf,
            };
        }
        *here = random.pick(&values).cloned().unwrap_or_default();
    }
    conf
}

/// Returns candidates for CNI_NETNS.
fn places(node: &Netns, pod: &Netns) -> Vec<String> {
    let pod = pod.path().display().to_string();
    let mut places = vec![pod; 12];
    places.push(node.path().display().to_string());
    let others = [
        "",
        "/",
        "/dev/null",
        "/dev/zero",
        "/proc/self/ns/mnt",
        "/proc/1/ns/net",
        "/nonexistent",
        "../x",
        "\n",
    ];
    places.extend(others.map(str::to_owned));
    places
}

/// Returns valid configurations, one for each way to call the agent.
fn configurations() -> Vec<Value> {
    let behind = |result: Value| json!({"cniVersion": "1.1.0", "name": "chain", "type": "ebbtide", "prevResult": result});
    let named = |network: &str| json!({"cniVersion": "1.1.0", "name": "ebbtide", "type": "ebbtide", "network": network});
    let fixed = |address: &str, gateway: &str| {
        json!({"cniVersion": "1.0.0", "name": "fixed", "type": "ebbtide", "master": "ens6", "ipam": {
            "type": "static", "addresses": [{"address": address, "gateway": gateway}], "routes": [{"dst": "0.0.0.0/0"}]}})
    };
    vec![
        named("default/ipvlan-ens5"),
        named("ipvlan-ens6"),
        behind(
            json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth7", "sandbox": "/x"}],
            "ips": [{"address": "10.88.0.60/24", "gateway": "10.88.0.1", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}], "dns": {"nameservers": ["10.96.0.10"]}}),
        ),
        behind(
            json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.88.0.60/24"}]}),
        ),
        fixed("172.31.99.9/20", "172.31.96.1"),
        fixed("1.2.3.4/1", "1.2.3.1"),
        json!({"cniVersion": "1.1.0", "name": "pods", "type": "ebbtide"}),
        json!({"cniVersion": "1.1.0", "name": "ebbtide", "type": "ebbtide", "master": "ens5",
            "ippools": {"ipv4": ["master-ens5-v4"]}, "runtimeConfig": {"ips": ["172.31.16.77/20"]}}),
    ]
}
