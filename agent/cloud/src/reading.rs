//! What a read of a metadata service gives, or why it gives nothing.

use std::{borrow::Cow, fmt, time::Duration};

use ebbtide_types::{
    Mac,
    printable::{printable, truncated},
};

use crate::{
    View,
    request_error::{Problem, RequestError},
};

/// What a whole read gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The NICs.
    pub view: View,
    /// What the service named, but what cannot be an address of a pod.
    pub left_out: Vec<LeftOut>,
    /// The answer's version, where the service gives one: [`Service::follow`](crate::Service::follow) waits for
    /// another.
    pub etag: Option<String>,
}

/// Something that the service named and that is not in the view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// Its NIC.
    pub mac: Mac,
    /// What it is, printable.
    pub what: String,
    /// Why it is left out.
    pub why: &'static str,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mac, what, why } = self;
        write!(f, "{what} of {mac} is left out: {why}")
    }
}

/// Answers that are not understood. Nothing of them is used: who misunderstands one line may misunderstand the next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// No NIC, which is no machine's state.
    #[error("the list of NICs is empty, as no machine's is")]
    NoNics,
    /// A MAC was expected.
    #[error("the list of NICs has {0:?}, which is no MAC address")]
    NoMac(String),
    /// An address was expected.
    #[error("{key} has {got:?}, which is no address")]
    NoAddress {
        /// Where.
        key: &'static str,
        /// What was there.
        got: String,
    },
    /// A prefix was expected.
    #[error("{key} has {got:?}, which is no prefix")]
    NoPrefix {
        /// Where.
        key: &'static str,
        /// What was there.
        got: String,
    },
    /// JSON was expected, in the documented form.
    #[error("the answer is not the documented JSON: {0}")]
    Json(String),
    /// Too many NICs.
    #[error("{0} NICs, more than any machine has")]
    TooManyNics(usize),
    /// Too many addresses and prefixes.
    #[error("{count} addresses and prefixes of {mac}, more than any NIC has")]
    TooManyBlocks {
        /// Whose.
        mac: Mac,
        /// How many.
        count: usize,
    },
    /// The same MAC twice, with different content.
    #[error("two NICs with the MAC {0} that differ")]
    Contradiction(Mac),
}

/// Returns a text from outside for a message: printable and short.
pub(crate) fn shown(text: &str) -> String {
    let short = truncated(text.trim(), 60);
    match printable(&short) {
        Cow::Borrowed(_) => short.into_owned(),
        Cow::Owned(text) => text,
    }
}

/// Why a read gave nothing. It never means that a NIC has no addresses: there is no news.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// AWS accepted the request for a token, and no answer came.
    #[error(
        "{0}; EC2 lets answers with a token live for one hop by default, so they do not reach a process with a network \
         namespace of its own: run the agent with hostNetwork, or raise the instance's HttpPutResponseHopLimit"
    )]
    HopLimit(RequestError),
    /// The list of NICs, or the service itself, answers 404.
    #[error(
        "{url} is not found (404): the service does not know this machine's NICs yet, or it is not {cloud}'s"
    )]
    NoList {
        /// What was asked.
        url: String,
        /// Whose form was expected.
        cloud: &'static str,
    },
    /// The list of NICs changed during the read.
    #[error("the list of NICs changed while it was read; it is read again")]
    Torn,
    /// The read as a whole takes too long.
    #[error("the read was not complete after {0:?}; the service is slow")]
    TooSlow(Duration),
    /// The answer has not the header by which Google's service is known.
    #[error(
        "{url} answered without `Metadata-Flavor: Google`: it is not Google Cloud's metadata service"
    )]
    Stranger {
        /// What was asked.
        url: String,
    },
    /// The answers are not understood.
    #[error("the metadata service's answers are not understood: {0}")]
    Unreadable(#[from] Unreadable),
}

impl ReadError {
    /// Returns how long the service asks not to be asked.
    #[must_use]
    pub const fn pause(&self) -> Option<Duration> {
        match self {
            Self::Request(RequestError {
                problem: Problem::Throttled(pause),
                ..
            }) => *pause,
            _ => None,
        }
    }
}
