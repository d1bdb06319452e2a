//! Requests to the web servers, which answer with the client's address and port as they saw them.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use ebbtide_vpc::netns::Netns;
use socket2::{Domain, Socket, Type};

/// The time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The client's address as the server saw it.
    pub(super) seen: SocketAddr,
    /// The server's pod.
    pub(super) server: String,
}

impl FromStr for Answer {
    type Err = anyhow::Error;

    /// Parses `ADDRESS PORT NAME`, as the script in `apps.yaml` prints it.
    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let mut next = || words.next().ok_or_else(|| anyhow!("{text:?} is no answer"));
        let (address, port, server) = (next()?, next()?, next()?.to_owned());
        let address: IpAddr = address
            .trim_matches(['[', ']'])
            .parse()
            .with_context(|| format!("the answer {text:?}"))?;
        let port = port
            .parse()
            .with_context(|| format!("the answer {text:?}"))?;
        Ok(Self {
            seen: SocketAddr::new(address.to_canonical(), port),
            server,
        })
    }
}

/// Sends a request to a server, from `source` in a namespace. Returns the answer and the client's own address and port.
pub(super) fn ask(
    netns: &Netns,
    source: IpAddr,
    server: SocketAddr,
) -> Result<(SocketAddr, Answer)> {
    let (local, body) = get(netns, Some(source), server, "who", PATIENCE)?;
    Ok((local, body.parse()?))
}

/// Returns the output of a server's script `page`, and the client's own address.
pub(super) fn get(
    netns: &Netns,
    source: Option<IpAddr>,
    server: SocketAddr,
    page: &str,
    patience: Duration,
) -> Result<(SocketAddr, String)> {
    netns
        .run(|| exchange(source, server, page, patience))
        .with_context(|| format!("asking http://{server}/cgi-bin/{page} in {}", netns.name()))
}

fn exchange(
    source: Option<IpAddr>,
    server: SocketAddr,
    page: &str,
    patience: Duration,
) -> Result<(SocketAddr, String)> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&server.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    let local = stream.local_addr()?;
    write!(stream, "GET /cgi-bin/{page} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
    Ok((local, body.unwrap_or(&text).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_either_spelling_and_nonsense_is_not() {
        for (text, seen) in [
            ("172.31.16.4 4711 web5-x\n", "172.31.16.4:4711"),
            ("::ffff:172.31.16.4 4711 web5-x", "172.31.16.4:4711"),
            ("[fd00::1] 4711 web5-x", "[fd00::1]:4711"),
        ] {
            let answer: Answer = text.parse().expect(text);
            assert_eq!(answer.seen.to_string(), seen);
            assert_eq!(answer.server, "web5-x");
        }
        for text in ["", "nothing from 172.31.16.4:80", "172.31.16.4 4711"] {
            assert!(text.parse::<Answer>().is_err(), "{text}");
        }
    }
}
