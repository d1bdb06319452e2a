//! Builds frames for the programs, as they are on the wire.
#![expect(
    clippy::unwrap_used,
    reason = "writing to a vector does not fail, and addresses are written in the source"
)]

use std::net::IpAddr;

use ebbtide_kernel::datapath::key;
use ebbtide_layout::{FlowKey, HOST_MAC, NIC_BYTE, POD_MAC, WHOLE};
use etherparse::{Ethernet2Header, IpHeaders, PacketBuilder, PacketBuilderStep};

use super::ip;

/// The identifier of [`echo`].
pub const ECHO_ID: u16 = 9;

/// An address and a port, or an identifier.
pub type End<'a> = (&'a str, u16);

fn ethernet() -> PacketBuilderStep<Ethernet2Header> {
    // The destination is the loopback's address: the programs ignore frames for others.
    PacketBuilder::ethernet2([2; 6], [0; 6])
}

fn addressed(from: &str, to: &str) -> PacketBuilderStep<IpHeaders> {
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet().ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet().ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// Builds a UDP datagram.
#[must_use]
pub fn udp(from: End<'_>, to: End<'_>) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = addressed(from.0, to.0).udp(from.1, to.1);
    step.write(&mut packet, b"hello").unwrap();
    packet
}

/// Builds a TCP SYN.
#[must_use]
pub fn tcp(from: End<'_>, to: End<'_>) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = addressed(from.0, to.0).tcp(from.1, to.1, 1, 1024).syn();
    step.write(&mut packet, &[]).unwrap();
    packet
}

/// Returns the frame as the host's end of a pod's veth pair sends it, with the number of the NIC by which the packet came.
#[must_use]
pub fn from_host(frame: Vec<u8>, nic: u8) -> Vec<u8> {
    in_pair(frame, HOST_MAC, nic)
}

/// Returns the frame as the pod's end of its veth pair sends it, with the number of the NIC by which the reply is to
/// leave.
#[must_use]
pub fn from_pod(frame: Vec<u8>, nic: u8) -> Vec<u8> {
    in_pair(frame, POD_MAC, nic)
}

fn in_pair(mut frame: Vec<u8>, mut source: [u8; 6], nic: u8) -> Vec<u8> {
    source[NIC_BYTE] = nic;
    frame[6..12].copy_from_slice(&source);
    frame
}

/// Returns the same segment with other flags (RFC 9293, 3.1).
#[must_use]
pub fn with_flags(mut frame: Vec<u8>, flags: u8) -> Vec<u8> {
    let header = if is_v4(&frame) { 20 } else { 40 };
    frame[IP + header + 13] = flags;
    frame
}

/// Builds an ICMP echo request or reply.
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

/// Returns the key of a flow.
#[must_use]
pub fn flow(local: End<'_>, remote: End<'_>, protocol: u8) -> FlowKey {
    FlowKey {
        local: key(ip(local.0)),
        remote: key(ip(remote.0)),
        local_port: local.1.to_be_bytes(),
        remote_port: remote.1.to_be_bytes(),
        protocol,
        kind: WHOLE,
        pad: [0; 2],
    }
}

/// The offset of the IP header in a frame.
const IP: usize = 14;

fn is_v4(frame: &[u8]) -> bool {
    frame[IP] >> 4 == 4
}

/// Returns the same frame with another protocol number; the bytes of its header stay.
#[must_use]
pub fn with_protocol(mut frame: Vec<u8>, protocol: u8) -> Vec<u8> {
    let at = if is_v4(&frame) { IP + 9 } else { IP + 6 };
    frame[at] = protocol;
    frame
}

/// Returns the same frame in a VLAN (IEEE 802.1Q).
#[must_use]
pub fn in_vlan(mut frame: Vec<u8>, id: u8) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0x00, 0, id]);
    frame
}

/// Returns the same frame with tags or other headers of these EtherTypes before its own. Each has two more bytes (IEEE
/// 802.1Q: the VLAN's number, zero for a priority alone).
#[must_use]
pub fn wrapped(mut frame: Vec<u8>, headers: &[(u16, u16)]) -> Vec<u8> {
    let bytes = headers.iter().flat_map(|(kind, tag)| {
        let [a, b] = kind.to_be_bytes();
        let [c, d] = tag.to_be_bytes();
        [a, b, c, d]
    });
    frame.splice(12..12, bytes);
    frame
}

/// Returns the same frame with another EtherType.
#[must_use]
pub fn with_ethertype(mut frame: Vec<u8>, ethertype: u16) -> Vec<u8> {
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

/// Returns the same frame with other link-layer addresses.
#[must_use]
pub fn between_macs(mut frame: Vec<u8>, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

/// Builds an ARP packet (RFC 826). `operation` is 1 for a request, 2 for a reply.
///
/// # Panics
/// If an address is not IPv4.
#[must_use]
pub fn arp(operation: u8, sender: ([u8; 6], &str), target: &str) -> Vec<u8> {
    let octets = |text: &str| match ip(text) {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("{text} is no IPv4 address"),
    };
    let mut frame = vec![0xff; 6];
    frame.extend(sender.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0);
    frame.extend(octets(sender.1));
    frame.extend([0; 6]);
    frame.extend(octets(target));
    frame
}

/// Builds an ICMPv6 message of this type about `target` (RFC 4861), with a link-layer address as its option.
#[must_use]
pub fn neighbour(kind: u8, from: &str, to: &str, target: &str, mac: [u8; 6]) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let flags = if kind == 136 { OVERRIDE } else { 0 };
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(key(ip(target)));
    body.extend([if kind == 135 { 1 } else { 2 }, 1]);
    body.extend(mac);
    let mut frame = Vec::new();
    let step = addressed(from, to);
    step.write(&mut frame, 58.into(), &body).unwrap();
    // The hop limit proves that it comes from this link (RFC 4861, 7.1).
    frame[IP + 7] = 255;
    frame
}

/// Splits a packet into three fragments with the identification `id`. The first has all headers (RFC 7112).
#[must_use]
pub fn fragments(frame: &[u8], id: u16) -> [Vec<u8>; 3] {
    let header = if is_v4(frame) { 20 } else { 40 };
    let (start, rest) = frame.split_at(IP + header);
    let mut rest = rest.to_vec();
    rest.resize(32, 0);
    // The offsets are in units of eight bytes.
    [(0, 2, true), (2, 1, true), (3, 1, false)].map(|(offset, length, more)| {
        let mut part = start.to_vec();
        let [high, low] = id.to_be_bytes();
        if is_v4(frame) {
            part[IP + 4..IP + 8].copy_from_slice(&[high, low, u8::from(more) << 5, offset]);
        } else {
            let next = std::mem::replace(&mut part[IP + 6], 44);
            part.extend([next, 0, 0, offset << 3 | u8::from(more), 0, 0, high, low]);
        }
        part.extend(&rest[usize::from(offset) * 8..][..length * 8]);
        part
    })
}

/// Returns the same IPv6 packet with extension headers of these types before its payload: hop-by-hop options (0),
/// routing (43) and destination options (60) have 8 bytes each, authentication (51) has 24.
#[must_use]
pub fn extended(frame: &[u8], headers: &[u8]) -> Vec<u8> {
    let (start, rest) = frame.split_at(IP + 40);
    let mut packet = start.to_vec();
    let last = packet[IP + 6];
    packet[IP + 6] = *headers.first().unwrap_or(&last);
    for (header, next) in headers.iter().zip(headers.iter().skip(1).chain([&last])) {
        let (units, bytes) = if *header == 51 { (4, 24) } else { (0, 8) };
        packet.extend([*next, units]);
        packet.extend(vec![0; bytes - 2]);
    }
    packet.extend(rest);
    packet
}

/// Builds an ICMP error (destination unreachable) that quotes the packet in `frame`.
#[must_use]
pub fn icmp_error(from: &str, to: &str, frame: &[u8]) -> Vec<u8> {
    let (kind, protocol) = if is_v4(frame) { (3, 1) } else { (1, 58) };
    let mut error = Vec::new();
    let quoted = &frame[IP..frame.len().min(IP + 48)];
    let body = [&[kind, 3, 0, 0, 0, 0, 0, 0], quoted].concat();
    let step = addressed(from, to);
    step.write(&mut error, protocol.into(), &body).unwrap();
    error
}
