//! One HTTP request: encrypted, with limits, and nothing that such a service does not need.
//!
//! No redirect is followed, no proxy is used. Each request has its own connection. Whoever is not known by Mozilla's list
//! of authorities, which is compiled in, or by a file that is given, is not spoken to.

use std::{io, path::Path, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto},
};

use crate::Endpoint;

/// The longest time for a connection, with its keys.
const CONNECT: Duration = Duration::from_secs(5);

/// The longest time for a request, from its beginning to the end of its answer.
const WHOLE: Duration = Duration::from_secs(20);

/// The longest answer in bytes: a page of a hundred NICs with fifty addresses each has two million.
const LONGEST: usize = 8 << 20;

/// The longest head of an answer in bytes.
const LONGEST_HEAD: usize = 32 << 10;

/// What makes connections.
#[derive(Clone)]
pub struct Transport {
    tls: TlsConnector,
    whole: Duration,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

/// An answer of any status.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) text: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection was made: nothing was sent.
    #[error("no connection to {0}: {1}")]
    NoConnection(String, io::Error),
    /// The end of the patience: the request may have been carried out.
    #[error("{0} gave no answer in {1:?}")]
    NoAnswer(String, Duration),
    /// The connection broke: the request may have been carried out.
    #[error("the connection to {0} broke: {1}")]
    Broke(String, hyper::Error),
    /// The answer is too long, or no text.
    #[error("the answer of {0} is {1}")]
    Unreadable(String, &'static str),
    /// The request cannot be made.
    #[error("a request to {0} cannot be made: {1}")]
    Malformed(String, String),
}

impl TransportError {
    /// Whether it is certain that nothing was sent.
    #[must_use]
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::NoConnection(..) | Self::Malformed(..))
    }
}

/// Why the authorities in a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadAuthorities {
    /// It cannot be read.
    #[error("the certificates in {0} cannot be read: {1}")]
    Unreadable(String, String),
    /// It has none.
    #[error("{0} has no certificate in it")]
    Empty(String),
    /// The cryptography refuses.
    #[error("prepare encrypted connections: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

impl Transport {
    /// Makes it, with the authorities of a PEM file beside the public ones. Sends nothing.
    ///
    /// # Errors
    /// If there is no certificate in the file.
    pub fn new(authorities: Option<&Path>) -> Result<Self, BadAuthorities> {
        let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(path) = authorities {
            let shown = || path.display().to_string();
            let fault =
                |e: &dyn std::fmt::Display| BadAuthorities::Unreadable(shown(), e.to_string());
            let before = roots.len();
            for each in CertificateDer::pem_file_iter(path).map_err(|e| fault(&e))? {
                roots.add(each.map_err(|e| fault(&e))?)?;
            }
            if roots.len() == before {
                return Err(BadAuthorities::Empty(shown()));
            }
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            whole: WHOLE,
        })
    }

    /// As it is, with another patience: tests wait for the end of it.
    #[must_use]
    pub const fn within(mut self, whole: Duration) -> Self {
        self.whole = whole;
        self
    }

    /// Sends a request, whose URI is replaced by the endpoint's path.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        request: Request<String>,
    ) -> Result<Answer, TransportError> {
        let name = || endpoint.to_string();
        let request = complete(endpoint, request)?;
        let start = tokio::time::Instant::now();
        let connecting = timeout(CONNECT.min(self.whole), self.connection(endpoint));
        let stream = connecting
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
            .map_err(|e| TransportError::NoConnection(name(), e))?;
        let left = self.whole.saturating_sub(start.elapsed());
        timeout(left, exchange(endpoint, stream, request))
            .await
            .unwrap_or_else(|_| Err(TransportError::NoAnswer(name(), self.whole)))
    }

    async fn connection(&self, endpoint: &Endpoint) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
        if !endpoint.is_encrypted() {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(self.tls.connect(name, stream).await?))
    }
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn complete(
    endpoint: &Endpoint,
    mut request: Request<String>,
) -> Result<Request<String>, TransportError> {
    let malformed =
        |e: &dyn std::fmt::Display| TransportError::Malformed(endpoint.to_string(), e.to_string());
    *request.uri_mut() = endpoint.path().parse().map_err(|e| malformed(&e))?;
    let host = HeaderValue::from_str(&endpoint.authority()).map_err(|e| malformed(&e))?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    let agent = concat!("ebbtide/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    Ok(request)
}

async fn exchange(
    endpoint: &Endpoint,
    stream: Box<dyn Stream>,
    request: Request<String>,
) -> Result<Answer, TransportError> {
    let broke = |e| TransportError::Broke(endpoint.to_string(), e);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broke)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broke)?;
        answer(endpoint, response).await
    };
    // The connection works as long as this waits for the answer, and no longer: nothing is left behind. Its own end
    // is no news, since the answer may have come with it.
    let work = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = exchange => answer,
        never = work => never,
    }
}

async fn answer(
    endpoint: &Endpoint,
    response: Response<Incoming>,
) -> Result<Answer, TransportError> {
    let (head, mut body) = response.into_parts();
    let unreadable = |what| TransportError::Unreadable(endpoint.to_string(), what);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| TransportError::Broke(endpoint.to_string(), e))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > LONGEST {
                return Err(unreadable("longer than 8 MiB"));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Answer {
        status: head.status.as_u16(),
        text: String::from_utf8(bytes).map_err(|_| unreadable("no UTF-8"))?,
    })
}
