//! The runtime's trace through the real plugin and the real agent: into the log, into another plugin's environment, and
//! to a collector.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::chain;
use ebbtide_vpc::{cni::Sandbox, lab::Lab, netns::Netns, patience::eventually, plan::Plan};
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE: &str = "master";
const COLLECTOR: &str = "127.0.0.1:4318";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// A double of an IPAM plugin: it writes down what it is told, and gives the address of the test.
const SPY: &str = r#"#!/bin/sh
cat > /dev/null
env > "$(dirname "$0")/told.$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion": "1.0.0", "ips": [{"address": "172.31.16.4/20"}]}'
"#;

/// A double of a collector: it keeps what is posted, and says thanks.
#[derive(Clone, Default)]
struct OtlpDouble(Arc<Mutex<Vec<Value>>>);

impl OtlpDouble {
    fn start(node: &Netns) -> Result<Self> {
        let listener = node.run(|| Ok(TcpListener::bind(COLLECTOR)?))?;
        let double = Self::default();
        let own = double.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(body) = take(stream) {
                    own.0
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(body);
                }
            }
        });
        Ok(double)
    }

    fn spans(&self) -> Vec<Value> {
        let posted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spans = posted
            .iter()
            .map(|body| &body["resourceSpans"][0]["scopeSpans"][0]["spans"]);
        spans
            .filter_map(Value::as_array)
            .flatten()
            .cloned()
            .collect()
    }
}

/// Takes one request, and answers it.
fn take(stream: TcpStream) -> Result<Value> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("POST /v1/traces HTTP/1.1"), "{line}");
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let header = line.trim().to_ascii_lowercase();
        if let Some(found) = header.strip_prefix("content-length:") {
            length = found.trim().parse()?;
        }
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    reader.get_mut().write_all(answer.as_bytes())?;
    Ok(serde_json::from_slice(&body)?)
}

/// Calls the plugin with a network whose addresses the spy gives, and returns what the spy was told of the trace.
fn told(lab: &mut Lab, command: &str, traceparent: &str) -> Result<Vec<String>> {
    let spy = TempDir::with_prefix("ebbtide-spy-")?;
    let program = spy.path().join("spy");
    fs::write(&program, SPY)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let plugin = lab.agent(NODE).plugin();
    let netns = Netns::new("traced")?;
    let sandbox = Sandbox::new(&netns, "traced", "traced");
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "traced",
        "type": "ebbtide",
        "master": "ens5",
        "agentSocket": plugin.socket(),
        "ipam": {"type": "spy"},
    });
    let variables = [
        ("CNI_PATH", spy.path().as_os_str()),
        ("TRACEPARENT", OsStr::new(traceparent)),
        ("TRACESTATE", OsStr::new("v=1")),
    ];
    // Whether this kernel has ipvlan does not matter: the spy was asked before.
    let _made = plugin.call_with(
        command,
        Some(&sandbox),
        config.to_string().as_bytes(),
        &variables,
    )?;
    let said = fs::read_to_string(spy.path().join(format!("told.{command}")));
    let said = said.with_context(|| format!("the spy was not asked\n{}", lab.logs()))?;
    let mut said: Vec<String> = said
        .lines()
        .filter(|line| line.starts_with("TRACE"))
        .map(str::to_owned)
        .collect();
    said.sort();
    Ok(said)
}

#[test]
fn without_a_collector_the_log_has_the_runtime_s_trace_and_other_plugins_are_told_of_it()
-> Result<()> {
    let mut lab = chain::lab()?;
    let valid = format!("00-{TRACE}-{SPAN}-01");
    // CHECK is of an interface, and not every kernel can make one here.
    for command in ["ADD", "DEL"] {
        let told = told(&mut lab, command, &valid)?;
        let expected = [format!("TRACEPARENT={valid}"), "TRACESTATE=v=1".to_owned()];
        ensure!(told == expected, "{command}: {told:?}");
    }
    for bad in [
        "",
        "nonsense",
        &valid.to_uppercase(),
        &valid.replace("00-0", "ff-0"),
    ] {
        let told = told(&mut lab, "DEL", bad)?;
        ensure!(told.is_empty(), "{bad:?}: {told:?}");
    }
    let log = lab.agent(NODE).log();
    let ours = log
        .lines()
        .find(|line| line.contains("command=ADD"))
        .with_context(|| log.clone())?;
    for field in [format!("trace_id={TRACE}"), format!("parent_id={SPAN}")] {
        ensure!(ours.contains(&field), "{ours}");
    }
    ensure!(!ours.contains("span_id="), "{ours}");
    Ok(())
}

#[test]
fn a_collector_gets_the_request_and_its_steps_under_the_runtime_s_span() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    lab.prepare_agents(chain::OTHERS, "")?;
    let node = lab.vpc.node(NODE).clone();
    let collector = OtlpDouble::start(&node)?;
    let agent = lab.agent(NODE);
    agent.set_variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        &format!("http://{COLLECTOR}"),
    );
    agent.launch()?;
    agent.wait_ready()?;
    let told = told(&mut lab, "ADD", &format!("00-{TRACE}-{SPAN}-01"))?;
    let spans = eventually("the collector has spans", || {
        let spans = collector.spans();
        ensure!(!spans.is_empty(), "none");
        Ok(spans)
    })?;
    let whole = spans.iter().find(|span| span["name"] == "CNI ADD");
    let whole = whole.with_context(|| format!("{spans:#?}"))?;
    ensure!(
        whole["traceId"] == TRACE && whole["parentSpanId"] == SPAN,
        "{whole:#}"
    );
    let own = whole["spanId"].as_str().context("an ID")?;
    ensure!(
        told[0] == format!("TRACEPARENT=00-{TRACE}-{own}-01"),
        "{told:?}, and the agent's span is {own}"
    );
    let mut steps = spans.iter().filter(|span| span["parentSpanId"] == own);
    ensure!(steps.all(|step| step["traceId"] == TRACE), "{spans:#?}");
    let step = spans.iter().find(|span| span["name"] == "write to disk");
    ensure!(
        step.is_some_and(|step| step["parentSpanId"] == own),
        "{spans:#?}"
    );
    let log = lab.agent(NODE).log();
    ensure!(log.contains(&format!("span_id={own}")), "{log}");
    Ok(())
}
