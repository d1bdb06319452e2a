//! Traffic between two sockets in two namespaces. One thread drives both ends.
//!
//! A packet that is sent into a veth is delivered by the same CPU before `send` returns: its backlog is processed when
//! softirqs are enabled again. So one thread can send, receive, answer and receive, and the figures contain no wake-up
//! of another thread.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use ebbtide_vpc::netns::Netns;
use socket2::SockRef;

/// The time after which a lost packet ends the run.
const PATIENCE: Duration = Duration::from_secs(5);

/// A path: the client, the server, and the addresses between them.
#[derive(Clone, Debug)]
pub struct Way {
    /// The client's namespace.
    pub client: Netns,
    /// The client's address.
    pub from: IpAddr,
    /// The server's namespace.
    pub server: Netns,
    /// The address that the server listens on.
    pub listen: SocketAddr,
    /// The address that the client connects to.
    pub to: SocketAddr,
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

impl Way {
    fn listener(&self) -> Result<TcpListener> {
        let listener = self.server.run(|| {
            TcpListener::bind(self.listen).with_context(|| format!("listening on {}", self.listen))
        })?;
        SockRef::from(&listener).listen(1024)?;
        Ok(listener)
    }

    fn connect(&self) -> Result<TcpStream> {
        self.client.run(|| connect(self.from, self.to))
    }

    fn pair(&self) -> Result<(TcpStream, TcpStream)> {
        let listener = self.listener()?;
        let near = self.connect()?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        Ok((near, far))
    }

    /// Measures requests of 64 bytes and their answers over one connection. Returns each round trip in microseconds.
    ///
    /// # Errors
    /// If no connection can be made, or one breaks.
    pub fn tcp_round_trips(&self, count: usize) -> Result<Vec<f64>> {
        let (mut near, mut far) = self.pair()?;
        let mut bytes = [0; 64];
        let mut trips = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            near.write_all(&bytes)?;
            far.read_exact(&mut bytes)?;
            far.write_all(&bytes)?;
            near.read_exact(&mut bytes)?;
            trips.push(microseconds(start.elapsed()));
        }
        Ok(trips)
    }

    /// Measures connections with one request and one answer. Returns the time of each in microseconds.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub fn connections(&self, count: usize) -> Result<Vec<f64>> {
        let listener = self.listener()?;
        self.client.run(|| {
            let mut bytes = [0; 64];
            let mut all = Vec::with_capacity(count);
            for _ in 0..count {
                let start = Instant::now();
                let mut near = connect(self.from, self.to)?;
                let (mut far, _) = listener.accept()?;
                near.write_all(&bytes)?;
                far.read_exact(&mut bytes)?;
                far.write_all(&bytes)?;
                near.read_exact(&mut bytes)?;
                drop((near, far));
                all.push(microseconds(start.elapsed()));
            }
            Ok(all)
        })
    }

    fn datagrams(&self) -> Result<(UdpSocket, UdpSocket, SocketAddr)> {
        let far = self.server.run(|| Ok(UdpSocket::bind(self.listen)?))?;
        let near = self.client.run(|| {
            let near = UdpSocket::bind((self.from, 0))?;
            near.connect(self.to)?;
            Ok(near)
        })?;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        near.send(&[0; 18])?;
        let (_, peer) = far
            .recv_from(&mut [0; 32])
            .with_context(|| format!("a datagram to {} did not arrive", self.to))?;
        far.send_to(&[0; 18], peer)?;
        near.recv(&mut [0; 32])
            .with_context(|| format!("the answer from {} did not arrive", self.to))?;
        Ok((near, far, peer))
    }

    /// As [`Way::tcp_round_trips`], with UDP datagrams of 18 bytes.
    ///
    /// # Errors
    /// If a datagram is lost.
    pub fn udp_round_trips(&self, count: usize) -> Result<Vec<f64>> {
        let (near, far, peer) = self.datagrams()?;
        let mut bytes = [0; 18];
        let mut trips = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            near.send(&bytes)?;
            far.recv(&mut bytes)?;
            far.send_to(&bytes, peer)?;
            near.recv(&mut bytes)?;
            trips.push(microseconds(start.elapsed()));
        }
        Ok(trips)
    }

    /// Measures bursts of datagrams in both directions. Returns the microseconds per packet, to the server and back.
    ///
    /// # Errors
    /// If a datagram is lost.
    pub fn udp_bursts(&self, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        /// Fits into the backlog of a CPU and the buffer of a socket.
        const BURST: u32 = 64;
        let (near, far, peer) = self.datagrams()?;
        let mut bytes = [0; 18];
        let (mut there, mut back) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let start = Instant::now();
            for _ in 0..BURST {
                near.send(&bytes)?;
            }
            for _ in 0..BURST {
                far.recv(&mut bytes)?;
            }
            there.push(microseconds(start.elapsed()) / f64::from(BURST));
            let start = Instant::now();
            for _ in 0..BURST {
                far.send_to(&bytes, peer)?;
            }
            for _ in 0..BURST {
                near.recv(&mut bytes)?;
            }
            back.push(microseconds(start.elapsed()) / f64::from(BURST));
        }
        Ok((there, back))
    }

    /// Measures streams from the server to the client, each with a thread at both ends. Returns the received Gbit/s.
    ///
    /// # Errors
    /// If a stream breaks.
    pub fn throughput(&self, streams: usize, time: Duration) -> Result<f64> {
        let pairs = (0..streams)
            .map(|_| self.pair())
            .collect::<Result<Vec<_>>>()?;
        let arrived = AtomicU64::new(0);
        let start = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = pairs
                .into_iter()
                .map(|(mut near, mut far)| {
                    let arrived = &arrived;
                    scope.spawn(move || -> Result<()> {
                        let sender = thread::spawn(move || {
                            let bytes = vec![0; 128 * 1024];
                            while start.elapsed() < time {
                                far.write_all(&bytes)?;
                            }
                            Ok::<_, std::io::Error>(())
                        });
                        let mut bytes = vec![0; 256 * 1024];
                        loop {
                            match near.read(&mut bytes)? {
                                0 => break,
                                count => arrived.fetch_add(count as u64, Ordering::Relaxed),
                            };
                        }
                        sender.join().map_err(|_| anyhow!("a sender panicked"))??;
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a receiver panicked"))?)
        })?;
        let bits = arrived.into_inner() as f64 * 8.0;
        Ok(bits / start.elapsed().as_secs_f64() / 1e9)
    }
}

/// Opens a connection that will end by RST, so that none of thousands stays in TIME_WAIT and is met again.
fn connect(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(to),
        socket2::Type::STREAM,
        None,
    )?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    // This limits the time of connect(2), too.
    socket.set_write_timeout(Some(PATIENCE))?;
    socket
        .connect(&to.into())
        .with_context(|| format!("connecting to {to}"))?;
    Ok(socket.into())
}
