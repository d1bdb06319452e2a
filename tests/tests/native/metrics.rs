//! The agent's metrics, as Debian's Prometheus and promtool read them, and its alerts.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_tests::{
    alert_rules::{in_repository, shipped},
    chained::ChainedInterface,
    prometheus::{Prometheus, program},
};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    scrape::{ADDRESS, Scrape, get},
    snapshot::ip,
};
const NODE: &str = "master";

/// Where the test's Prometheus answers, in the node's namespace.
const PROMETHEUS_ADDRESS: &str = "127.0.0.1:19090";

/// How a scrape names the repair of a rule of the node's.
pub(crate) const REPAIRED: [&str; 2] = ["place=\"node\"", "object=\"rule\""];

/// Removes the first of the agent's rules, as a person would.
pub(crate) fn remove_a_rule(node: &Netns) -> Result<()> {
    let rules = ip(node, &["-4", "rule", "show"])?;
    let mut priorities = rules.lines().filter_map(|line| line.split_once(':'));
    let ours = priorities.find(|(priority, _)| priority.len() == 4 && priority.starts_with("10"));
    let (priority, _) = ours.with_context(|| format!("no rule of the agent's: {rules}"))?;
    ip(node, &["-4", "rule", "del", "pref", priority]).map(drop)
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

#[test]
fn prometheus_scrapes_an_agent_and_alerts_when_something_keeps_removing_a_rule() -> Result<()> {
    let Some(program) = program("prometheus") else {
        return Ok(());
    };
    let mut lab = Lab::start(Plan::default())?;
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let node = lab.vpc.node(NODE).clone();
    let target = ("ebbtide", ADDRESS);
    let rules = shipped()?;
    let prometheus =
        Prometheus::start(&program, Some(&node), PROMETHEUS_ADDRESS, &[target], &rules)?;
    prometheus.wait()?;
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
            let said = prometheus.query("ebbtide_repairs_total")?;
            bail!("{firing:?} {said}");
        }
        ensure!(firing.len() == 1, "{firing:?}");
        Ok(())
    })
    .with_context(|| prometheus.log())
}
