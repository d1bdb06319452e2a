//! Asks an agent for its metrics, and reads them.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::netns::Netns;

/// Where an agent serves them, unless it is told otherwise.
pub const ADDRESS: &str = "127.0.0.1:19464";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends a GET in a namespace, and returns status code and body.
///
/// # Errors
/// If nobody listens, or the answer is not HTTP.
pub fn get(netns: &Netns, address: &str, path: &str) -> Result<(u16, String)> {
    netns.run(|| get_here(address, path))
}

/// As [`get`], in the caller's namespace.
///
/// # Errors
/// As [`get`].
pub fn get_here(address: &str, path: &str) -> Result<(u16, String)> {
    let answer = ask_here(address, &format!("GET {path} HTTP/1.0\r\nHost: a"))?;
    Ok((answer.status, answer.body))
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The lines before the body, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Sends a request with this head, its lines apart by `\r\n`, in a namespace.
///
/// # Errors
/// If nobody listens, or the answer is not HTTP.
pub fn ask(netns: &Netns, address: &str, head: &str) -> Result<Answer> {
    netns.run(|| ask_here(address, head))
}

fn ask_here(address: &str, head: &str) -> Result<Answer> {
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&address.parse()?, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "{head}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().with_context(|| format!("asking {address}: {head}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        status: status.context("no status")?,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

/// What was told at one moment.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The text, in Prometheus' format.
    pub text: String,
}

impl Scrape {
    /// Asks the agent of a node.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn of(node: &Netns) -> Result<Self> {
        match get(node, ADDRESS, "/metrics")? {
            (200, text) => Ok(Self { text }),
            (status, text) => bail!("{status}: {text}"),
        }
    }

    /// Returns the sum of a metric over all its samples with all of these labels, each as in `name="value"`.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let samples = self.text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            labels
                .iter()
                .all(|label| found.contains(label))
                .then(|| value.parse::<f64>().ok())?
        });
        samples.sum()
    }
}
