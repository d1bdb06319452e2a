//! `ebbtide-agent probe`: a server that says whom it sees, and a client of it. It needs no privileges and writes no file.
//!
//! `kubectl ebbtide connectivity` starts servers in pods of its own and has clients ask them. A request is a line
//! `ebbtide-probe LENGTH`, followed by so many bytes; the answer is a line of JSON ([`Seen`]), followed by as many.

mod ask;
mod serve;

use std::net::SocketAddr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use ask::{ask, run as run_ask};
pub use serve::{Options as ServeOptions, run as run_serve};

/// The first word of a request.
const GREETING: &str = "ebbtide-probe";

/// The longest body, in bytes.
const MOST: usize = 1 << 20;

/// The body of a TCP request that fills many segments, in bytes.
const LONG: usize = 64 << 10;

/// The length of a small datagram; the server answers no smaller one, so that it never sends more than it was sent.
const SMALL: usize = 400;

/// How a question is asked.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP: a small request, then one of many full segments, each way.
    Tcp,
    /// UDP: a small datagram, then one that fills the MTU, each way.
    Udp,
    /// ICMP echo: a small one, then one that fills the MTU.
    Icmp,
    /// A TCP connection that is opened and closed, to a server of others.
    Connect,
}

impl Protocol {
    /// Returns its name, as people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
            Self::Connect => "TCP connection",
        }
    }
}

/// Who answers at an address?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The number by which the answer names it.
    pub id: u32,
    /// The protocol.
    pub protocol: Protocol,
    /// The server; the port of an echo is 0.
    pub server: SocketAddr,
    /// How many exchanges have to be answered, each from a port of its own: behind a Service each may have another backend.
    pub times: u32,
}

/// What `ask` reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asking {
    /// The questions.
    pub questions: Vec<Question>,
    /// How many exchanges of a question may remain without an answer until it is given up.
    pub tries: u32,
    /// The time limit of one exchange, in milliseconds.
    pub timeout: u64,
    /// The time limit of all together, in milliseconds: later ones are not asked.
    pub deadline: u64,
    /// Whether all questions are asked again and again until the deadline; what was answered at last is told.
    #[serde(default)]
    pub repeat: bool,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exchange {
    /// The question's number.
    pub id: u32,
    /// How many exchanges there were.
    pub tries: u32,
    /// Why the last one that was not answered was not, and how many were not. Others may have been answered.
    pub unanswered: Option<(u32, String)>,
    /// What became of the last one.
    pub outcome: Outcome,
}

/// The answer, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum Outcome {
    /// It was answered.
    Answered {
        /// The client's own address and port.
        local: SocketAddr,
        /// The server's words, if it is one of ours.
        seen: Option<Seen>,
        /// The length of the largest packet's payload or body that came back.
        length: usize,
        /// How long both exchanges took, in milliseconds.
        millis: u64,
    },
    /// It was not.
    Failed {
        /// Why, and whether the small one was answered.
        why: String,
    },
    /// It could not be asked from here.
    Skipped {
        /// Why.
        why: String,
    },
}

/// What a server saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The server's name: its pod's.
    pub server: String,
    /// The server's node.
    #[serde(default)]
    pub node: String,
}

/// What a server prints once it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Its port, for TCP and UDP.
    pub port: u16,
}

/// Returns a request's first line.
fn request(length: usize) -> String {
    format!("{GREETING} {length}\n")
}

/// Reads a request's first line; `None` if it is none, or wants too much.
fn requested(line: &str) -> Option<usize> {
    let length = line.trim_end().strip_prefix(GREETING)?.strip_prefix(' ')?;
    length.parse().ok().filter(|length| *length <= MOST)
}

/// Returns an address without the mapping of IPv4 into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written_and_nonsense_is_not() {
        assert_eq!(requested(&request(0)), Some(0));
        assert_eq!(requested(&request(MOST)), Some(MOST));
        for line in [
            "",
            "GET / HTTP/1.0",
            "ebbtide-probe",
            "ebbtide-probe x",
            "ebbtide-probe -1",
        ] {
            assert_eq!(requested(line), None, "{line}");
        }
        assert_eq!(requested(&request(MOST + 1)), None);
    }

    #[test]
    fn an_address_is_told_as_its_own_family_has_it() {
        let mapped = "[::ffff:10.0.0.1]:7".parse().unwrap();
        assert_eq!(canonical(mapped).to_string(), "10.0.0.1:7");
    }
}
