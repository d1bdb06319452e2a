use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use ebbtide_plugin::wire::Invocation;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use serde::Deserialize;
use tokio::net::TcpListener;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// A double of a collector: it takes what the specification describes, and nothing else.
struct OtlpDouble {
    url: String,
    received: Arc<Mutex<Vec<Export>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Export {
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceSpans {
    resource: Attributed,
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attributed {
    attributes: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attribute {
    key: String,
    value: Text,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    string_value: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeSpans {
    scope: Scope,
    spans: Vec<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scope {
    name: String,
    version: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Span {
    trace_id: String,
    span_id: String,
    #[serde(default)]
    parent_span_id: String,
    #[serde(default)]
    trace_state: String,
    flags: u32,
    name: String,
    kind: u32,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    #[serde(default)]
    attributes: Vec<serde_json::Value>,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Status {
    code: u32,
    message: String,
}

impl Span {
    fn times(&self) -> (u128, u128) {
        let read = |text: &str| text.parse().unwrap();
        (
            read(&self.start_time_unix_nano),
            read(&self.end_time_unix_nano),
        )
    }

    /// As the specification has IDs in JSON.
    fn ids_are_valid(&self) -> bool {
        let is_id = |id: &str, digits| {
            id.len() == digits
                && id.chars().all(|c| c.is_ascii_hexdigit())
                && id.chars().any(|c| c != '0')
        };
        is_id(&self.trace_id, 32) && is_id(&self.span_id, 16)
    }
}

impl OtlpDouble {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sink = Arc::clone(&sink);
                let take = service_fn(move |request: Request<Incoming>| {
                    let sink = Arc::clone(&sink);
                    async move {
                        assert_eq!(request.method(), "POST");
                        assert_eq!(request.uri().path(), "/v1/traces");
                        assert_eq!(request.headers()["content-type"], "application/json");
                        assert_eq!(request.headers()["api-key"], "s");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let export = serde_json::from_slice(&body).unwrap();
                        sink.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(export);
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer))))
                    }
                });
                let io = TokioIo::new(stream);
                let serving = hyper::server::conn::http1::Builder::new().serve_connection(io, take);
                let _ = serving.await;
            }
        });
        Self { url, received }
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let all = received.iter().flat_map(|export| &export.resource_spans);
        let all = all.flat_map(|of| &of.scope_spans);
        all.flat_map(|of| of.spans.clone()).collect()
    }
}

fn traces(url: &str, sampler: &str) -> Traces {
    let (options, troubles) = Options::read("node-1", false, |name| {
        let value = match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => url,
            "OTEL_EXPORTER_OTLP_HEADERS" => "api-key=s",
            "OTEL_TRACES_SAMPLER" => sampler,
            _ => return None,
        };
        Some(value.to_owned())
    });
    assert_eq!(troubles, [""; 0]);
    Traces {
        exporter: options.map(Exporter::start),
    }
}

fn invocation(command: &str, traceparent: &str) -> Invocation {
    Invocation {
        command: command.into(),
        container_id: "c1".into(),
        if_name: "eth0".into(),
        args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web".into(),
        traceparent: traceparent.into(),
        tracestate: "v=1".into(),
        ..Invocation::default()
    }
}

fn steps() -> [Step; 3] {
    [
        ("write to disk", 10, 2000),
        ("make the links", 2010, 500),
        ("all", 0, 3000),
    ]
    .map(|(name, start, took)| Step {
        name,
        start: Duration::from_micros(start),
        took: Duration::from_micros(took),
    })
}

#[tokio::test]
async fn a_request_and_its_steps_arrive_as_a_part_of_the_runtime_s_trace() {
    let collector = OtlpDouble::start("{}").await;
    let traces = traces(&collector.url, "");
    let asked = invocation("ADD", &format!("00-{TRACE}-{SPAN}-01"));
    let traced = traces.begin(&asked);
    assert_eq!(traced.trace_id().as_deref(), Some(TRACE));
    assert_eq!(traced.parent_id().as_deref(), Some(SPAN));
    let own = traced.span_id().unwrap();
    let told = traced.scope(&asked, async { told() }).await;
    let failure = Failure::new(11, "no address", "wait");
    traced.end(&asked, Some(&failure), &steps());
    traces.flush().await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 3, "{spans:?}");
    for span in &spans {
        assert!(span.ids_are_valid(), "{span:?}");
        assert_eq!(span.trace_id, TRACE);
        assert_eq!(span.trace_state, "v=1");
        assert_eq!(span.flags & 0xff, 1);
    }
    let whole = &spans[0];
    assert_eq!((whole.name.as_str(), whole.kind), ("CNI ADD", 2));
    assert_eq!(
        (&whole.span_id, whole.parent_span_id.as_str()),
        (&own, SPAN)
    );
    assert_eq!(
        (whole.status.code, whole.status.message.as_str()),
        (2, "no address")
    );
    let attributes = serde_json::to_string(&whole.attributes).unwrap();
    for (key, value) in [
        ("k8s.pod.name", "web"),
        ("k8s.namespace.name", "default"),
        ("container.id", "c1"),
        ("error.type", "11"),
    ] {
        let one = format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#);
        assert!(attributes.contains(&one), "{attributes}");
    }
    let (begin, end) = whole.times();
    assert_eq!(end - begin, 3_000_000);
    for (span, step) in spans[1..].iter().zip(steps()) {
        assert_eq!((span.name.as_str(), span.kind), (step.name, 1));
        assert_eq!(span.parent_span_id, own);
        assert_ne!(span.span_id, own);
        let (from, to) = span.times();
        assert_eq!(from - begin, step.start.as_nanos());
        assert_eq!(to - from, step.took.as_nanos());
        assert_eq!(span.status.code, 0);
    }
    // Other plugins are children of the agent's span.
    let expected = [
        ("TRACEPARENT", format!("00-{TRACE}-{own}-01")),
        ("TRACESTATE", "v=1".to_owned()),
    ];
    assert_eq!(*told, expected);
    let received = collector.received.lock().unwrap();
    let of = &received[0].resource_spans[0];
    let resource: Vec<_> = of
        .resource
        .attributes
        .iter()
        .map(|one| (one.key.as_str(), one.value.string_value.as_str()))
        .collect();
    assert!(
        resource.contains(&("service.name", "ebbtide-agent")),
        "{resource:?}"
    );
    assert!(resource.contains(&("host.name", "node-1")), "{resource:?}");
    let scope = &of.scope_spans[0].scope;
    assert_eq!(
        (scope.name.as_str(), scope.version.as_str()),
        ("ebbtide-agent", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn who_decides_what_is_exported_and_what_other_plugins_are_told() {
    let sampled = format!("00-{TRACE}-{SPAN}-01");
    let not_sampled = format!("00-{TRACE}-{SPAN}-00");
    let newer = format!("01-{TRACE}-{SPAN}-00-more");
    let bad = format!("00-{TRACE}-{}-01", "0".repeat(16));
    let collector = OtlpDouble::start("{}").await;
    let off = Traces::default();
    let usual = traces(&collector.url, "");
    let never = traces(&collector.url, "parentbased_always_off");
    let always = traces(&collector.url, "always_on");
    // Whether the other plugins are told of a span of the agent's; without one, what they are told instead.
    enum Told<'t> {
        Own,
        As(&'t str),
        Nothing,
    }
    use Told::{As, Nothing, Own};
    for (traces, command, traceparent, expected) in [
        (&off, "ADD", &sampled, As(&sampled)),
        (&off, "ADD", &not_sampled, As(&not_sampled)),
        (&off, "ADD", &newer, As(&newer)),
        (&off, "ADD", &bad, Nothing),
        (&off, "ADD", &String::new(), Nothing),
        (&usual, "ADD", &sampled, Own),
        (&usual, "STATUS", &sampled, Own),
        (&usual, "ADD", &not_sampled, As(&not_sampled)),
        (&usual, "ADD", &bad, Own),
        (&usual, "DEL", &String::new(), Own),
        (&usual, "STATUS", &String::new(), Nothing),
        (&never, "ADD", &sampled, Own),
        (&never, "ADD", &String::new(), Nothing),
        (&always, "ADD", &not_sampled, Own),
    ] {
        let asked = invocation(command, traceparent);
        let traced = traces.begin(&asked);
        let told = traced.scope(&asked, async { told() }).await;
        let parent = told.iter().find(|(name, _)| *name == "TRACEPARENT");
        let parent = parent.map(|(_, value)| value.clone());
        let own = traced.span_id();
        match expected {
            Own => {
                let parent = TraceParent::parse(&parent.unwrap()).unwrap();
                assert_eq!(Some(format!("{:016x}", parent.span_id)), own);
                assert!(parent.is_sampled);
            }
            As(text) => assert_eq!((parent.as_deref(), own), (Some(text), None)),
            Nothing => assert_eq!((parent, own), (None, None)),
        }
        let has_state = told.iter().any(|(name, _)| *name == "TRACESTATE");
        let has_parent = TraceParent::parse(traceparent).is_some();
        assert_eq!(has_state, has_parent, "{command} {traceparent}");
        assert_eq!(traced.parent_id().is_some(), has_parent);
    }
    assert_eq!(*told(), [], "outside of a request there is no trace");
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines(&self, of: &str) -> usize {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(of)).count()
    }
}

#[tokio::test]
async fn a_collector_that_takes_nothing_costs_one_warning_and_no_request_waits() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    // Connections are made, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = (format!("http://{}", silent.local_addr().unwrap()), silent);
    let refusing =
        OtlpDouble::start(r#"{"partialSuccess":{"rejectedSpans":"2","errorMessage":"full"}}"#)
            .await;
    for (url, warnings) in [(&dead, 1), (&silent.0, 0), (&refusing.url, 1)] {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let traces = traces(url, "");
        let begin = std::time::Instant::now();
        for _ in 0..2 {
            // More than may wait.
            for _ in 0..2000 {
                let asked = invocation("ADD", "");
                let traced = traces.begin(&asked);
                traced.end(&asked, None, &steps());
            }
            traces.flush().await;
        }
        // Two flushes of a second at most; the rest takes no time.
        assert!(begin.elapsed() < Duration::from_secs(10), "{url}");
        assert_eq!(log.lines("takes no spans"), warnings, "{url}");
    }
}

proptest! {
    /// No text harms, and what is read is written so that others read the same.
    #[test]
    fn any_text_of_a_trace_is_read_or_not(
        text in prop_oneof![
            any::<String>(),
            "[0-9a-fA-F]{2}-[0-9a-fA-F]{30,33}-[0-9a-f]{15,17}-[0-9a-f]{1,3}(-.*)?",
            "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
        ],
    ) {
        let asked = invocation("ADD", &text);
        let traces = Traces::default();
        let traced = traces.begin(&asked);
        if let Some(parent) = TraceParent::parse(&text) {
            let shown = parent.to_string();
            prop_assert_eq!(TraceParent::parse(&shown), Some(parent));
            prop_assert_eq!(&shown[3..52], &text[3..52]);
            prop_assert_eq!(traced.trace_id(), Some(text[3..35].to_owned()));
        } else {
            prop_assert_eq!(traced.trace_id(), None);
        }
    }
}
