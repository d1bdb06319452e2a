//! Packets as the taps saw them: the place, the direction, and the fields of their headers.

use std::{fmt, net::IpAddr, time::Duration};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use serde::Serialize;

/// The place where a packet was seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Place {
    /// On the wire between a node's NIC and the VPC.
    Wire {
        /// The node.
        node: String,
        /// Its NIC.
        nic: String,
    },
    /// On an interface of a pod.
    Pod {
        /// The pod.
        pod: String,
        /// `eth0` or `veth0`.
        interface: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wire { node, nic } => write!(f, "{node}/{nic}"),
            Self::Pod { pod, interface } => write!(f, "{pod}:{interface}"),
        }
    }
}

/// The direction of a packet, from the node's or the pod's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Into the node or pod.
    In,
    /// Out of it.
    Out,
}

/// The kind of an ICMP or ICMPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Echo request.
    Request,
    /// Echo reply.
    Reply,
    /// Anything else, by its type: neighbour discovery, errors.
    Other(u8),
}

/// One packet, seen at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The place.
    pub place: Place,
    /// The direction.
    pub direction: Direction,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// Source port of TCP and UDP, else zero.
    pub source_port: u16,
    /// Destination port of TCP and UDP, else zero.
    pub destination_port: u16,
    /// The kind of an ICMP or ICMPv6 packet.
    pub icmp: Option<Icmp>,
    /// Whether it is a TCP segment that opens a connection: SYN without ACK.
    pub opens: bool,
    /// Whether it is a TCP segment with RST.
    pub reset: bool,
    /// The length in bytes from the IP header on.
    pub length: usize,
    /// The time, by the system clock.
    pub time: Duration,
}

impl Seen {
    /// Whether it was seen on a pod's interface of this name.
    #[must_use]
    pub fn is_in_pod_at(&self, name: &str) -> bool {
        matches!(&self.place, Place::Pod { interface, .. } if interface == name)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        write!(
            f,
            "{} {way}: {} port {} → {} port {}, protocol {}, {} bytes",
            self.place,
            self.source,
            self.source_port,
            self.destination,
            self.destination_port,
            self.protocol,
            self.length
        )?;
        if let Some(icmp) = self.icmp {
            write!(f, ", {icmp:?}")?;
        }
        if self.reset {
            write!(f, ", RST")?;
        }
        Ok(())
    }
}

/// Decodes the headers of a packet. The caller sets the place, the direction and the time.
pub(crate) fn decode(packet: &[u8]) -> Option<Seen> {
    let packet = LaxSlicedPacket::from_ip(packet).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return None,
    };
    let mut seen = Seen {
        place: Place::Wire {
            node: String::new(),
            nic: String::new(),
        },
        direction: Direction::In,
        source,
        destination,
        protocol: packet.net.as_ref()?.ip_payload_ref()?.ip_number.0,
        source_port: 0,
        destination_port: 0,
        icmp: None,
        opens: false,
        reset: false,
        length: 0,
        time: Duration::ZERO,
    };
    match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            seen.source_port = tcp.source_port();
            seen.destination_port = tcp.destination_port();
            seen.opens = tcp.syn() && !tcp.ack();
            seen.reset = tcp.rst();
        }
        Some(TransportSlice::Udp(udp)) => {
            seen.source_port = udp.source_port();
            seen.destination_port = udp.destination_port();
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            seen.icmp = Some(match icmp.type_u8() {
                8 => Icmp::Request,
                0 => Icmp::Reply,
                other => Icmp::Other(other),
            });
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            seen.icmp = Some(match icmp.type_u8() {
                128 => Icmp::Request,
                129 => Icmp::Reply,
                other => Icmp::Other(other),
            });
        }
        _ => {}
    }
    Some(seen)
}
