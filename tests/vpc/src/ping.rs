//! ICMP echo.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// The identifier of the next ping, which distinguishes the pings of one process.
static NEXT: AtomicU16 = AtomicU16::new(1);

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const PAYLOAD: &[u8; 16] = b"ebbs as it flows";

/// How long a request waits for its reply before the next one is sent, as of ping(8).
const INTERVAL: Duration = Duration::from_secs(1);

/// Sends an echo request each second until the first reply, and returns the time since the first request.
///
/// A busy machine may lose one: the kernel gives a neighbour up after three solicitations (`mcast_solicit`), and drops
/// what comes to a full backlog (`enqueue_to_backlog`, net/core/dev.c). Within [`IMPATIENCE`](crate::patience::IMPATIENCE)
/// there is one request.
///
/// # Errors
/// If no reply comes from `to` itself in time.
pub fn ping(
    netns: &Netns,
    from: Option<IpAddr>,
    to: IpAddr,
    timeout: Duration,
) -> Result<Duration> {
    let context = || format!("no echo reply to {} from {to}", netns.name());
    let socket = netns
        .run(|| socket(from, to))
        .with_context(|| format!("opening a raw socket in {} to {to}", netns.name()))?;
    exchange(socket, to, timeout).with_context(context)
}

/// Opens a raw socket for echo with `to` alone, in the calling thread's namespace.
///
/// # Errors
/// If it cannot be opened, or there is no route to `to`.
pub fn socket(from: Option<IpAddr>, to: IpAddr) -> Result<Socket> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    // A connected raw socket receives packets of this peer only.
    socket.connect(&SocketAddr::new(to, 0).into())?;
    Ok(socket)
}

/// As [`ping`], on an open socket.
///
/// # Errors
/// As [`ping`].
pub fn exchange(mut socket: Socket, to: IpAddr, timeout: Duration) -> Result<Duration> {
    let identifier = NEXT.fetch_add(1, Ordering::Relaxed);
    let request = echo_request(to, identifier);
    let start = Instant::now();
    let mut next = Duration::ZERO;
    let mut buffer = [0; 256];
    loop {
        let elapsed = start.elapsed();
        let Some(left) = timeout.checked_sub(elapsed) else {
            bail!("nothing within {timeout:?}");
        };
        if next <= elapsed {
            socket.send(&request)?;
            next = elapsed + INTERVAL;
        }
        let pause = left.min(next - elapsed);
        socket.set_read_timeout(Some(pause.max(Duration::from_millis(1))))?;
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            // The next iteration sends again, or reports that the time is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        if is_reply(to, &buffer[..length], identifier) {
            return Ok(start.elapsed());
        }
    }
}

fn echo_request(to: IpAddr, identifier: u16) -> Vec<u8> {
    let kind = if to.is_ipv4() {
        ECHO_REQUEST_V4
    } else {
        ECHO_REQUEST_V6
    };
    let [high, low] = identifier.to_be_bytes();
    let mut packet = vec![kind, 0, 0, 0, high, low, 0, 1];
    packet.extend(PAYLOAD);
    if to.is_ipv4() {
        // The kernel computes the checksum of ICMPv6, which covers the addresses.
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    packet
}

/// Computes the Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn is_reply(to: IpAddr, packet: &[u8], identifier: u16) -> bool {
    // Raw IPv4 sockets deliver the IP header, too.
    let (icmp, kind) = match to {
        IpAddr::V4(_) => {
            let header = packet
                .first()
                .map_or(0, |first| usize::from(first & 15) * 4);
            (packet.get(header..), ECHO_REPLY_V4)
        }
        IpAddr::V6(_) => (Some(packet), ECHO_REPLY_V6),
    };
    icmp.is_some_and(|icmp| {
        icmp.first() == Some(&kind) && icmp.get(4..6) == Some(&identifier.to_be_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_packet_with_its_checksum_is_zero() {
        let packet = echo_request("192.0.2.1".parse().unwrap(), 0x1234);
        assert_eq!(checksum(&packet), 0);
    }

    #[test]
    fn a_request_is_no_reply() {
        for to in ["192.0.2.1", "2001:db8::1"] {
            let to: IpAddr = to.parse().unwrap();
            let mut packet = echo_request(to, 7);
            if to.is_ipv4() {
                let mut header = vec![0x45];
                header.resize(20, 0);
                header.append(&mut packet);
                packet = header;
            }
            assert!(!is_reply(to, &packet, 7));
        }
    }
}
