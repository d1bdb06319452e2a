//! Both ends of an exchange.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    netns::Netns,
    patience::PATIENCE,
    tap::{Direction, Place, Seen},
    traffic::{Protocol, socket},
};
use nix::libc;

use super::Case;

/// Opens the pod's server, bound to the wildcard address, and a client that receives answers from the server's address
/// only.
///
/// # Errors
/// If a socket cannot be opened.
pub fn udp_pair(case: &Case<'_>) -> Result<(UdpSocket, UdpSocket)> {
    let any = SocketAddr::new(case.family.any(), case.port);
    let server = socket(&case.site.pod.netns, Protocol::Udp, any)?;
    Ok((server.into(), udp_client(case)?))
}

/// Opens the client of [`udp_pair`], on a port of its own.
///
/// # Errors
/// If a socket cannot be opened.
pub fn udp_client(case: &Case<'_>) -> Result<UdpSocket> {
    let client: UdpSocket = socket(case.site.client(), Protocol::Udp, case.client())?.into();
    client.connect(case.server())?;
    Ok(client)
}

/// Sends to the server, which sends everything back to the client.
///
/// # Errors
/// If one of them does not arrive in time, or another one arrives.
pub fn echoed(server: &UdpSocket, client: &UdpSocket, sent: &[u8]) -> Result<()> {
    let mut buffer = vec![0; 65536];
    let (length, peer) = server.recv_from(&mut buffer).context("the question")?;
    ensure!(buffer.get(..length) == Some(sent), "{length} other bytes");
    server.send_to(sent, peer)?;
    let length = client.recv(&mut buffer).context("the answer")?;
    ensure!(buffer.get(..length) == Some(sent), "{length} other bytes");
    Ok(())
}

/// Returns bytes that differ.
#[must_use]
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Returns the packets seen on an interface of the pod.
pub fn in_pod(seen: &[Seen], direction: Direction) -> impl Iterator<Item = &Seen> {
    seen.iter().filter(move |packet| {
        packet.direction == direction && matches!(packet.place, Place::Pod { .. })
    })
}

/// Calls setsockopt(2).
///
/// # Errors
/// If the kernel refuses.
pub fn set_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> Result<()> {
    // SAFETY: pointer and length are those of `value`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    ensure!(done == 0, "setsockopt: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Calls getsockopt(2) for a number.
///
/// # Errors
/// If the kernel refuses.
pub fn option(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int) -> Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: pointer and length are those of `value`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    ensure!(done == 0, "getsockopt: {}", std::io::Error::last_os_error());
    Ok(value)
}

/// Sends and receives at the same time, since the buffers do not hold everything in flight.
///
/// # Errors
/// If bytes are missing, or others arrive.
pub fn transfer(mut from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    let all = pattern(2 << 20);
    thread::scope(|scope| {
        let sending = scope.spawn(|| from.write_all(&all));
        let mut received = vec![0; all.len()];
        to.read_exact(&mut received).context("receiving")?;
        ensure!(received == all, "other bytes");
        match sending.join() {
            Ok(sent) => Ok(sent?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Opens a TCP server in the pod, bound to the wildcard address.
///
/// # Errors
/// If the port is taken.
pub fn listener(case: &Case<'_>) -> Result<TcpListener> {
    let any = SocketAddr::new(case.family.any(), case.port);
    let listener = socket(&case.site.pod.netns, Protocol::Tcp, any)?;
    listener.listen(16)?;
    Ok(listener.into())
}

fn connect(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let client = socket(netns, Protocol::Tcp, from)?;
    client
        .connect_timeout(&to.into(), PATIENCE)
        .with_context(|| format!("connecting from {from} to {to}"))?;
    Ok(client.into())
}

/// Opens a connection and returns both ends, with time limits.
///
/// # Errors
/// If there is no connection in time.
pub fn connection(
    case: &Case<'_>,
    listener: &TcpListener,
    from: SocketAddr,
) -> Result<(TcpStream, TcpStream)> {
    let client = connect(case.site.client(), from, case.server())?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((client, server))
}
