//! `ebbtide`, the CNI plugin: sends its environment and standard input to the agent, and prints the
//! answer. See the CNI specification, "Section 2: Execution Protocol".

use std::{
    env,
    ffi::OsString,
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use ebbtide_plugin::{
    DEFAULT_SOCKET,
    cni::{CniError, Head, NEWEST, UNNAMED, VERSIONS, VersionResult, code},
    object::Object,
    trace_context::{TRACEPARENT, TRACESTATE, TraceParent, is_trace_state},
    wire::{self, Invocation, MAX_CONFIG, Request},
};

/// The agent's time limit. The kubelet gives a sandbox two minutes in all.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long STATUS waits for an agent that does not run. After a failed STATUS the kubelet reports
/// the node not ready, and Kubernetes removes all its pods from their Services: not for an agent
/// that is being replaced. The kubelet's own timeout for a runtime is 30 s.
const RESTART: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let command = variable_os("CNI_COMMAND");
    if command.is_empty() {
        return manual();
    }
    // Invalid UTF-8 is no command, either, and the agent reports that.
    let (exit, output) = match run(command.to_string_lossy().into_owned()) {
        Ok(answer) => answer,
        Err(error) => (1, serde_json::to_string(&error).unwrap_or_default()),
    };
    let mut stdout = io::stdout().lock();
    let printed = if output.is_empty() {
        Ok(())
    } else {
        writeln!(stdout, "{output}")
    };
    match printed {
        Ok(()) => ExitCode::from(exit),
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(command: String) -> Result<(u8, String), CniError> {
    let mut config = Vec::new();
    let read = io::stdin()
        .lock()
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut config);
    let fail = |version: &str, code, msg: String, details: &str| CniError {
        cni_version: version.to_owned(),
        code,
        msg,
        details: details.to_owned(),
    };
    if let Err(e) = read {
        return Err(fail(
            NEWEST,
            code::IO_FAILURE,
            format!("read the network configuration from standard input: {e}"),
            "the runtime must pipe JSON to the plugin",
        ));
    }
    if config.len() as u64 > MAX_CONFIG {
        return Err(fail(
            NEWEST,
            code::DECODING_FAILURE,
            format!(
                "the network configuration on standard input is longer than {MAX_CONFIG} bytes"
            ),
            "is it one? It has a few hundred bytes, and the results of the plugins before",
        ));
    }
    let config = String::from_utf8(config).map_err(|e| {
        fail(
            NEWEST,
            code::DECODING_FAILURE,
            format!("the network configuration on standard input is not UTF-8: {e}"),
            "it must be one JSON object, as the CNI specification describes",
        )
    })?;
    let head: Head = match serde_json::from_str(&config) {
        Ok(Object(head)) => head,
        // VERSION may be requested without a configuration.
        Err(_) if command == "VERSION" && config.trim().is_empty() => Head::default(),
        Err(e) => {
            return Err(fail(
                NEWEST,
                code::DECODING_FAILURE,
                format!("the network configuration on standard input is not valid: {e}"),
                "it must be one JSON object, as the CNI specification describes",
            ));
        }
    };
    // Empty counts as absent.
    let given = |field: &Option<String>| field.clone().filter(|value| !value.trim().is_empty());
    let (version, socket) = (given(&head.cni_version), given(&head.agent_socket));
    let version = match command.as_str() {
        "VERSION" => version.as_deref().unwrap_or(NEWEST),
        _ => version.as_deref().unwrap_or(UNNAMED),
    };
    if command == "VERSION" {
        let result = VersionResult {
            cni_version: version,
            supported_versions: VERSIONS,
        };
        return Ok((0, serde_json::to_string(&result).unwrap_or_default()));
    }
    let socket = socket.as_deref().unwrap_or(DEFAULT_SOCKET);
    // Invalid UTF-8 must not make an ADD act for the wrong pod, or for none. It does not stop a DEL.
    let text = |name: &str| match variable_os(name).into_string() {
        Err(bytes) if command == "ADD" && name != "CNI_PATH" => Err(fail(
            version,
            code::INVALID_ENVIRONMENT,
            format!("{name}={bytes:?} is not UTF-8"),
            "the runtime must set it as the CNI specification says; nothing was made",
        )),
        Err(bytes) => Ok(bytes.to_string_lossy().into_owned()),
        Ok(text) => Ok(text),
    };
    // What is not valid is as good as absent.
    let traceparent = env::var(TRACEPARENT).ok();
    let traceparent = traceparent.filter(|text| TraceParent::parse(text).is_some());
    let tracestate = traceparent.as_ref().and(env::var(TRACESTATE).ok());
    let tracestate = tracestate.filter(|text| is_trace_state(text));
    let request = Request::Cni(Invocation {
        traceparent: traceparent.unwrap_or_default(),
        tracestate: tracestate.unwrap_or_default(),
        container_id: text("CNI_CONTAINERID")?,
        netns: text("CNI_NETNS")?,
        if_name: text("CNI_IFNAME")?,
        args: text("CNI_ARGS")?,
        path: text("CNI_PATH")?,
        command: command.clone(),
        config,
    });
    let start = Instant::now();
    let mut answer = wire::ask(Path::new(socket), &request, TIMEOUT);
    while command == "STATUS" && is_not_there(&answer) && start.elapsed() < RESTART {
        thread::sleep(Duration::from_millis(200));
        answer = wire::ask(Path::new(socket), &request, TIMEOUT);
    }
    match answer {
        Ok(response) => Ok((response.exit, response.output)),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(fail(
            version,
            code::DECODING_FAILURE,
            e.to_string(),
            "is the network configuration one? It has a few hundred bytes, and the results of the plugins before",
        )),
        Err(e) => Err(fail(
            version,
            if command == "STATUS" {
                code::NOT_AVAILABLE
            } else {
                code::TRY_AGAIN_LATER
            },
            format!("ask the ebbtide agent at {socket} to {command}: {e}"),
            "is ebbtide-agent running on this node, and is `agentSocket` in the network \
             configuration the socket it listens on?",
        )),
    }
}

/// Whether nothing listens on the socket.
fn is_not_there<T>(answer: &io::Result<T>) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(answer, Err(e) if matches!(e.kind(), ConnectionRefused | NotFound))
}

/// Returns an environment variable; empty if it is not set.
fn variable_os(name: &str) -> OsString {
    env::var_os(name).unwrap_or_default()
}

/// Prints help for a person who runs it by hand.
fn manual() -> ExitCode {
    let text = concat!(
        "ebbtide ",
        env!("CARGO_PKG_VERSION"),
        ", a CNI plugin (protocol versions 0.1.0 to 1.1.0)\n\n",
        "A container runtime runs it with CNI_COMMAND (ADD, DEL, CHECK, STATUS, GC, VERSION) and\n",
        "the other CNI_ variables set and a network configuration on standard input. It asks the\n",
        "node's ebbtide-agent over a Unix socket. To see the agent's work, use ebbtidectl.\n",
    );
    let asked = env::args()
        .nth(1)
        .is_some_and(|a| a == "--help" || a == "-h" || a == "--version");
    if asked {
        let printed = io::stdout().lock().write_all(text.as_bytes());
        return if printed.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let error = CniError {
        cni_version: NEWEST.to_owned(),
        code: code::INVALID_ENVIRONMENT,
        msg: "CNI_COMMAND is not set".to_owned(),
        details: text.to_owned(),
    };
    let json = serde_json::to_string(&error).unwrap_or_default();
    let _closed = writeln!(io::stdout().lock(), "{json}");
    ExitCode::FAILURE
}
