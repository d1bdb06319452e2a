//! Flows of as many bytes as pass, and how fast they arrive.

use std::{
    fmt,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ebbtide_tests::two_ways::{
    Case,
    talk::{connection, listener, udp_pair},
};
use ebbtide_vpc::{
    netns::Netns,
    patience::PATIENCE,
    pod::Pod,
    traffic::{Protocol, socket},
};

/// How long a flow lasts, of which the first part does not count: a burst may pass at once, and TCP begins slowly.
const LASTS: Duration = Duration::from_millis(3500);
const BEGINS: Duration = Duration::from_millis(1000);

/// The protocol of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Tcp,
    Udp,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Which end receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Towards {
    Client,
    Pod,
}

impl Towards {
    pub(super) const BOTH: [Self; 2] = [Self::Client, Self::Pod];
}

impl fmt::Display for Towards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "out of the pod",
            Self::Pod => "into the pod",
        })
    }
}

/// Both ends of a flow: the client's first.
pub(super) enum Flow {
    Tcp(TcpStream, TcpStream),
    Udp(UdpSocket, UdpSocket),
}

impl Flow {
    pub(super) fn of(case: &Case<'_>, load: Load) -> Result<Self> {
        match load {
            Load::Tcp => {
                let listener = listener(case)?;
                let (client, server) = connection(case, &listener, case.client())?;
                Ok(Self::Tcp(client, server))
            }
            Load::Udp => {
                let (server, client) = udp_pair(case)?;
                // From now on the server answers this client, and the pod knows by which way.
                client.send(b"hello")?;
                let (_, peer) = server
                    .recv_from(&mut [0; 16])
                    .context("the first datagram")?;
                server.connect(peer)?;
                Ok(Self::Udp(client, server))
            }
        }
    }

    /// Opens a connection to another pod than the case's.
    pub(super) fn straight(client: &Netns, pod: &Pod, case: &Case<'_>) -> Result<Self> {
        let any = SocketAddr::new(case.family.any(), case.port);
        let listener = socket(&pod.netns, Protocol::Tcp, any)?;
        listener.listen(1)?;
        let client = socket(client, Protocol::Tcp, case.client())?;
        client.connect_timeout(&pod.socket(case.family, case.port).into(), PATIENCE)?;
        let (server, _) = listener.accept()?;
        Ok(Self::Tcp(client.into(), server.into()))
    }

    /// Sends as much as passes, and returns the bits per second that arrive.
    pub(super) fn measure(&self, towards: Towards) -> Result<f64> {
        match (self, towards) {
            (Self::Tcp(client, server), Towards::Client) => tcp(server, client),
            (Self::Tcp(client, server), Towards::Pod) => tcp(client, server),
            (Self::Udp(client, server), Towards::Client) => udp(server, client),
            (Self::Udp(client, server), Towards::Pod) => udp(client, server),
        }
    }
}

/// Counts what arrives behind the beginning.
struct Meter {
    start: Instant,
    since: Option<Instant>,
    last: Instant,
    bytes: usize,
}

impl Meter {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            start,
            since: None,
            last: start,
            bytes: 0,
        }
    }

    fn count(&mut self, bytes: usize) {
        let now = Instant::now();
        if now - self.start < BEGINS {
            return;
        }
        match self.since {
            None => self.since = Some(now),
            Some(_) => self.bytes += bytes,
        }
        self.last = now;
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() > LASTS
    }

    fn rate(&self) -> Result<f64> {
        let since = self.since.context("nothing arrived")?;
        Ok(self.bytes as f64 * 8.0 / (self.last - since).as_secs_f64())
    }
}

fn tcp(mut from: &TcpStream, mut to: &TcpStream) -> Result<f64> {
    let mut meter = Meter::new();
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let data = vec![7; 64 << 10];
            // Until the other end stops to read.
            while from.write_all(&data).is_ok() {}
        });
        let mut buffer = vec![0; 64 << 10];
        let mut received = Ok(0);
        while !meter.is_over() {
            received = to.read(&mut buffer);
            match received {
                Ok(0) | Err(_) => break,
                Ok(bytes) => meter.count(bytes),
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
        drop(sending.join());
        received.context("receiving")
    })?;
    meter.rate()
}

/// The sender is slower than the machine, and faster than every limit: it must not take all of the processor.
fn udp(from: &UdpSocket, to: &UdpSocket) -> Result<f64> {
    const BYTES: usize = 1400;
    const PER_SECOND: f64 = 40e6 / 8.0;
    let mut meter = Meter::new();
    to.set_read_timeout(Some(Duration::from_millis(100)))?;
    let start = meter.start;
    thread::scope(|scope| {
        scope.spawn(move || {
            let (data, mut sent) = ([7; BYTES], 0.0);
            while start.elapsed() < LASTS {
                while sent < start.elapsed().as_secs_f64() * PER_SECOND && start.elapsed() < LASTS {
                    // Refused for a moment, where the queue is full.
                    let _ = from.send(&data);
                    sent += BYTES as f64;
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let mut buffer = [0; 2048];
        while !meter.is_over() {
            match to.recv(&mut buffer) {
                Ok(bytes) => meter.count(bytes),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => return Err(e).context("receiving"),
            }
        }
        Ok(())
    })?;
    meter.rate()
}
