//! `kubectl ebbtide`: the same commands, from where kubectl works, asked of the agents of a cluster's nodes.
//!
//! kubectl runs any program of this name that is in the search path. This one has kubectl do all that concerns the API
//! server, so that credentials, proxies and contexts are as in every other kubectl command, and runs `ebbtidectl` in the
//! agents' pods.

mod at_once;
mod cluster;
mod cluster_page;
pub(super) mod connectivity;
mod page;
mod sysdump;

use std::{
    ffi::OsString,
    io::{IsTerminal as _, Write as _},
    iter,
    process::{Command as Process, ExitCode},
};

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use ebbtide_agent::terminal;
use ebbtide_types::printable::{printable, printable_lines};
use serde_json::{Map, Value};

use self::{
    at_once::{AT_ONCE, some_at_once},
    cluster::{Cluster, PODS, Which},
};
use super::{Command, format::Output};

/// The program's name where it is a plugin of kubectl.
pub(super) const NAME: &str = "kubectl-ebbtide";

/// The label of the agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=ebbtide";

/// Run ebbtidectl on the nodes of a cluster: `kubectl ebbtide status`, `kubectl ebbtide --node NODE trace POD`.
///
/// Every node is asked, unless `--node` or `--pod` names one. With `-o json` the answer is an object with a key for each
/// node. The exit status is 1 if a node's is not 0, or a node was not asked because its agent does not run.
#[derive(Parser)]
#[command(name = "kubectl ebbtide", bin_name = "kubectl ebbtide", version)]
pub(super) struct Cli {
    /// Ask this node. Can be given several times.
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// Ask the node that this pod is on: NAMESPACE/NAME, or NAME in the context's namespace.
    #[arg(long, value_name = "POD", conflicts_with = "node")]
    pod: Option<String>,
    /// The namespace of the agents.
    #[arg(
        short,
        long,
        value_name = "NAMESPACE",
        env = "EBBTIDE_NAMESPACE",
        default_value = "ebbtide-system"
    )]
    namespace: String,
    /// The kubeconfig's context.
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// The kubeconfig.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// A command of ebbtidectl with its options (`kubectl ebbtide help`: all of them).
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// An agent's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Agent {
    node: String,
    pod: String,
    is_running: bool,
}

/// Runs the plugin.
pub(super) fn main() -> ExitCode {
    main_of(&Cli::parse())
}

/// Runs the plugin for a command of a cluster that was given to `ebbtidectl`.
pub(super) fn main_with(words: impl Iterator<Item = OsString>) -> ExitCode {
    main_of(&Cli::parse_from(iter::once(NAME.into()).chain(words)))
}

fn main_of(cli: &Cli) -> ExitCode {
    match run(cli) {
        Ok(exit) => exit,
        Err(e) => {
            say(&terminal::error_chain(&e));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    // Its own parser knows the command: what is wrong with it is said here, once, and so is its help.
    let asked = asked(&cli.command).unwrap_or_else(|e| e.exit());
    if matches!(
        asked.command,
        Command::Completions { .. } | Command::Man { .. }
    ) {
        bail!("this is no matter of a cluster: ask ebbtidectl");
    }
    if let Command::Connectivity(options) = &asked.command {
        return Ok(connectivity::run(cli, options, asked.output));
    }
    if let Command::Page(options) = &asked.command
        && options.cluster
    {
        return cluster_page::run(cli, options, asked.output);
    }
    let cluster = Cluster::of(cli);
    let agents = chosen(agents(&cluster)?, &nodes(cli, &cluster)?)?;
    if let Command::Sysdump(options) = &asked.command {
        return sysdump::run(&cluster, options, &agents);
    }
    if let Command::Page(options) = &asked.command {
        if agents.len() > 1 && cli.node.is_empty() {
            return cluster_page::run(cli, options, asked.output);
        }
        return page::run(&cluster, options, asked.output, &agents);
    }
    match agents.as_slice() {
        [only] if asked.output == Output::Text => follow(call(cli, &cluster, &asked, only)?),
        _ if asked.command.lasts() => {
            bail!(
                "this command prints until it is stopped: name one node with --node, or the pod with --pod"
            )
        }
        _ => each(&asked, &agents, |agent| call(cli, &cluster, &asked, agent)),
    }
}

/// Parses a command as `ebbtidectl` does.
fn asked(words: &[String]) -> Result<super::Cli, clap::Error> {
    let name = "kubectl ebbtide";
    let words = iter::once(name).chain(words.iter().map(String::as_str));
    let matches = super::Cli::command()
        .bin_name(name)
        .try_get_matches_from(words)?;
    super::Cli::from_arg_matches(&matches)
}

fn agents(cluster: &Cluster) -> anyhow::Result<Vec<Agent>> {
    let found = cluster.get(PODS, Some(&cluster.agents), Which::Labelled(AGENTS))?;
    let agents = read(&found);
    if agents.is_empty() {
        bail!(
            "no agent runs in the namespace {} (pods with the label {AGENTS}): name theirs with --namespace",
            cluster.agents
        );
    }
    Ok(agents)
}

/// Returns the nodes that are to be asked; none: all of them.
fn nodes(cli: &Cli, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let Some(pod) = &cli.pod else {
        return Ok(cli.node.clone());
    };
    let found = match pod.split_once('/') {
        Some((namespace, name)) => cluster.get(PODS, Some(namespace), Which::Named(name))?,
        None => cluster.get(PODS, None, Which::Named(pod))?,
    };
    match found.pointer("/spec/nodeName").and_then(Value::as_str) {
        Some(node) => Ok(vec![node.to_owned()]),
        None => bail!("pod {pod} is on no node yet"),
    }
}

/// Reads a list of pods, in the order of their nodes.
fn read(list: &Value) -> Vec<Agent> {
    let text = |pod: &Value, at: &str| {
        let value = pod.pointer(at).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let items = list.get("items").and_then(Value::as_array);
    let mut agents: Vec<Agent> = items
        .into_iter()
        .flatten()
        .map(|pod| Agent {
            node: text(pod, "/spec/nodeName"),
            pod: text(pod, "/metadata/name"),
            is_running: text(pod, "/status/phase") == "Running"
                && pod.pointer("/metadata/deletionTimestamp").is_none(),
        })
        .filter(|agent| !agent.node.is_empty())
        .collect();
    // Of a node with two, as while one is replaced, the one that runs.
    agents.sort_by(|a, b| (&a.node, !a.is_running).cmp(&(&b.node, !b.is_running)));
    agents.dedup_by(|later, first| later.node == first.node);
    agents
}

/// Returns the agents of these nodes, or all of them if none is named.
fn chosen(agents: Vec<Agent>, nodes: &[String]) -> anyhow::Result<Vec<Agent>> {
    if nodes.is_empty() {
        return Ok(agents);
    }
    for node in nodes {
        if !agents.iter().any(|agent| agent.node == *node) {
            let known: Vec<&str> = agents.iter().map(|agent| agent.node.as_str()).collect();
            bail!(
                "no agent is on node {node}: they are on {}",
                known.join(", ")
            );
        }
    }
    let mut agents = agents;
    agents.retain(|agent| nodes.contains(&agent.node));
    Ok(agents)
}

/// Returns the call of `ebbtidectl` in an agent's pod.
fn call(
    cli: &Cli,
    cluster: &Cluster,
    asked: &super::Cli,
    agent: &Agent,
) -> anyhow::Result<Process> {
    let mut command = cluster.kubectl()?.command();
    command.args(["exec", "-n", &cluster.agents, &agent.pod, "-c", "agent"]);
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && asked.command.lasts() {
        // With a terminal of its own the command ends with this one.
        command.arg("-it");
    }
    command.args(["--", "ebbtidectl"]).args(&cli.command);
    Ok(command)
}

/// Runs the command on one node, with this terminal.
fn follow(mut call: Process) -> anyhow::Result<ExitCode> {
    let status = call.status().context("run kubectl")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Runs the command on each node, some at once, and prints the answers in the order of the nodes.
fn each(
    asked: &super::Cli,
    agents: &[Agent],
    call: impl Fn(&Agent) -> anyhow::Result<Process> + Sync,
) -> anyhow::Result<ExitCode> {
    let is_json = asked.output == Output::Json;
    let mut answers = Map::new();
    let mut is_well = true;
    for some in agents.chunks(AT_ONCE) {
        let outputs = some_at_once(some, |agent| match agent.is_running {
            true => Ok(call(agent)?.output().context("run kubectl")?),
            false => bail!("its agent {} does not run", agent.pod),
        });
        for (agent, output) in some.iter().zip(outputs) {
            let output = match output {
                Ok(output) => output,
                Err(e) => {
                    say(&format!("{}: {e:#}", agent.node));
                    is_well = false;
                    continue;
                }
            };
            is_well &= output.status.success();
            for line in String::from_utf8_lossy(&output.stderr).lines() {
                say(&format!("{}: {line}", agent.node));
            }
            if !is_json {
                let said = String::from_utf8_lossy(&output.stdout);
                show(&format!("==> {} <==\n{said}\n", agent.node))?;
            } else if let Some(value) = document(&output.stdout) {
                answers.insert(agent.node.clone(), value);
            }
        }
    }
    if is_json {
        show(&format!("{:#}\n", Value::Object(answers)))?;
    }
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Returns the JSON document that a node printed. What is none (of an agent that does not answer it is empty) must not come
/// between the braces of the whole answer: it is said on standard error.
fn document(printed: &[u8]) -> Option<Value> {
    let parsed = serde_json::from_slice(printed);
    if parsed.is_err() && !printed.trim_ascii().is_empty() {
        say(&String::from_utf8_lossy(printed));
    }
    parsed.ok()
}

fn show(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    terminal::print(&mut out, &printable_lines(text), ExitCode::SUCCESS)?;
    Ok(())
}

fn say(text: &str) {
    let _closed = writeln!(
        std::io::stderr().lock(),
        "kubectl ebbtide: {}",
        printable(text)
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_document_does_not_come_into_one() {
        assert_eq!(document(b"{\"a\": 1}\n"), Some(json!({"a": 1})));
        for printed in [&b""[..], b"\n", b"command terminated with exit code 1\n"] {
            assert_eq!(document(printed), None);
        }
    }

    fn agent(node: &str, pod: &str, is_running: bool) -> Agent {
        Agent {
            node: node.into(),
            pod: pod.into(),
            is_running,
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn each_node_has_one_agent_and_the_one_that_runs_counts() {
        let pod = |name: &str, node: Option<&str>, phase: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": node}, "status": {"phase": phase}});
        let mut ending = pod("d", Some("n2"), "Running");
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let list = json!({"items": [
            ending,
            pod("c", Some("n2"), "Pending"),
            pod("b", Some("n2"), "Running"),
            pod("a", Some("n1"), "Running"),
            pod("e", None, "Pending"),
            pod("f", Some("n3"), "Pending"),
        ]});
        assert_eq!(
            read(&list),
            [
                agent("n1", "a", true),
                agent("n2", "b", true),
                agent("n3", "f", false)
            ]
        );
        assert!(read(&json!({"kind": "Status"})).is_empty());
    }

    #[test]
    fn a_node_without_an_agent_is_named_with_those_that_have_one() {
        let all = vec![agent("n1", "a", true), agent("n2", "b", true)];
        assert_eq!(chosen(all.clone(), &[]).unwrap(), all);
        assert_eq!(chosen(all.clone(), &words("n2")).unwrap(), all[1..]);
        let error = chosen(all, &words("n2 n3")).unwrap_err().to_string();
        assert_eq!(error, "no agent is on node n3: they are on n1, n2");
    }

    #[test]
    fn commands_that_last_and_those_that_print_json_are_known() {
        for (command, does_last, output) in [
            ("status", false, Output::Text),
            ("-o json status", false, Output::Json),
            ("status --output=json", false, Output::Json),
            ("trace a/b", true, Output::Text),
            ("-ojson trace a/b", true, Output::Json),
            ("flows --node --watch", true, Output::Text),
            ("flows --node", false, Output::Text),
            ("explain trace", false, Output::Text),
        ] {
            let asked = asked(&words(command)).unwrap();
            assert_eq!(asked.command.lasts(), does_last, "{command}");
            assert!(asked.output == output, "{command}");
        }
        let error = asked(&words("statsu")).err().unwrap().to_string();
        assert!(
            error.contains("statsu") && error.contains("kubectl ebbtide"),
            "{error}"
        );
    }

    #[test]
    fn options_before_the_command_are_the_plugins_and_those_after_it_are_the_commands() {
        let cli = Cli::parse_from(words("kubectl-ebbtide --node n1 flows --watch --node x"));
        assert_eq!(cli.node, ["n1"]);
        assert_eq!(cli.command, words("flows --watch --node x"));
    }
}
