//! Sends ended requests to a collector, in batches, beside all other work.

use std::time::Duration;

use ebbtide_plugin::trace_context::TraceParent;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::{TcpStream, lookup_host},
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{Ended, Options, options::Sampler, otlp};

/// The number of requests that may wait for the export. With a collector that does not answer it is a few MB at most.
const WAITING: usize = 1024;

/// The number of requests in one batch.
const BATCH: usize = 256;

/// How long the first request of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);

/// How long the agent's end waits for the export.
const END: Duration = Duration::from_secs(1);

/// The longest answer that is read.
const LONGEST: usize = 64 << 10;

/// The sending side.
#[derive(Debug)]
pub(super) struct Exporter {
    sampler: Sampler,
    sender: mpsc::Sender<Message>,
}

#[derive(Debug)]
enum Message {
    Ended(Box<Ended>),
    /// All before this is exported when it is answered.
    Flush(oneshot::Sender<()>),
}

impl Exporter {
    /// Starts the export, which ends with the runtime.
    pub(super) fn start(options: Options) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let sampler = options.sampler;
        info!(
            collector = options.endpoint.authority,
            "requests are exported as spans"
        );
        tokio::spawn(run(receiver, options));
        Self { sampler, sender }
    }

    /// Whether a request is exported.
    pub(super) fn samples(&self, parent: Option<TraceParent>, command: &str) -> bool {
        match parent {
            Some(parent) if self.sampler.by_parent => parent.is_sampled,
            Some(_) => self.sampler.others,
            // The runtime asks every few seconds: as a trace of its own it is noise.
            None => self.sampler.others && command != "STATUS",
        }
    }

    /// Takes a request, unless too many wait: then it is lost.
    pub(super) fn send(&self, ended: Ended) {
        let _lost = self.sender.try_send(Message::Ended(Box::new(ended)));
    }

    /// Waits until all has been exported, but not long.
    pub(super) async fn flush(&self) {
        let (done, waiting) = oneshot::channel();
        let flushed = async {
            if self.sender.send(Message::Flush(done)).await.is_ok() {
                let _gone = waiting.await;
            }
        };
        let _too_slow = timeout(END, flushed).await;
    }
}

async fn run(mut messages: mpsc::Receiver<Message>, options: Options) {
    let mut is_failing = false;
    while let Some((batch, flushed)) = next(&mut messages).await {
        if !batch.is_empty() {
            let body = otlp::body(&options.resource, &batch);
            let collector = &options.endpoint.authority;
            match export(&options, &body).await {
                Ok(()) if is_failing => {
                    info!("the collector {collector} takes spans again");
                    is_failing = false;
                }
                Err(reason) if !is_failing => {
                    warn!(
                        "the collector {collector} takes no spans: {reason}; they are lost until it does, and pods are \
                         served all the same"
                    );
                    is_failing = true;
                }
                _ => {}
            }
        }
        if let Some(flushed) = flushed {
            let _nobody_waits = flushed.send(());
        }
    }
}

/// Waits for the next batch; `None` if there will be none.
async fn next(
    messages: &mut mpsc::Receiver<Message>,
) -> Option<(Vec<Ended>, Option<oneshot::Sender<()>>)> {
    let mut batch = Vec::new();
    let mut message = messages.recv().await?;
    let end = Instant::now() + DELAY;
    loop {
        match message {
            Message::Flush(flushed) => return Some((batch, Some(flushed))),
            Message::Ended(ended) => batch.push(*ended),
        }
        if batch.len() == BATCH {
            return Some((batch, None));
        }
        message = match timeout_at(end, messages.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => return Some((batch, None)),
        };
    }
}

async fn export(options: &Options, body: &Value) -> Result<(), String> {
    let exchange = timeout(options.timeout, exchange(options, body)).await;
    exchange.unwrap_or_else(|_| Err(format!("no answer within {:?}", options.timeout)))
}

async fn exchange(options: &Options, body: &Value) -> Result<(), String> {
    let endpoint = &options.endpoint;
    let mut request = Request::new(Full::new(Bytes::from(body.to_string())));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = endpoint.path.parse().map_err(told)?;
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(&endpoint.authority).map_err(told)?;
    let agent = concat!("ebbtide/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.extend(options.headers.iter().cloned());
    headers.insert(HOST, host);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let addresses: Vec<_> = lookup_host((endpoint.host.as_str(), endpoint.port))
        .await
        .map_err(told)?
        .collect();
    let stream = TcpStream::connect(&addresses[..]).await.map_err(told)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(told)?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), LONGEST).collect().await;
        if !status.is_success() {
            return Err(format!("it answers {status}"));
        }
        rejected(&answer.map_err(told)?.to_bytes())
    };
    // The connection works as long as this waits for the answer, and no longer.
    let work = async {
        let _ = connection.await;
        std::future::pending::<Result<(), String>>().await
    };
    tokio::select! {
        answer = exchange => answer,
        never = work => never,
    }
}

/// Reads an answer of success: the collector may have refused some spans.
fn rejected(answer: &[u8]) -> Result<(), String> {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let refused = &answer["partialSuccess"];
    // A 64-bit number is a text, but not everybody writes it so.
    let number = refused["rejectedSpans"].as_i64().or_else(|| {
        let text = refused["rejectedSpans"].as_str()?;
        text.parse().ok()
    });
    match number {
        None | Some(0) => Ok(()),
        Some(number) => {
            let why = refused["errorMessage"]
                .as_str()
                .unwrap_or("without a reason");
            Err(format!("it refuses {number} of them: {why}"))
        }
    }
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
