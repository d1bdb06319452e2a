//! The agent's metrics, as Debian's Prometheus and promtool read them, and its alerts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_tests::chained::ChainedInterface;
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    process::Process,
    scrape::{ADDRESS, Scrape, get},
    skip::{Need, skip},
    snapshot::ip,
    workspace::PROMETHEUS,
};
use tempfile::TempDir;

const NODE: &str = "master";

/// Where the test's Prometheus answers, in the node's namespace.
const PROMETHEUS_ADDRESS: &str = "127.0.0.1:19090";

/// How a scrape names the repair of a rule of the node's.
pub(crate) const REPAIRED: [&str; 2] = ["place=\"node\"", "object=\"rule\""];

/// Returns a program of Prometheus'; `None`, after a skip, without it.
fn program(name: &str) -> Option<PathBuf> {
    let found = PROMETHEUS.file(name);
    if let Err(e) = &found {
        skip(Need::Prometheus, format!("{e:#}"));
    }
    found.ok()
}

/// Removes the first of the agent's rules, as a person would.
pub(crate) fn remove_a_rule(node: &Netns) -> Result<()> {
    let rules = ip(node, &["-4", "rule", "show"])?;
    let mut priorities = rules.lines().filter_map(|line| line.split_once(':'));
    let ours = priorities.find(|(priority, _)| priority.len() == 4 && priority.starts_with("10"));
    let (priority, _) = ours.with_context(|| format!("no rule of the agent's: {rules}"))?;
    ip(node, &["-4", "rule", "del", "pref", priority]).map(drop)
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Runs a command with this input, and fails with what it printed.
fn run(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}: {said}",
        output.status
    );
    Ok(said)
}

#[test]
fn the_alerts_fire_at_what_they_are_for_and_at_nothing_else() -> Result<()> {
    let Some(promtool) = program("promtool") else {
        return Ok(());
    };
    let rules = in_repository("deploy/helm/ebbtide/files/alerts.yaml");
    let checked = run(
        Command::new(&promtool).args(["check", "rules"]).arg(&rules),
        "",
    )?;
    ensure!(checked.contains("SUCCESS"), "{checked}");
    let cases = in_repository("tests/tests/native/alerts.yaml");
    run(
        Command::new(&promtool).args(["test", "rules"]).arg(cases),
        "",
    )?;
    Ok(())
}

#[test]
fn a_scrape_is_what_promtool_expects_and_repairs_are_counted() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = ChainedInterface::on(&mut lab, NODE)?;
    let node = lab.vpc.node(NODE).clone();
    let before = Scrape::of(&node).with_context(|| lab.logs())?;
    ensure!(
        before.sum("ebbtide_interfaces", &["kind=\"chained\""]) == 1.0,
        "{}",
        before.text
    );
    ensure!(
        before.sum(
            "ebbtide_cni_requests_total",
            &["command=\"ADD\"", "code=\"0\""]
        ) == 1.0
    );
    ensure!(
        before.sum("ebbtide_repairs_total", &[]) == 0.0,
        "{}",
        before.text
    );
    remove_a_rule(&node)?;
    eventually("the repair is counted", || {
        let after = Scrape::of(&node)?;
        ensure!(
            after.sum("ebbtide_repairs_total", &REPAIRED) == 1.0,
            "{}",
            after.text
        );
        ensure!(
            after.sum("ebbtide_repairs_total", &[]) == 1.0,
            "{}",
            after.text
        );
        Ok(())
    })?;
    drop(pod);
    let Some(promtool) = program("promtool") else {
        return Ok(());
    };
    let text = Scrape::of(&node)?.text;
    let said = run(Command::new(promtool).args(["check", "metrics"]), &text)?;
    // It warns with status 0, too.
    ensure!(said.trim().is_empty(), "{said}");
    Ok(())
}

#[test]
fn paths_are_health_and_metrics_and_nothing_else() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE);
    for (path, status, said) in [
        ("/healthz", 200, "ok"),
        ("/readyz", 200, "ok"),
        ("/metrics", 200, "ebbtide_ready 1"),
        ("/debug", 404, "/metrics"),
    ] {
        let (found, body) = get(node, ADDRESS, path)?;
        ensure!(
            found == status && body.contains(said),
            "{path}: {found} {body}"
        );
    }
    // By default nobody else can ask.
    let own = lab
        .vpc
        .nic(NODE, "ens5")
        .primary(ebbtide_vpc::plan::Family::V4);
    ensure!(get(node, &format!("{own}:19464"), "/metrics").is_err());
    Ok(())
}

#[test]
fn a_port_that_another_process_has_keeps_no_pod_from_its_network() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let other = node.run(|| Ok(std::net::TcpListener::bind(ADDRESS)?))?;
    lab.start_agents()?;
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let (findings, _) = lab.agent(NODE).doctor()?;
    let told = findings
        .iter()
        .find(|finding| finding.what.contains(ADDRESS));
    let told = told.with_context(|| format!("{findings:?}"))?;
    ensure!(told.hint.contains("metrics.address"), "{told}");
    drop(other);
    eventually("it is served then", || Scrape::of(&node).map(drop))?;
    let (findings, _) = lab.agent(NODE).doctor()?;
    ensure!(
        !findings
            .iter()
            .any(|finding| finding.what.contains(ADDRESS)),
        "{findings:?}"
    );
    Ok(())
}

/// A Prometheus in a node's namespace that asks its agent every second.
struct Prometheus {
    process: Process,
    directory: TempDir,
    node: Netns,
}

impl Prometheus {
    fn start(program: &Path, node: &Netns) -> Result<Self> {
        let directory = TempDir::with_prefix("ebbtide-prometheus-")?;
        let rules = in_repository("deploy/helm/ebbtide/files/alerts.yaml").canonicalize()?;
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{}]\n\
             scrape_configs:\n\
             - {{job_name: ebbtide, static_configs: [{{targets: ['{ADDRESS}']}}]}}\n",
            rules.display()
        );
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, config)?;
        let mut command = node.command(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={PROMETHEUS_ADDRESS}"));
        let process = Process::start(command, &directory.path().join("log"))?;
        Ok(Self {
            process,
            directory,
            node: node.clone(),
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Returns what its API says of this path.
    fn ask(&self, path: &str) -> Result<serde_json::Value> {
        let (status, body) = get(&self.node, PROMETHEUS_ADDRESS, path)?;
        ensure!(status == 200, "{path}: {status} {body}");
        let start = body.find('{').context("no JSON")?;
        let end = body.rfind('}').context("no JSON")?;
        let body = body.get(start..=end).context("no JSON")?;
        Ok(serde_json::from_str(body)?)
    }

    /// Returns the names of alerts that fire.
    fn firing(&self) -> Result<Vec<String>> {
        let said = self.ask("/api/v1/alerts")?;
        let alerts = said["data"]["alerts"].as_array().context("no alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing
            .map(|alert| alert["labels"]["alertname"].to_string())
            .collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Its data goes away with it.
        let _ = self.process.kill();
    }
}

#[test]
fn prometheus_scrapes_an_agent_and_alerts_when_something_keeps_removing_a_rule() -> Result<()> {
    let Some(program) = program("prometheus") else {
        return Ok(());
    };
    let mut lab = Lab::start(Plan::default())?;
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let node = lab.vpc.node(NODE).clone();
    let prometheus = Prometheus::start(&program, &node)?;
    let healthy = || {
        let said = prometheus.ask("/api/v1/targets")?;
        let target = &said["data"]["activeTargets"][0];
        ensure!(target["health"] == "up", "{target}");
        Ok(())
    };
    eventually("it is scraped", healthy).with_context(|| prometheus.log())?;
    ensure!(prometheus.firing()?.is_empty(), "{:?}", prometheus.firing());
    for time in 1..=7 {
        remove_a_rule(&node)?;
        eventually("the repair is counted", || {
            let after = Scrape::of(&node)?;
            ensure!(after.sum("ebbtide_repairs_total", &REPAIRED) == f64::from(time));
            Ok(())
        })?;
        // Seen by a scrape.
        std::thread::sleep(Duration::from_millis(1100));
    }
    eventually("the alert fires", || {
        let firing = prometheus.firing()?;
        if !firing
            .iter()
            .any(|name| name.contains("EbbtideRepairsRepeating"))
        {
            let said = prometheus.ask("/api/v1/query?query=ebbtide_repairs_total")?;
            bail!("{firing:?} {said}");
        }
        ensure!(firing.len() == 1, "{firing:?}");
        Ok(())
    })
    .with_context(|| prometheus.log())
}
