//! `ebbtidectl flows` and `trace`: the remembered flows, and the decision of each program.

use anyhow::{Context as _, Result, ensure};
use ebbtide_demo::{Check, Scenario, Transport};
use ebbtide_vpc::{agent::Agent, lab::Lab, plan::Plan};
use serde_json::Value;

/// Returns a row of the table of traffic, with UDP or TCP only.
fn row(
    scenario: &Scenario,
    traffic: &str,
    from: &str,
    to: &str,
    transports: &'static [Transport],
) -> Result<Check> {
    let mut checks = scenario.checks().into_iter();
    let row = checks.find(|c| c.traffic == traffic && c.from.starts_with(from) && c.to == to);
    Ok(Check {
        transports,
        ..row.with_context(|| format!("the table has no row {traffic}: {from} → {to}"))?
    })
}

fn node_port(scenario: &Scenario, transports: &'static [Transport]) -> Result<Check> {
    let to = "NodePort at ens5 → c master/ens6";
    row(
        scenario,
        "NodePort, policy Local",
        "outside",
        to,
        transports,
    )
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

#[test]
fn flows_tells_what_is_remembered_for_a_pod_and_in_the_host() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let plain = row(
        &scenario,
        "pod → ClusterIP, not masqueraded",
        "c",
        "ClusterIP of d worker1/ens5",
        &[Transport::Tcp],
    )?;
    for check in [node_port(&scenario, &[Transport::Udp])?, plain] {
        let line = check.run(&lab, false);
        ensure!(line.ok, "{line:#?}");
    }
    let agent = lab.agent("master");
    let of_pod = agent.control_json(&["flows", "c"])?;
    let of_node = agent.control_json(&["flows", "--node"])?;
    let flows = |answer: &Value, place: &str| -> Vec<Value> {
        let all = answer["flows"].as_array().cloned().unwrap_or_default();
        all.into_iter()
            .filter(|flow| text(flow, "place") == place)
            .collect()
    };
    let client = Plan::client(ebbtide_vpc::plan::Family::V4).to_string();
    let udp_of_client =
        |flow: &Value| text(flow, "protocol") == "udp" && text(flow, "remote").starts_with(&client);
    for answer in [&of_pod, &of_node] {
        let requests = flows(answer, "pod");
        let by_veth = |flow: &Value| text(flow, "cameIn") == "veth0" && text(flow, "nic") == "ens5";
        ensure!(
            requests.iter().any(|f| udp_of_client(f) && by_veth(f)),
            "{answer:#}"
        );
        let forwarded = flows(answer, "forwarded");
        ensure!(
            forwarded
                .iter()
                .any(|f| text(f, "protocol") == "tcp" && text(f, "leavesBy") == "ens6"),
            "{answer:#}"
        );
        for flow in requests.iter().chain(&forwarded) {
            ensure!(
                flow["age"].as_u64().is_some_and(|age| age < 600),
                "{flow:#}"
            );
        }
    }
    let cut = agent.control_json(&["flows", "--node", "--limit", "1"])?;
    ensure!(
        cut["flows"].as_array().is_some_and(|f| f.len() == 1),
        "{cut:#}"
    );
    ensure!(cut["total"].as_u64() > Some(1), "{cut:#}");
    scenario.delete()
}

/// Runs a trace while `request` is repeated, until the trace ends.
fn traced(
    agent: &Agent,
    arguments: &[&str],
    request: impl Fn() -> Result<()>,
) -> Result<Vec<Value>> {
    let arguments = [&["trace", "c", "-o", "json"], arguments].concat();
    let output = std::thread::scope(|scope| {
        let trace = scope.spawn(|| agent.control(&arguments));
        // The trace has a time limit, so this ends. How long it takes to begin depends on the machine.
        while !trace.is_finished() {
            request()?;
        }
        trace
            .join()
            .map_err(|_| anyhow::anyhow!("the trace panicked"))?
    })?;
    output
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

#[test]
fn trace_tells_the_decisions_on_a_node_port_request_and_its_reply() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    // Started here, so that the lab can be borrowed by the requests.
    let client = Plan::client(ebbtide_vpc::plan::Family::V4).to_string();
    for (proto, transports) in [
        ("udp", &[Transport::Udp] as &'static [Transport]),
        ("tcp", &[Transport::Tcp]),
    ] {
        let check = node_port(&scenario, transports)?;
        let request = || {
            let line = check.run(&lab, false);
            ensure!(line.ok, "while traced: {line:#?}");
            Ok(())
        };
        let agent = lab.agents().find(|agent| agent.node() == "master");
        let agent = agent.context("no agent on master")?;
        let lines = traced(
            agent,
            &["--proto", proto, "--peer", &client, "--count", "60"],
            request,
        )?;
        ensure!(lines.len() == 60, "{} lines", lines.len());
        let told = |program: &str, interface: &str, verdict: &str, reason: &str| {
            lines.iter().any(|line| {
                text(line, "program") == program
                    && text(line, "interface") == interface
                    && text(line, "verdict") == verdict
                    && text(line, "reason").contains(reason)
                    && text(line, "protocol") == proto
            })
        };
        for (program, interface, verdict, reason) in [
            ("host_nic_ingress", "ens5", "pass", "marked with ens5"),
            ("veth_ingress", "veth0", "pass", "marked"),
            ("nic_egress", "eth0", "redirect", "sent back"),
        ] {
            ensure!(
                told(program, interface, verdict, reason),
                "{proto}: {program} {interface} {verdict} {reason}: {lines:#?}"
            );
        }
        ensure!(
            lines
                .iter()
                .any(|line| text(line, "program") == "host_veth_ingress"
                    && text(line, "reason").contains("by ens5")),
            "{lines:#?}"
        );
        let marked = lines
            .iter()
            .filter(|line| text(line, "program") == "veth_ingress")
            .all(|line| {
                line["markAfter"]
                    .as_u64()
                    .is_some_and(|mark| mark & 0x1000 != 0)
            });
        ensure!(marked, "{lines:#?}");
    }
    // The normal programs are attached again and work, even if the agent dies meanwhile.
    let check = node_port(&scenario, &[Transport::Udp, Transport::Tcp])?;
    let line = check.run(&lab, false);
    ensure!(line.ok, "after the trace: {line:#?}");
    let agent = lab.agent("master");
    let unknown = agent.control(&["trace", "nobody"]).unwrap_err().to_string();
    ensure!(unknown.contains("no pod nobody"), "{unknown}");
    scenario.delete()
}

#[test]
fn a_trace_ends_with_the_agent_and_another_can_begin() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let agent = lab.agent("master");
    agent.control(&["trace", "c", "--duration", "1"])?;
    agent.control(&["trace", "c", "--duration", "1"])?;
    agent.stop()?;
    agent.launch()?;
    agent.wait_ready()?;
    let line = node_port(&scenario, &[Transport::Udp])?.run(&lab, false);
    ensure!(line.ok, "{line:#?}");
    scenario.delete()
}
