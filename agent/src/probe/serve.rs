//! The probe's server.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{SMALL, Seen, Serving, canonical, requested};

/// How many connections are served at once; more are closed at once.
const AT_ONCE: usize = 256;

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often another free port is tried, if it is to be any.
const TRIES: usize = 20;

/// The longest first line of a request, in bytes.
const LINE: u64 = 64;

/// The options of the server.
#[derive(Debug, Args)]
pub struct Options {
    /// The port, for TCP and UDP; 0: any.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Serve at this address. Can be given several times [default: all].
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// The name that answers have.
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "")]
    name: String,
    /// The node that answers name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value = "")]
    node: String,
    /// End when standard input does, and print the port as JSON.
    #[arg(long)]
    until_eof: bool,
}

/// Serves until the process ends, or standard input does.
///
/// # Errors
/// If no socket can be had.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let (port, sockets) = sockets(options)?;
    let name = Arc::new((options.name.clone(), options.node.clone()));
    let connections = Arc::new(AtomicUsize::new(0));
    let mut serving = Vec::new();
    for (tcp, udp) in sockets {
        let (own, connections) = (Arc::clone(&name), Arc::clone(&connections));
        serving.push(thread::spawn(move || accept(&tcp, &own, &connections)));
        let own = Arc::clone(&name);
        serving.push(thread::spawn(move || datagrams(&udp, &own)));
    }
    if options.until_eof {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &Serving { port }).context("print the port")?;
        writeln!(out)
            .and_then(|()| out.flush())
            .context("print the port")?;
        // Whoever started it has ended, or wants it to end: an error says so as well.
        let _end = io::copy(&mut io::stdin().lock(), &mut io::sink());
        return Ok(());
    }
    for each in serving {
        if each.join().is_err() {
            bail!("a thread of the server ended");
        }
    }
    Ok(())
}

/// Opens the sockets, all with one port.
fn sockets(options: &Options) -> anyhow::Result<(u16, Vec<(TcpListener, UdpSocket)>)> {
    let mut tries = if options.port == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        match open(options) {
            Ok(sockets) => return Ok(sockets),
            Err(e) if tries == 0 => return Err(e).context("open the server's sockets"),
            // The port that was free for one of them is not for another.
            Err(_) => {}
        }
    }
}

fn open(options: &Options) -> io::Result<(u16, Vec<(TcpListener, UdpSocket)>)> {
    let mut port = options.port;
    let mut sockets = Vec::new();
    let mut bind = |address: IpAddr| -> io::Result<()> {
        let tcp = TcpListener::bind((address, port))?;
        port = tcp.local_addr()?.port();
        sockets.push((tcp, UdpSocket::bind((address, port))?));
        Ok(())
    };
    if options.address.is_empty() {
        // With IPv6 it serves both families; a kernel may have none.
        bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))?;
    }
    options.address.iter().try_for_each(|each| bind(*each))?;
    Ok((port, sockets))
}

fn accept(listener: &TcpListener, own: &Arc<(String, String)>, connections: &Arc<AtomicUsize>) {
    loop {
        let Ok((stream, client)) = listener.accept() else {
            // Out of descriptors, for example: connections end.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        if connections.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
            connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (own, serving) = (Arc::clone(own), Arc::clone(connections));
        let spawned = thread::Builder::new().spawn(move || {
            // A client that leaves is its own matter.
            let _left = converse(&stream, client, &own);
            serving.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Answers requests until the client closes the connection.
fn converse(stream: &TcpStream, client: SocketAddr, own: &(String, String)) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.by_ref().take(LINE).read_line(&mut line)?;
        let Some(length) = requested(&line) else {
            return Ok(());
        };
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut answer = answer(client, own);
        answer.resize(answer.len() + length, b'.');
        let mut stream = stream;
        stream.write_all(&answer)?;
    }
}

/// Answers datagrams by some of the same length.
fn datagrams(socket: &UdpSocket, own: &(String, String)) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An error is about an earlier answer that nobody received.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let text = buffer.get(..length).unwrap_or_default();
        if length < SMALL || !text.starts_with(super::GREETING.as_bytes()) {
            continue;
        }
        let mut answer = answer(client, own);
        if answer.len() <= length {
            answer.resize(length, b'.');
            // The client asks again.
            let _sent = socket.send_to(&answer, client);
        }
    }
}

/// Returns an answer's first line.
fn answer(client: SocketAddr, own: &(String, String)) -> Vec<u8> {
    let seen = Seen {
        client: canonical(client),
        server: own.0.clone(),
        node: own.1.clone(),
    };
    let mut line = serde_json::to_vec(&seen).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Serves in this process until it ends; returns the port.
    pub(in super::super) fn start(address: IpAddr) -> u16 {
        let options = Options {
            port: 0,
            address: vec![address],
            name: "web".into(),
            node: "n1".into(),
            until_eof: false,
        };
        let (port, sockets) = sockets(&options).unwrap();
        let own = Arc::new(("web".to_owned(), "n1".to_owned()));
        for (tcp, udp) in sockets {
            let (for_tcp, for_udp) = (Arc::clone(&own), Arc::clone(&own));
            thread::spawn(move || accept(&tcp, &for_tcp, &Arc::default()));
            thread::spawn(move || datagrams(&udp, &for_udp));
        }
        port
    }

    /// As [`start`], by TCP alone, for a server that sends its first client away.
    pub(in super::super) fn start_reluctant() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            drop(listener.accept());
            accept(&listener, &Arc::default(), &Arc::default());
        });
        address
    }

    #[test]
    fn a_datagram_that_is_no_request_or_small_gets_no_answer() {
        let port = start(Ipv4Addr::LOCALHOST.into());
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        for text in [&b"ebbtide-probe 0\n"[..], &[b'x'; 1000]] {
            client.send(text).unwrap();
            assert!(client.recv(&mut [0; 2000]).is_err());
        }
    }
}
