//! A small HTTP server for metrics and probes: it reads nothing but a path, and answers from a [`Router`].
//!
//! Nothing of a pod's network depends on it. An address that cannot be had is a warning and a finding, and is tried again.

mod router;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

pub use router::{Answer, Asked, Router};

/// Connections at once. More are closed: who asks is a Prometheus or two, the kubelet, and a person.
const CONNECTIONS: usize = 32;

/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(5);

/// How long a connection may last, with its answer.
const WHOLE: Duration = Duration::from_secs(30);

/// The largest head of a request: browsers send a kilobyte or two.
const MAX_HEAD: usize = 16 * 1024;

/// The largest number of headers.
const MAX_HEADERS: usize = 64;

/// The pause between attempts at an address.
const AGAIN: Duration = Duration::from_secs(5);

/// Why the server cannot be reached, if so. All clones share it.
#[derive(Clone, Debug, Default)]
pub struct ListenStatus(Arc<Mutex<Option<String>>>);

impl ListenStatus {
    /// Returns why nobody is answered now.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let fault = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone()
    }

    /// Records the result of an attempt to listen, and logs it if it has changed.
    fn record(&self, address: SocketAddr, listened: Result<(), &io::Error>) {
        let fault = listened.err().map(|e| {
            let hint = match e.kind() {
                io::ErrorKind::AddrInUse => {
                    ": another process has it; give this one another (`metrics.address`)"
                }
                _ => "",
            };
            format!("{address}: {e}{hint}")
        });
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == fault {
            return;
        }
        match &fault {
            Some(fault) => warn!(
                "metrics and probes are not served at {fault}; it is tried again every few seconds, and pods are served \
                 all the same"
            ),
            None => info!("metrics and probes are served at {address} now"),
        }
        *last = fault;
    }
}

/// Listens at `address`, however long that takes, and answers until the runtime ends.
pub async fn serve(address: SocketAddr, router: Router, status: ListenStatus) {
    let listener = loop {
        let listened = TcpListener::bind(address).await;
        status.record(address, listened.as_ref().map(drop));
        match listened {
            Ok(listener) => break listener,
            Err(_) => sleep(AGAIN).await,
        }
    };
    answer_all(&listener, Arc::new(router)).await;
}

async fn answer_all(listener: &TcpListener, router: Arc<Router>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Most likely out of descriptors: other connections must end first.
                debug!("accept a connection for metrics: {e}");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            continue;
        };
        let router = Arc::clone(&router);
        tokio::spawn(async move {
            match timeout(WHOLE, converse(stream, router)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => debug!("a client of the metrics went away: {e}"),
                Err(_) => debug!("a client of the metrics is too slow"),
            }
            drop(permit);
        });
    }
}

/// Answers one request. Connections are not kept: a silent one would hold a place.
async fn converse(stream: TcpStream, router: Arc<Router>) -> hyper::Result<()> {
    let answer = |request: Request<Incoming>| {
        let router = Arc::clone(&router);
        async move {
            let answer = router.answer(&asked(&request)).await;
            let is_head = request.method() == Method::HEAD;
            Ok::<_, Infallible>(answer.into_response(is_head).map(Full::<Bytes>::new))
        }
    };
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    let stream = TokioIo::new(stream);
    server.serve_connection(stream, service_fn(answer)).await
}

fn asked(request: &Request<Incoming>) -> Asked {
    let accepts = request.headers().get_all(hyper::header::ACCEPT).iter();
    let accepts = accepts.filter_map(|value| value.to_str().ok());
    Asked {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        accept: accepts.collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests;
