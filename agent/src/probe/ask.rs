//! The probe's client.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, getsockopt, socket, sockopt},
};

use super::{Asking, Exchange, LONG, Outcome, Protocol, Question, SMALL, Seen, canonical, request};

/// How many questions are asked at once.
const AT_ONCE: usize = 8;

/// The pause before a question is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// The pause between rounds, if all are asked again and again.
const ROUND: Duration = Duration::from_millis(1000);

/// How often a datagram is sent within one try: the network may lose some.
const SENT: u32 = 3;

/// The headers of a datagram over IPv4 and IPv6: IP's, and UDP's or ICMP's.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;

/// What every IPv6 network carries (RFC 8200, 5), for a kernel that does not tell more.
const LEAST_MTU: usize = 1280;

/// Reads questions from standard input and prints what became of them.
///
/// # Errors
/// If they cannot be read, or nobody reads the answers.
pub fn run() -> anyhow::Result<()> {
    // The first value alone: some who run this in a container cannot end its input.
    let mut values = serde_json::Deserializer::from_reader(io::stdin().lock()).into_iter();
    let asking: Asking = values
        .next()
        .context("there are no questions on standard input")?
        .context("read the questions from standard input")?;
    let exchanges = ask(&asking);
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &exchanges).context("print the answers")?;
    writeln!(out).context("print the answers")
}

/// Asks all questions, some at once, and returns what became of each.
#[must_use]
pub fn ask(asking: &Asking) -> Vec<Exchange> {
    let end = Instant::now() + Duration::from_millis(asking.deadline);
    let mut exchanges = once(asking, end);
    while asking.repeat && Instant::now() + ROUND < end {
        thread::sleep(ROUND);
        exchanges = once(asking, end);
    }
    exchanges
}

fn once(asking: &Asking, end: Instant) -> Vec<Exchange> {
    let waiting = Mutex::new(asking.questions.iter());
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next()
    };
    let work = || -> Vec<Exchange> {
        std::iter::from_fn(next)
            .map(|question| insist(question, asking, end))
            .collect()
    };
    let mut exchanges: Vec<Exchange> = thread::scope(|scope| {
        let number = asking.questions.len().min(AT_ONCE);
        let threads: Vec<_> = (0..number).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|each| each.join());
        ended.filter_map(Result::ok).flatten().collect()
    });
    exchanges.sort_by_key(|exchange| exchange.id);
    exchanges
}

/// Asks until there are as many answers as are wanted, or too many did not come.
fn insist(question: &Question, asking: &Asking, end: Instant) -> Exchange {
    let (mut answered, mut tries) = (0, 0);
    let mut unanswered: Option<(u32, String)> = None;
    let mut outcome = Outcome::Failed {
        why: "not asked: the time was over".to_owned(),
    };
    while answered < question.times && Instant::now() < end {
        tries += 1;
        let start = Instant::now();
        outcome = match exchange(question, Duration::from_millis(asking.timeout)) {
            Ok((local, seen, length)) => {
                answered += 1;
                Outcome::Answered {
                    local,
                    seen,
                    length,
                    millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
                }
            }
            Err(Trouble::Failed(why)) => {
                let number = unanswered.map_or(1, |(number, _)| number + 1);
                unanswered = Some((number, why.clone()));
                if number >= asking.tries {
                    return Exchange {
                        id: question.id,
                        tries,
                        unanswered,
                        outcome: Outcome::Failed { why },
                    };
                }
                thread::sleep(PAUSE);
                Outcome::Failed { why }
            }
            Err(Trouble::Impossible(why)) => {
                outcome = Outcome::Skipped { why };
                break;
            }
        };
    }
    Exchange {
        id: question.id,
        tries,
        unanswered,
        outcome,
    }
}

/// Why there is no answer.
enum Trouble {
    Failed(String),
    Impossible(String),
}

impl Trouble {
    fn doing(what: &str) -> impl Fn(io::Error) -> Self {
        move |e| {
            let why = match e.kind() {
                // What a socket with a time limit says.
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".to_owned(),
                io::ErrorKind::UnexpectedEof => "closed by the other side".to_owned(),
                _ => e.to_string(),
            };
            Self::Failed(format!("{what}: {why}"))
        }
    }
}

type Answer = (SocketAddr, Option<Seen>, usize);

fn exchange(question: &Question, timeout: Duration) -> Result<Answer, Trouble> {
    match question.protocol {
        Protocol::Tcp => tcp(question.server, timeout),
        Protocol::Udp => udp(question.server, timeout),
        Protocol::Icmp => icmp(question.server.ip(), timeout),
        Protocol::Connect => {
            let stream = TcpStream::connect_timeout(&question.server, timeout);
            let stream = stream.map_err(Trouble::doing("connect"))?;
            let local = stream.local_addr().map_err(Trouble::doing("connect"))?;
            Ok((canonical(local), None, 0))
        }
    }
}

fn tcp(server: SocketAddr, timeout: Duration) -> Result<Answer, Trouble> {
    let connecting = Trouble::doing("connect");
    let stream = TcpStream::connect_timeout(&server, timeout).map_err(&connecting)?;
    let local = stream.local_addr().map_err(&connecting)?;
    stream
        .set_read_timeout(Some(timeout))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .map_err(&connecting)?;
    let mut reader = BufReader::new(&stream);
    let mut ask = |length: usize| -> io::Result<Seen> {
        let mut text = request(length).into_bytes();
        text.resize(text.len() + length, b'.');
        (&stream).write_all(&text)?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        understood(line.as_bytes())
    };
    ask(0).map_err(Trouble::doing("a small request"))?;
    let what = "full segments, after a small request was answered";
    let seen = ask(LONG).map_err(Trouble::doing(what))?;
    Ok((canonical(local), Some(seen), LONG))
}

fn understood(line: &[u8]) -> io::Result<Seen> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(line)
        .map_err(|_| io::Error::other("the answer is not our server's: somebody else answers"))
}

fn udp(server: SocketAddr, timeout: Duration) -> Result<Answer, Trouble> {
    let opening = Trouble::doing("open a socket");
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A connected socket takes no answer from another address.
    let socket = UdpSocket::bind((any, 0)).map_err(&opening)?;
    socket
        .connect(server)
        .map_err(Trouble::doing("find a route"))?;
    let local = socket.local_addr().map_err(&opening)?;
    let ask = |length: usize| -> io::Result<Seen> {
        let mut text = request(0).into_bytes();
        text.resize(length, b'.');
        let answer = insistent(&socket, &text, timeout, |answer| answer.len() == length)?;
        understood(&answer)
    };
    ask(SMALL).map_err(Trouble::doing("a small datagram"))?;
    let full = full_size(&socket);
    let seen = ask(full).map_err(Trouble::doing(&format!(
        "a datagram of {full} bytes, after a small one was answered"
    )))?;
    Ok((canonical(local), Some(seen), full))
}

/// Sends a packet, several times if there is no answer, and returns the answer.
fn insistent(
    socket: &UdpSocket,
    text: &[u8],
    timeout: Duration,
    is_it: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..SENT {
        let end = Instant::now() + timeout / SENT;
        if let Err(e) = socket.send(text) {
            last = e;
            continue;
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer = buffer.get(..length).unwrap_or_default();
                    if is_it(answer) {
                        return Ok(answer.to_vec());
                    }
                }
                Err(e) => {
                    last = e;
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Returns the payload of the largest datagram that takes the socket's way in one piece.
fn full_size(socket: &UdpSocket) -> usize {
    let is_v4 = socket.peer_addr().is_ok_and(|peer| peer.is_ipv4());
    let headers = if is_v4 { HEADERS_V4 } else { HEADERS_V6 };
    // Of an IPv6 socket it is not told.
    let told = getsockopt(socket, sockopt::IpMtu).ok().filter(|_| is_v4);
    let mtu = told.and_then(|mtu| usize::try_from(mtu).ok());
    let mtu = mtu.or_else(|| mtu_of(socket.local_addr().ok()?.ip()));
    mtu.unwrap_or(LEAST_MTU).clamp(576, 65_535) - headers
}

/// Returns the MTU of the link that has an address.
fn mtu_of(address: IpAddr) -> Option<usize> {
    let mut links = nix::ifaddrs::getifaddrs().ok()?;
    let has = |link: &nix::ifaddrs::InterfaceAddress| {
        let storage = link.address.as_ref()?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        v4.or(v6).filter(|own| *own == address)
    };
    let link = links.find(|link| has(link).is_some())?;
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", link.interface_name));
    mtu.ok()?.trim().parse().ok()
}

fn icmp(server: IpAddr, timeout: Duration) -> Result<Answer, Trouble> {
    let socket = ping_socket(server)?;
    socket
        .connect((server, 0))
        .map_err(Trouble::doing("find a route"))?;
    let local = socket.local_addr().map_err(Trouble::doing("ping"))?;
    // The kernel writes checksum and identifier.
    let kind = if server.is_ipv4() { 8 } else { 128 };
    let ask = |sequence: u8, length: usize| {
        let mut text = vec![kind, 0, 0, 0, 0, 0, 0, sequence];
        text.resize(8 + length, b'.');
        let is_it = |answer: &[u8]| answer.len() == text.len() && answer.get(7) == Some(&sequence);
        insistent(&socket, &text, timeout, is_it)
    };
    ask(1, 56).map_err(Trouble::doing("a small echo"))?;
    let full = full_size(&socket);
    ask(2, full).map_err(Trouble::doing(&format!(
        "an echo of {full} bytes, after a small one was answered"
    )))?;
    Ok((canonical(local), None, full))
}

/// Opens a socket for echoes that needs no capability (icmp(7)).
fn ping_socket(server: IpAddr) -> Result<UdpSocket, Trouble> {
    let (family, protocol) = match server {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let made = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol);
    match made {
        // It is sent to, received from and connected as one of UDP.
        Ok(fd) => Ok(UdpSocket::from(fd)),
        Err(Errno::EACCES | Errno::EPERM) => Err(Trouble::Impossible(
            "net.ipv4.ping_group_range allows no echoes here".to_owned(),
        )),
        Err(e) => Err(Trouble::Failed(format!("open a socket: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::serve::tests::{start, start_reluctant},
        *,
    };

    fn asked(questions: Vec<(Protocol, SocketAddr)>) -> Vec<Exchange> {
        let number = |(id, (protocol, server)): (u32, (Protocol, SocketAddr))| Question {
            id,
            protocol,
            server,
            times: 2,
        };
        ask(&Asking {
            questions: (0..).zip(questions).map(number).collect(),
            tries: 2,
            timeout: 2000,
            deadline: 20_000,
            repeat: false,
        })
    }

    #[test]
    fn a_server_says_whom_it_sees_by_tcp_and_udp_small_and_full() {
        let port = start(Ipv4Addr::LOCALHOST.into());
        let server = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        for (exchange, most) in asked(vec![(Protocol::Tcp, server), (Protocol::Udp, server)])
            .iter()
            .zip([LONG, 65_535 - HEADERS_V4])
        {
            let Outcome::Answered {
                local,
                seen: Some(seen),
                length,
                ..
            } = &exchange.outcome
            else {
                panic!("{exchange:?}")
            };
            assert_eq!(seen.client, *local);
            assert_eq!((seen.server.as_str(), seen.node.as_str()), ("web", "n1"));
            assert_eq!((*length, exchange.tries), (most, 2));
            assert_eq!(exchange.unanswered, None);
        }
    }

    #[test]
    fn where_nobody_serves_each_protocol_fails_and_says_why() {
        let nobody = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Connect];
        for exchange in asked(protocols.map(|protocol| (protocol, nobody)).to_vec()) {
            let Outcome::Failed { why } = &exchange.outcome else {
                panic!("{exchange:?}")
            };
            assert!(why.contains("refused"), "{why}");
            assert_eq!(exchange.tries, 2);
            assert_eq!(exchange.unanswered, Some((2, why.clone())));
        }
    }

    #[test]
    fn who_answers_only_sometimes_is_told_of() {
        let exchange = &asked(vec![(Protocol::Tcp, start_reluctant())])[0];
        assert!(
            matches!(exchange.outcome, Outcome::Answered { .. }),
            "{exchange:?}"
        );
        let (number, why) = exchange.unanswered.clone().unwrap();
        assert_eq!((exchange.tries, number), (3, 1), "{why}");
    }

    #[test]
    fn an_echo_is_answered_or_the_reason_is_told() {
        let own = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        match &asked(vec![(Protocol::Icmp, own)])[0].outcome {
            Outcome::Answered { length, .. } => assert_eq!(*length, 65_535 - HEADERS_V4),
            Outcome::Skipped { why } => assert!(why.contains("ping_group_range"), "{why}"),
            Outcome::Failed { why } => panic!("{why}"),
        }
    }

    #[test]
    fn after_the_deadline_nothing_is_asked() {
        let server = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
        let question = Question {
            id: 7,
            protocol: Protocol::Tcp,
            server,
            times: 1,
        };
        let exchanges = ask(&Asking {
            questions: vec![question],
            tries: 1,
            timeout: 1,
            deadline: 0,
            repeat: true,
        });
        assert_eq!((exchanges[0].id, exchanges[0].tries), (7, 0));
    }
}
