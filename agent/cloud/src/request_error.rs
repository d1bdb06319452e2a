//! Why a request to a metadata service has no answer that can be used, and what a person can do.

use std::{fmt, io, time::Duration};

/// A request without an answer that can be used.
#[derive(Debug, thiserror::Error)]
#[error("{method} {url}: {problem}")]
pub struct RequestError {
    /// The request's method.
    pub method: String,
    /// What was asked, of whom.
    pub url: String,
    /// What happened.
    pub problem: Problem,
}

/// What happened to a request.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The endpoint's name is unknown.
    #[error("its name cannot be resolved ({0}); set `metadataEndpoint` to an address")]
    NoName(io::Error),
    /// The kernel has no way there, or a firewall of this node forbids it.
    #[error(
        "it cannot be reached ({0}): the node's main routing table, a VPN, another plugin's rules and the node's firewall \
         decide; the same request by curl on the node must succeed"
    )]
    NoRoute(io::Error),
    /// Nobody listens there.
    #[error(
        "connection refused: no metadata service is there; check `cloud` and `metadataEndpoint`, and whether something on \
         the node intercepts this address"
    )]
    Refused,
    /// Nobody answers the connection.
    #[error(
        "no connection within {0:?}: packets are dropped on the way, by a firewall, or since this is not that cloud's \
         machine"
    )]
    NoConnection(Duration),
    /// A connection, but no whole answer.
    #[error("no whole answer within {0:?}")]
    NoAnswer(Duration),
    /// Another failure of the connection.
    #[error("the connection failed: {0}")]
    Connection(io::Error),
    /// The connection ended too early, or what came is not HTTP.
    #[error("no valid HTTP answer: {0}")]
    Http(#[from] hyper::Error),
    /// 401: without a token, or with one that is no longer valid.
    #[error("a token is missing or no longer valid (401)")]
    Unauthorized,
    /// 403: the machine's metadata service is turned off, or this request is not allowed.
    #[error(
        "it is turned off for this machine, or refuses this request (403): enable the instance's metadata endpoint"
    )]
    TurnedOff,
    /// 429: too many requests, and how long the service asks to wait.
    #[error("too many requests (429){}", pause(.0))]
    Throttled(Option<Duration>),
    /// Another status. A redirect is one: it is never followed.
    #[error("status {}{}", .0, of_status(.0))]
    Status(u16),
    /// The answer is too large.
    #[error("the answer has more than {} KiB, as no metadata has", crate::client::LONGEST >> 10)]
    TooLarge,
    /// The answer is not UTF-8.
    #[error("the answer is not text")]
    NotText,
    /// The request could not be made of what the service said before.
    #[error("the request cannot be made: {0}")]
    Malformed(String),
}

impl Problem {
    pub(crate) fn of_connect(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused,
            Kind::NetworkUnreachable
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::AddrNotAvailable
            | Kind::PermissionDenied => Self::NoRoute(error),
            _ => Self::Connection(error),
        }
    }
}

fn pause(pause: &Option<Duration>) -> impl fmt::Display {
    fmt::from_fn(move |f| match pause {
        Some(pause) => write!(f, ", again in {} s", pause.as_secs()),
        None => Ok(()),
    })
}

fn of_status(status: &u16) -> &'static str {
    match *status {
        300..400 => ": a redirect, which is not followed; no metadata service sends one",
        500.. => ": the service has a fault of its own; it is asked again",
        _ => "",
    }
}
