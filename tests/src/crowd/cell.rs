//! A cell of the matrix: a client sends a request to a server by one protocol, and gets an answer or not.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{netns::Netns, ping};
use socket2::{Domain, Socket, Type};

use super::door::Doors;

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A connection with more than one full segment.
    Tcp,
    /// A small datagram and one that fills its packet.
    Udp,
    /// An echo request.
    Icmp,
}

impl By {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];
    /// The protocols that have ports.
    pub const WITH_PORTS: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        })
    }
}

/// One client, one server, one protocol.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The group that it belongs to: a kind of tunnel over a NIC, a bridge.
    pub group: String,
    /// Client and server, in words.
    pub name: String,
    /// The client's namespace.
    pub client: Netns,
    /// The client's address; the kernel chooses if there is none.
    pub source: Option<IpAddr>,
    /// The link its socket is bound to (`SO_BINDTODEVICE`).
    pub device: Option<&'static str>,
    /// Its socket's mark (`SO_MARK`).
    pub mark: Option<u32>,
    /// The server's address.
    pub server: SocketAddr,
    /// The protocol.
    pub by: By,
}

/// The client's address as the server saw it; none for an echo reply, which does not tell it.
pub type Seen = Option<IpAddr>;

/// The time after which a lost packet is sent again, as programs that use UDP do.
const AGAIN: Duration = Duration::from_millis(400);
/// A length of several segments in any tunnel here.
const LONG: usize = 6_000;
/// A length that fills a packet of every tunnel here and is fragmented by none.
const FULL: usize = 1200;

impl Cell {
    /// Sends one request.
    ///
    /// # Errors
    /// If there is no answer within `patience`.
    pub fn ask(&self, doors: &Doors, patience: Duration) -> Result<Seen> {
        match self.by {
            By::Tcp => self.connect(doors, patience)?.ask(patience).map(Some),
            By::Udp => self.datagrams(doors, patience).map(Some),
            By::Icmp => {
                let (source, to) = (self.source, self.server.ip());
                let socket = doors.open(&self.client, move || ping::socket(source, to))?;
                ping::exchange(socket, to, patience)
                    .with_context(|| format!("no echo reply from {to}"))?;
                Ok(None)
            }
        }
    }

    /// Opens a connection that may be kept.
    ///
    /// # Errors
    /// If there is none within `patience`.
    pub fn connect(&self, doors: &Doors, patience: Duration) -> Result<Connection> {
        let socket = self.socket(doors, Type::STREAM)?;
        socket
            .connect_timeout(&self.server.into(), patience)
            .context("connecting")?;
        socket.set_tcp_nodelay(true)?;
        Ok(Connection(BufReader::new(socket.into())))
    }

    fn datagrams(&self, doors: &Doors, patience: Duration) -> Result<IpAddr> {
        let socket = self.socket(doors, Type::DGRAM)?;
        socket.connect(&self.server.into()).context("connecting")?;
        let socket: UdpSocket = socket.into();
        exchange(&socket, b"who am I?\n", patience)?;
        exchange(&socket, &[b'x'; FULL], patience)
    }

    fn socket(&self, doors: &Doors, kind: Type) -> Result<Socket> {
        let domain = Domain::for_address(self.server);
        let socket = doors.open(&self.client, move || Ok(Socket::new(domain, kind, None)?))?;
        if let Some(device) = self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(source) = self.source {
            let source = SocketAddr::new(source, 0);
            socket
                .bind(&source.into())
                .with_context(|| format!("binding {source}"))?;
        }
        Ok(socket)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.group, self.name, self.by)
    }
}

/// An open connection to one of the servers of [`ebbtide_vpc::traffic`].
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Sends a short request and a long one.
    ///
    /// # Errors
    /// If there is no answer within `patience`.
    pub fn ask(&mut self, patience: Duration) -> Result<IpAddr> {
        let stream = self.0.get_mut();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        self.line(b"who am I?\n")?;
        let mut long = vec![b'x'; LONG];
        long.push(b'\n');
        self.line(&long)
    }

    fn line(&mut self, question: &[u8]) -> Result<IpAddr> {
        self.0
            .get_mut()
            .write_all(question)
            .context("sending on an open connection")?;
        let mut answer = String::new();
        self.0
            .read_line(&mut answer)
            .context("no answer on an open connection")?;
        seen(&answer)
    }
}

fn exchange(socket: &UdpSocket, question: &[u8], patience: Duration) -> Result<IpAddr> {
    let begin = Instant::now();
    socket.set_read_timeout(Some(AGAIN))?;
    let mut buffer = [0; 2048];
    let mut last = None;
    while begin.elapsed() < patience {
        // An ICMP error about the previous datagram is reported by this call (ip(7)).
        let received = socket.send(question).and_then(|_| socket.recv(&mut buffer));
        match received {
            Ok(length) => return seen(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                last = Some(error);
                std::thread::sleep(AGAIN / 4);
            }
        }
    }
    match last {
        Some(error) => Err(error).context("no answer to datagrams"),
        None => bail!("no answer to datagrams within {patience:?}"),
    }
}

fn seen(answer: &str) -> Result<IpAddr> {
    let peer: SocketAddr = answer
        .trim()
        .parse()
        .with_context(|| format!("the answer {answer:?}"))?;
    Ok(peer.ip())
}
