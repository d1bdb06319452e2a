//! Servers that answer with the client's address as they saw it, and clients that return such answers.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use serde::Serialize;
use socket2::{Domain, SockRef, Socket, Type};

use crate::{netns::Netns, patience::PATIENCE, plan::Family};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both protocols.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    fn socket_type(self) -> Type {
        match self {
            Self::Tcp => Type::STREAM,
            Self::Udp => Type::DGRAM,
        }
    }
}

impl fmt::Display for Protocol {
    /// Formats the protocol as iptables spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A server in a namespace. It answers every line or datagram with the peer's address and port as it saw them. Dropping
/// it ends it.
#[derive(Debug)]
pub struct Server {
    listener: Arc<Listener>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
        }
    }
}

impl Server {
    /// Starts a server on an address; it serves when this returns.
    /// Most servers use a wildcard address. For UDP that is the hard case: nothing ties the reply to the interface that
    /// the request came in on.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn start(netns: &Netns, protocol: Protocol, address: SocketAddr) -> Result<Self> {
        let context = || format!("serving {protocol} on {address} in {}", netns.name());
        let socket = netns
            .run(|| bind(protocol, address))
            .with_context(context)?;
        let listener = Arc::new(match protocol {
            Protocol::Tcp => {
                socket.listen(128).with_context(context)?;
                Listener::Tcp(socket.into())
            }
            Protocol::Udp => Listener::Udp(socket.into()),
        });
        let serving = Arc::clone(&listener);
        // The socket stays in the namespace in which it was opened, wherever its thread is.
        let thread = thread::spawn(move || serve(&serving));
        Ok(Self {
            listener,
            thread: Some(thread),
        })
    }

    /// Starts servers for TCP and UDP on one address and port.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn on(netns: &Netns, address: IpAddr, port: u16) -> Result<[Self; 2]> {
        let address = SocketAddr::new(address, port);
        Ok([
            Self::start(netns, Protocol::Tcp, address)?,
            Self::start(netns, Protocol::Udp, address)?,
        ])
    }

    /// Starts servers for TCP and UDP of both families on one port of the wildcard addresses.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn on_any(netns: &Netns, port: u16) -> Result<Vec<Self>> {
        let mut servers = Vec::new();
        for family in Family::BOTH {
            servers.extend(Self::on(netns, family.any(), port)?);
        }
        Ok(servers)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // This ends accept(2) or recv(2) in the thread, for UDP too, even if it returns an error.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens a socket that is bound to an address, for tests with exchanges of their own. Its receive timeout is
/// [`PATIENCE`].
///
/// # Errors
/// If the address cannot be bound.
pub fn socket(netns: &Netns, protocol: Protocol, address: SocketAddr) -> Result<Socket> {
    let socket = netns
        .run(|| bind(protocol, address))
        .with_context(|| format!("binding {protocol} {address} in {}", netns.name()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Opens a socket in the calling thread's namespace, bound to an address.
///
/// # Errors
/// If the address cannot be bound.
pub fn bind(protocol: Protocol, address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), protocol.socket_type(), None)?;
    if address.is_ipv6() {
        // Each family has its own server, so that a test of one family proves nothing about the other.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn serve(listener: &Listener) -> Result<()> {
    match listener {
        Listener::Tcp(listener) => {
            while let Ok((stream, peer)) = listener.accept() {
                thread::spawn(move || converse(stream, peer));
            }
        }
        Listener::Udp(socket) => {
            let mut buffer = [0; 2048];
            loop {
                // No data and no sender: the socket was shut down.
                let (length, peer) = socket.recv_from(&mut buffer)?;
                if length == 0 {
                    break;
                }
                // If a reply cannot be sent, the client reports that it is missing.
                let _ = socket.send_to(format!("{peer}\n").as_bytes(), peer);
            }
        }
    }
    Ok(())
}

fn converse(stream: TcpStream, peer: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        line?;
        writer.write_all(format!("{peer}\n").as_bytes())?;
    }
    Ok(())
}

/// The answer to a client.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The client's address as the server saw it.
    pub seen_as: SocketAddr,
    /// The client's address as the client knows it.
    pub local: SocketAddr,
    /// The shortest of a few round trips.
    pub latency: Duration,
}

/// A client in a namespace.
#[derive(Clone, Debug)]
pub struct Client<'a> {
    netns: &'a Netns,
    protocol: Protocol,
    source: Option<SocketAddr>,
    timeout: Duration,
}

impl<'a> Client<'a> {
    /// Creates a client with the time limit [`PATIENCE`].
    #[must_use]
    pub fn new(netns: &'a Netns, protocol: Protocol) -> Self {
        Self {
            netns,
            protocol,
            source: None,
            timeout: PATIENCE,
        }
    }

    /// Sets the source address; port 0 lets the kernel choose.
    #[must_use]
    pub fn from(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Sets the source address, with any port.
    #[must_use]
    pub fn from_ip(self, source: IpAddr) -> Self {
        self.from(SocketAddr::new(source, 0))
    }

    /// Sets the time limit for a connection, and for each answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects. A UDP socket is connected, too: it receives replies from the server's address only.
    ///
    /// # Errors
    /// If there is no connection in time.
    pub fn connect(&self, server: SocketAddr) -> Result<Connection> {
        let connected = || -> Result<Socket> {
            let domain = Domain::for_address(server);
            let socket = Socket::new(domain, self.protocol.socket_type(), None)?;
            if let Some(source) = self.source {
                socket.set_reuse_address(true)?;
                socket
                    .bind(&source.into())
                    .with_context(|| format!("binding {source}"))?;
            }
            match self.protocol {
                Protocol::Tcp => socket.connect_timeout(&server.into(), self.timeout)?,
                Protocol::Udp => socket.connect(&server.into())?,
            }
            socket.set_read_timeout(Some(self.timeout))?;
            Ok(socket)
        };
        let socket = self.netns.run(connected).with_context(|| {
            format!(
                "connecting from {} to {} {server}",
                self.netns.name(),
                self.protocol
            )
        })?;
        let local = socket
            .local_addr()?
            .as_socket()
            .context("a socket without an address")?;
        let channel = match self.protocol {
            Protocol::Tcp => {
                socket.set_tcp_nodelay(true)?;
                Channel::Tcp(BufReader::new(socket.into()))
            }
            Protocol::Udp => Channel::Udp(socket.into()),
        };
        Ok(Connection {
            channel,
            server,
            local,
        })
    }

    /// Connects, and sends a few requests.
    ///
    /// # Errors
    /// If there is no connection or an answer is missing.
    pub fn ask(&self, server: SocketAddr) -> Result<Answer> {
        let mut connection = self.connect(server)?;
        let mut answer = connection.ask()?;
        for _ in 0..2 {
            answer.latency = answer.latency.min(connection.ask()?.latency);
        }
        Ok(answer)
    }
}

/// A connection, or a connected UDP socket.
#[derive(Debug)]
pub struct Connection {
    channel: Channel,
    server: SocketAddr,
    /// The client's own address.
    pub local: SocketAddr,
}

#[derive(Debug)]
enum Channel {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Connection {
    /// Resets it at once on both sides (RFC 9293, 3.10.5), so that the client can reuse its address and port.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn abort(self) -> Result<()> {
        if let Channel::Tcp(stream) = &self.channel {
            SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Sends one request and returns the answer.
    ///
    /// # Errors
    /// If the answer does not come in time, or is not an address.
    pub fn ask(&mut self) -> Result<Answer> {
        let (local, server) = (self.local, self.server);
        let no_answer = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                anyhow!("no answer to {local} from {server} in time")
            }
            _ => anyhow!(error).context(format!("no answer to {local} from {server}")),
        };
        let start = Instant::now();
        let mut text = String::new();
        match &mut self.channel {
            Channel::Tcp(stream) => {
                stream
                    .get_mut()
                    .write_all(b"who am I?\n")
                    .map_err(no_answer)?;
                stream.read_line(&mut text).map_err(no_answer)?;
            }
            Channel::Udp(socket) => {
                let mut buffer = [0; 256];
                socket.send(b"who am I?\n").map_err(no_answer)?;
                let length = socket.recv(&mut buffer).map_err(no_answer)?;
                text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        }
        let latency = start.elapsed();
        let seen_as = text
            .trim()
            .parse()
            .map_err(|_| anyhow!("{} answered {text:?}", self.server))?;
        Ok(Answer {
            seen_as,
            local: self.local,
            latency,
        })
    }
}
