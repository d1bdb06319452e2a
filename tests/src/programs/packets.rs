//! Frames for the programs, as they are on the wire.
#![expect(
    clippy::unwrap_used,
    reason = "writing to a vector does not fail, and addresses are written in the source"
)]

use std::net::IpAddr;

use ebbtide_agent::datapath::key;
use ebbtide_layout::FlowKey;
use etherparse::{Ethernet2Header, IpHeaders, PacketBuilder, PacketBuilderStep};

use super::ip;

/// The identifier of [`echo`].
pub const ECHO_ID: u16 = 9;

/// An address and a port, or an identifier.
pub type End<'a> = (&'a str, u16);

fn ethernet() -> PacketBuilderStep<Ethernet2Header> {
    // For the loopback's address: what is not for us is no program's business.
    PacketBuilder::ethernet2([2; 6], [0; 6])
}

fn addressed(from: &str, to: &str) -> PacketBuilderStep<IpHeaders> {
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet().ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet().ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// A datagram.
#[must_use]
pub fn udp(from: End<'_>, to: End<'_>) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = addressed(from.0, to.0).udp(from.1, to.1);
    step.write(&mut packet, b"hello").unwrap();
    packet
}

/// A SYN.
#[must_use]
pub fn tcp(from: End<'_>, to: End<'_>) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = addressed(from.0, to.0).tcp(from.1, to.1, 1, 1024).syn();
    step.write(&mut packet, &[]).unwrap();
    packet
}

/// An echo request or reply.
#[must_use]
pub fn echo(from: &str, to: &str, request: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = addressed(from, to);
    match (ip(from).is_ipv4(), request) {
        (true, true) => step
            .icmpv4_echo_request(ECHO_ID, 1)
            .write(&mut packet, b"x"),
        (true, false) => step.icmpv4_echo_reply(ECHO_ID, 1).write(&mut packet, b"x"),
        (false, true) => step
            .icmpv6_echo_request(ECHO_ID, 1)
            .write(&mut packet, b"x"),
        (false, false) => step.icmpv6_echo_reply(ECHO_ID, 1).write(&mut packet, b"x"),
    }
    .unwrap();
    packet
}

/// A flow's key.
#[must_use]
pub fn flow(local: End<'_>, remote: End<'_>, protocol: u8) -> FlowKey {
    FlowKey {
        local: key(ip(local.0)),
        remote: key(ip(remote.0)),
        local_port: local.1.to_be_bytes(),
        remote_port: remote.1.to_be_bytes(),
        protocol,
        pad: [0; 3],
    }
}
