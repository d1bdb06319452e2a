//! `kubectl ebbtide connectivity`: whether everything reaches everything on a user's own nodes and NICs, and whether
//! replies leave by the right NIC.
//!
//! The plan is data ([`plan`]), made of nodes and networks ([`topology`]). Pods of the agents' own image ([`objects`]) ask
//! each other and are asked ([`run`]); what they saw is judged ([`judge`], [`left_by`]) and told ([`report`], [`junit`]).

mod judge;
mod junit;
mod left_by;
mod live;
mod objects;
mod plan;
mod report;
mod run;
mod site;
mod topology;

use std::{
    fmt::Write as _,
    fs,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;

use self::{
    objects::Image,
    plan::{Check, TestPod},
    site::Site,
    topology::{Node, Topology},
};
use super::{
    Agent, Cli, agents,
    at_once::some_at_once,
    chosen,
    cluster::{ACCOUNTS, Cluster, NETWORKS, NODES, PODS, Which},
    nodes, say, show,
};
use crate::format::{Output, unix_now};

/// The exit status if rows failed, and if the test could not run.
const FAILED: u8 = 1;
const COULD_NOT_RUN: u8 = 2;

/// The options of the test.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Test this network: a SpiderMultusConfig of ipvlan, NAMESPACE/NAME. Can be given several times [default: all].
    #[arg(long, value_name = "NAMESPACE/NAME")]
    network: Vec<String>,
    /// A TCP server elsewhere that every pod can connect to.
    #[arg(long, value_name = "ADDRESS:PORT")]
    outside: Option<SocketAddr>,
    /// The pods' image [default: that of the agents].
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Print the plan and make nothing.
    #[arg(long)]
    dry_run: bool,
    /// Make pods and Services in this namespace, which exists, instead of in one of the test's own.
    #[arg(long, value_name = "NAMESPACE")]
    within: Option<String>,
    /// Leave pods and Services.
    #[arg(long)]
    keep: bool,
    /// Do not trace by which NIC replies leave: programs of the traced pods are replaced for some seconds.
    #[arg(long)]
    no_trace: bool,
    /// Write a report to attach to an issue: versions, nodes, NICs, all rows (Markdown).
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the rows as JUnit's XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// How often each exchange is tried.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    tries: u32,
    /// The time limit of one exchange, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    /// The time limit for the start of the pods, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    start_timeout: u64,
    /// Delete this ServiceAccount of the agents' namespace at the end: the rights of the test end with its account's token.
    #[arg(long, value_name = "NAME", hide = true)]
    ends_account: Option<String>,
}

/// Runs the test. The status is 0 if all is well, 1 if rows failed, 2 if it could not run.
pub(super) fn run(cli: &Cli, options: &Options, output: Output) -> ExitCode {
    let proved = prove(cli, options, output);
    end_account(&Cluster::of(cli), options.ends_account.as_deref());
    match proved {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(e) => {
            say(&format!("connectivity: {e:#}"));
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

/// Deletes the account of this test, if it has one of its own.
fn end_account(cluster: &Cluster, account: Option<&str>) {
    let Some(name) = account else { return };
    if let Err(e) = cluster.delete(ACCOUNTS, Some(&cluster.agents), name, false) {
        say(&format!(
            "connectivity: the account of the test may be left: {e:#}; kubectl -n {} delete serviceaccount {name}",
            cluster.agents
        ));
    }
}

fn prove(cli: &Cli, options: &Options, output: Output) -> anyhow::Result<bool> {
    let begin = Instant::now();
    let cluster = Cluster::of(cli);
    let agents = chosen(agents(&cluster)?, &nodes(cli, &cluster)?)?;
    progress(0, "nodes and networks");
    let (topology, mut notes) = look(&cluster, &agents, &options.network)?;
    let checks = plan::plan(&topology, options.outside);
    if options.dry_run {
        show(&planned(&topology, &checks, output)?)?;
        return Ok(true);
    }
    let image = image(&cluster, &agents, options)?;
    let kubernetes = cluster.version()?;
    let site = Site::new(cluster, options.within.as_deref(), &suffix(unix_now()));
    site.is_free()?;
    end_with_signals(&site, options)?;
    let seen = run::everything(&site, &topology, &checks, &image, options);
    if options.keep {
        notes.push(format!("the pods stay: {}", site.by_hand()));
    } else {
        progress(run::STEPS, "removing pods and Services");
        if let Err(e) = site.remove(true) {
            let note = format!("pods and Services may be left: {e:#}; {}", site.by_hand());
            // There may be no report.
            say(&note);
            notes.push(note);
        }
    }
    let seen = seen?;
    notes.extend(seen.notes);
    let mut report = report::Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kubernetes,
        image: image.name,
        ok: false,
        seconds: begin.elapsed().as_secs(),
        nodes: topology.nodes,
        networks: topology.networks,
        pods: seen.pods,
        notes,
        wrong_nic: seen.wrong_nic,
        rows: seen.rows,
    };
    report.finish();
    for (file, text) in [
        (&options.report, report.markdown()),
        (&options.junit, junit::xml(&report)),
    ] {
        if let Some(file) = file {
            fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        }
    }
    show(&match output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
        Output::Text => report.text(),
    })?;
    Ok(report.ok)
}

/// Returns five characters that another test has not, unless it began in the same second.
fn suffix(seconds: u64) -> String {
    const DIGITS: &[u8; 32] = b"bcdfghjklmnpqrstvwxz012345678967";
    let digit = |place: u32| {
        let index = usize::try_from(seconds >> (5 * place)).unwrap_or_default() % DIGITS.len();
        DIGITS.get(index).map_or('0', |digit| char::from(*digit))
    };
    (0..5).map(digit).collect()
}

/// Asks API server and agents for nodes, NICs and networks. Returns what is left out as well.
fn look(
    cluster: &Cluster,
    agents: &[Agent],
    asked: &[String],
) -> anyhow::Result<(Topology, Vec<String>)> {
    let mut notes = Vec::new();
    let mut nodes = Vec::new();
    let objects = cluster.get(NODES, None, Which::All).context("list nodes")?;
    let objects = objects["items"].as_array().cloned().unwrap_or_default();
    let running: Vec<&Agent> = agents.iter().filter(|agent| agent.is_running).collect();
    for agent in agents.iter().filter(|agent| !agent.is_running) {
        notes.push(format!(
            "{} is left out: its agent {} does not run",
            agent.node, agent.pod
        ));
    }
    let told = some_at_once(&running, |agent| {
        let nics = cluster.ebbtidectl(&agent.pod, &["nics"])?;
        let status: ebbtide_agent::query::Status = cluster.ebbtidectl(&agent.pod, &["status"])?;
        Ok((topology::nics(nics), status.version))
    });
    for (agent, told) in running.iter().zip(told) {
        let mut objects = objects.iter();
        let object = objects.find(|object| object["metadata"]["name"] == agent.node.as_str());
        let Some(object) = object else {
            notes.push(format!("{} is left out: there is no such node", agent.node));
            continue;
        };
        let (nics, version) =
            told.with_context(|| format!("ask the agent of {} for its NICs", agent.node))?;
        nodes.push(Node {
            nics,
            version,
            ..Node::read(object, &agent.pod)
        });
    }
    let networks = cluster
        .get(NETWORKS, None, Which::All)
        .context("list networks")?;
    let networks = topology::chosen(topology::networks(&networks), asked);
    let networks = networks.map_err(anyhow::Error::msg)?;
    let topology = Topology { nodes, networks };
    if plan::pods(&topology).is_empty() {
        bail!("no network of ipvlan (SpiderMultusConfig) is on a NIC of a node whose agent runs");
    }
    Ok((topology, notes))
}

/// Returns the image of the agents, unless another one is asked for.
fn image(cluster: &Cluster, agents: &[Agent], options: &Options) -> anyhow::Result<Image> {
    let agent = agents.iter().find(|agent| agent.is_running);
    let agent = agent.context("no agent runs")?;
    let pod = cluster.get(PODS, Some(&cluster.agents), Which::Named(&agent.pod))?;
    let containers = pod["spec"]["containers"].as_array();
    let mut containers = containers.into_iter().flatten();
    let container = containers.find(|each| each["name"] == "agent");
    let container = container.with_context(|| format!("{} has no container agent", agent.pod))?;
    let text = |key: &str| container[key].as_str().map(str::to_owned);
    Ok(Image {
        name: options
            .image
            .clone()
            .or_else(|| text("image"))
            .context("the agents have no image")?,
        pull_policy: text("imagePullPolicy").unwrap_or_else(|| "IfNotPresent".to_owned()),
    })
}

/// Has SIGINT, SIGTERM and SIGHUP remove what was made before they end this program.
///
/// They are blocked in every thread, and in kubectl, which would otherwise end before it has removed anything.
fn end_with_signals(site: &Site, options: &Options) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    let (site, keep, account) = (site.clone(), options.keep, options.ends_account.clone());
    thread::spawn(move || {
        if signals.wait().is_err() {
            return;
        }
        if !keep {
            say("connectivity: interrupted: pods and Services are removed");
            if let Err(e) = site.remove(false) {
                say(&format!("connectivity: {e:#}; {}", site.by_hand()));
            }
        }
        end_account(&site.cluster, account.as_deref());
        std::process::exit(COULD_NOT_RUN.into());
    });
    Ok(())
}

/// Formats the plan.
fn planned(topology: &Topology, checks: &[Check], output: Output) -> anyhow::Result<String> {
    let pods: Vec<TestPod> = plan::pods(topology);
    let traces = plan::traces(topology);
    if output == Output::Json {
        let value = json!({"nodes": topology.nodes, "networks": topology.networks, "pods": pods, "checks": checks, "traces": traces});
        return Ok(format!("{}\n", serde_json::to_string_pretty(&value)?));
    }
    let mut text = format!("{} pods:\n", pods.len());
    for pod in &pods {
        let _infallible = writeln!(text, "  {pod}");
    }
    let _infallible = writeln!(
        text,
        "{} checks (those of a family that pods or Services have not are left out):",
        checks.len()
    );
    for check in checks {
        let (title, family) = (check.group.title(), check.family.name());
        let (protocol, from, to) = (check.protocol.name(), &check.from, &check.to);
        let _infallible = writeln!(text, "  {title}, {family}, {protocol}: {from} → {to}");
    }
    let _infallible = writeln!(text, "{} traces:", traces.len());
    for traced in &traces {
        let _infallible = writeln!(text, "  {}, asked by {}", traced.pod, traced.client);
    }
    Ok(text)
}

/// Says what is done now.
fn progress(step: usize, what: &str) {
    if std::io::stderr().is_terminal() {
        crate::sysdump::progress(step, run::STEPS, what);
        if step == run::STEPS {
            crate::sysdump::progress_ends();
        }
    } else {
        let _closed = writeln!(std::io::stderr().lock(), "[{step}/{}] {what}", run::STEPS);
    }
}

#[cfg(test)]
mod tests {
    use super::{plan::tests::topology, *};

    #[test]
    fn a_plan_is_told_in_full() {
        let topology = topology(2);
        let checks = plan::plan(&topology, None);
        let text = planned(&topology, &checks, Output::Text).unwrap();
        assert!(
            text.starts_with("4 pods:\n  pod of default/ipvlan-ens5 on n1\n"),
            "{text}"
        );
        let line = "  NodePort, policy Local, from nodes, IPv4, UDP: node n1 → NodePort of default/ipvlan-ens6 (Local) at 10.5.0.2 (ens5 of n2)\n";
        assert!(text.contains(line), "{text}");
        assert_eq!(text.lines().count(), 4 + checks.len() + 4 + 3);
        let json = planned(&topology, &checks, Output::Json).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["checks"].as_array().unwrap().len(), checks.len());
    }

    #[test]
    fn names_of_namespaces_differ_from_one_second_to_the_next() {
        assert_ne!(suffix(1_800_000_000), suffix(1_800_000_001));
        assert_eq!(suffix(1_800_000_000).len(), 5);
    }
}
