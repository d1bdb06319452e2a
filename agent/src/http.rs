//! A small HTTP server for metrics, probes and the page: it reads nothing but the head of a request, and answers from a
//! [`Router`].
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
    header::{ACCEPT, AUTHORIZATION, HOST},
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
#[derive(Clone, Debug)]
pub struct ListenStatus {
    what: &'static str,
    fault: Arc<Mutex<Option<String>>>,
}

impl Default for ListenStatus {
    fn default() -> Self {
        Self::of("metrics and probes")
    }
}

impl ListenStatus {
    /// Makes the status of a server of `what`, in the plural.
    #[must_use]
    pub fn of(what: &'static str) -> Self {
        Self {
            what,
            fault: Arc::default(),
        }
    }

    /// Returns why nobody is answered now.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut last = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == fault {
            return;
        }
        let what = self.what;
        match &fault {
            Some(fault) => warn!(
                "{what} are not served at {fault}; it is tried again every few seconds, and pods are served all the same"
            ),
            None => info!("{what} are served at {address} now"),
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

/// Answers whoever connects to a listener, until the runtime ends.
pub async fn answer_all(listener: &TcpListener, router: Arc<Router>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
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
            match timeout(WHOLE, converse(stream, peer, router)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => debug!("a client of the metrics went away: {e}"),
                Err(_) => debug!("a client of the metrics is too slow"),
            }
            drop(permit);
        });
    }
}

/// Answers one request. Connections are not kept: a silent one would hold a place.
async fn converse(stream: TcpStream, peer: SocketAddr, router: Arc<Router>) -> hyper::Result<()> {
    let answer = |request: Request<Incoming>| {
        let router = Arc::clone(&router);
        async move {
            let answer = router.answer(&asked(&request, peer)).await;
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

fn asked(request: &Request<Incoming>, peer: SocketAddr) -> Asked {
    let values = |name| {
        let values = request.headers().get_all(name).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        values.collect::<Vec<_>>().join(",")
    };
    Asked {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        accept: values(ACCEPT),
        host: values(HOST),
        authorization: values(AUTHORIZATION),
        // A listener of both families tells IPv4's addresses as IPv6's.
        is_local: peer.ip().to_canonical().is_loopback(),
    }
}

#[cfg(test)]
mod tests;
