//! A small HTTP client for metadata services.
//!
//! It does what such a service needs and nothing that it must not meet: no proxy (the environment's is never read: the
//! service answers the machine, not a proxy), no redirect, no name server where the endpoint is an address, an end in
//! seconds, and a limit in size. Each request has its own connection, made in the network namespace of its thread.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    Endpoint,
    request_error::{Problem, RequestError},
};

/// The longest time for a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// The longest time for a request, from its beginning to the end of its answer.
const WHOLE: Duration = Duration::from_secs(3);

/// The longest answer in bytes.
pub(crate) const LONGEST: usize = 256 << 10;

/// The longest head of an answer in bytes.
const LONGEST_HEAD: usize = 32 << 10;

/// The longest pause that a service may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Headers of a request.
pub(crate) type Headers<'h> = &'h [(&'static str, &'h str)];

/// A client of one metadata service.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    connect: Duration,
    whole: Duration,
}

/// An answer of status 200.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Its body.
    pub(crate) text: String,
    headers: HeaderMap,
}

impl Answer {
    /// Returns a header's value, if it is there and is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Client {
    /// Returns a client; nothing is sent yet.
    #[must_use]
    pub const fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            connect: CONNECT,
            whole: WHOLE,
        }
    }

    /// As [`Client::new`] with less patience: tests wait for the end of it.
    #[cfg(test)]
    pub(crate) fn impatient(endpoint: Endpoint, whole: Duration) -> Self {
        Self {
            whole,
            ..Self::new(endpoint)
        }
    }

    /// Returns where the service is.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a GET. A 404 is `None`: services use it to say that there is nothing, or not yet.
    pub(crate) async fn get(
        &self,
        path: &str,
        headers: Headers<'_>,
    ) -> Result<Option<Answer>, RequestError> {
        self.ask(Method::GET, path, headers, self.whole).await
    }

    /// As [`Client::get`] for an answer that comes when something changes.
    pub(crate) async fn get_within(
        &self,
        path: &str,
        headers: Headers<'_>,
        whole: Duration,
    ) -> Result<Option<Answer>, RequestError> {
        self.ask(Method::GET, path, headers, whole).await
    }

    /// Sends a PUT without a body.
    pub(crate) async fn put(
        &self,
        path: &str,
        headers: Headers<'_>,
    ) -> Result<Option<Answer>, RequestError> {
        self.ask(Method::PUT, path, headers, self.whole).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: Headers<'_>,
        whole: Duration,
    ) -> Result<Option<Answer>, RequestError> {
        let exchange = self.exchange(&method, path, headers);
        let problem = match timeout(whole, exchange).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(problem)) => problem,
            Err(_) => Problem::NoAnswer(whole),
        };
        Err(RequestError {
            method: method.to_string(),
            url: format!("{}{path}", self.endpoint),
            problem,
        })
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        headers: Headers<'_>,
    ) -> Result<Option<Answer>, Problem> {
        let request = self.request(method, path, headers)?;
        let stream = timeout(self.connect, self.connection())
            .await
            .map_err(|_| Problem::NoConnection(self.connect))??;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(LONGEST_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            answer(response).await
        };
        // The connection works as long as this waits for the answer, and no longer: nothing is left behind. Its own end
        // is no news, since the answer may have come with it.
        let work = async {
            let _ = connection.await;
            std::future::pending::<Result<Option<Answer>, Problem>>().await
        };
        tokio::select! {
            answer = exchange => answer,
            never = work => never,
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        headers: Headers<'_>,
    ) -> Result<Request<String>, Problem> {
        let malformed = |reason: &dyn std::error::Error| Problem::Malformed(reason.to_string());
        let mut request = Request::new(String::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().map_err(|error| malformed(&error))?;
        let ours = [
            (HOST, self.endpoint.authority()),
            (
                USER_AGENT,
                concat!("ebbtide/", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
        ];
        for (name, value) in ours {
            let value = HeaderValue::from_str(&value).map_err(|error| malformed(&error))?;
            request.headers_mut().insert(name, value);
        }
        // hyper leaves it out of a PUT without a body, for which some servers then wait (RFC 9110, section 8.6).
        if method == Method::PUT {
            let none = HeaderValue::from_static("0");
            request.headers_mut().insert(CONTENT_LENGTH, none);
        }
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|error| malformed(&error))?;
            let name =
                HeaderName::from_bytes(name.as_bytes()).map_err(|error| malformed(&error))?;
            request.headers_mut().insert(name, value);
        }
        Ok(request)
    }

    async fn connection(&self) -> Result<TcpStream, Problem> {
        let addresses = self.endpoint.addresses().await.map_err(Problem::NoName)?;
        TcpStream::connect(&addresses[..])
            .await
            .map_err(Problem::of_connect)
    }
}

async fn answer(response: Response<Incoming>) -> Result<Option<Answer>, Problem> {
    let (head, mut body) = response.into_parts();
    match head.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::UNAUTHORIZED => return Err(Problem::Unauthorized),
        StatusCode::FORBIDDEN => return Err(Problem::TurnedOff),
        StatusCode::TOO_MANY_REQUESTS => {
            let pause = head.headers.get(RETRY_AFTER);
            let seconds = pause.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let pause = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
            return Err(Problem::Throttled(pause));
        }
        status => return Err(Problem::Status(status.as_u16())),
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if bytes.len() + data.len() > LONGEST {
                return Err(Problem::TooLarge);
            }
            bytes.extend_from_slice(&data);
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| Problem::NotText)?;
    Ok(Some(Answer {
        text,
        headers: head.headers,
    }))
}

#[cfg(test)]
mod tests;
