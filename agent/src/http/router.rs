//! Which path is answered by what.

use std::{collections::BTreeMap, fmt};

use futures::future::BoxFuture;
use hyper::{
    Method, Response, StatusCode,
    body::Bytes,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
        REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    },
};

/// Plain text.
const TEXT: &str = "text/plain; charset=utf-8";

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query, without its question mark; empty if there is none.
    pub query: String,
    /// What the client accepts (RFC 9110, section 12.5.1).
    pub accept: String,
    /// The name or address by which the client knows the server, mostly with a port (RFC 9110, section 7.2).
    pub host: String,
    /// By what the client says that it may ask (RFC 9110, section 11.6.2).
    pub authorization: String,
    /// Whether the client's address is a loopback one: it is on this machine.
    pub is_local: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The media type.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Answer {
    /// Makes an answer with a body of this media type.
    pub fn of(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            body: body.into(),
            headers: Vec::new(),
        }
    }

    /// Makes an answer of one line of text.
    #[must_use]
    pub fn line(status: StatusCode, text: &str) -> Self {
        Self {
            status,
            ..Self::of(TEXT, format!("{text}\n"))
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Returns the response; to HEAD without the body, whose length it has.
    pub(super) fn into_response(self, is_head: bool) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            self.content_type.parse().unwrap_or(TEXT_VALUE),
        );
        headers.insert(CONTENT_LENGTH, self.body.len().into());
        headers.insert(CACHE_CONTROL, NO_STORE);
        headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
        headers.insert(REFERRER_POLICY, NO_REFERRER);
        headers.insert(RESOURCE_POLICY, SAME_ORIGIN);
        headers.extend(self.headers);
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, GET_HEAD);
        }
        if !is_head {
            *response.body_mut() = self.body;
        }
        response
    }
}

const TEXT_VALUE: HeaderValue = HeaderValue::from_static(TEXT);
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
/// Who may have an answer as an image or a script of a page of theirs.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const SAME_ORIGIN: HeaderValue = HeaderValue::from_static("same-origin");
const GET_HEAD: HeaderValue = HeaderValue::from_static("GET, HEAD");

type Handler = Box<dyn Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync>;

/// The paths that are answered, each by a function of its own. All others are not found.
///
/// # Examples
///
/// ```
/// use ebbtide_agent::http::{Answer, Asked, Router};
/// use hyper::{Method, StatusCode};
///
/// let router = Router::default().at("/healthz", |_| async { Answer::line(StatusCode::OK, "ok") });
/// let ask = |method, path: &str| Asked {
///     method,
///     path: path.into(),
///     ..Asked::default()
/// };
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// let status = |asked| runtime.block_on(router.answer(&asked)).status;
/// assert_eq!(status(ask(Method::GET, "/healthz")), StatusCode::OK);
/// assert_eq!(status(ask(Method::GET, "/")), StatusCode::NOT_FOUND);
/// assert_eq!(status(ask(Method::POST, "/healthz")), StatusCode::METHOD_NOT_ALLOWED);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Default)]
pub struct Router(BTreeMap<&'static str, Handler>);

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Router {
    /// Adds a path. It is answered for GET and HEAD.
    #[must_use]
    pub fn at<F, R>(mut self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Asked) -> R + Send + Sync + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let handler = move |asked| Box::pin(handler(asked)) as BoxFuture<'static, Answer>;
        self.0.insert(path, Box::new(handler));
        self
    }

    /// Answers.
    pub async fn answer(&self, asked: &Asked) -> Answer {
        if asked.method != Method::GET && asked.method != Method::HEAD {
            return Answer::line(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are answered");
        }
        match self.0.get(asked.path.as_str()) {
            Some(handler) => handler(asked.clone()).await,
            None => {
                let paths: Vec<&str> = self.0.keys().copied().collect();
                let text = format!("not found; there are {}", paths.join(", "));
                Answer::line(StatusCode::NOT_FOUND, &text)
            }
        }
    }
}
