//! Random packets that nobody would send.

use std::net::IpAddr;

use ebbtide_kernel::datapath::key;
use ebbtide_layout::FlowKey;
use ebbtide_vpc::random::Random;
use etherparse::{LaxSlicedPacket, TransportSlice};

/// The default number of random packets for each program.
const PACKETS: u32 = 20_000;

/// Returns the number of random packets for each program: `EBBTIDE_RANDOM_PACKETS`, or the default.
#[must_use]
pub fn number() -> u32 {
    let text = std::env::var("EBBTIDE_RANDOM_PACKETS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(PACKETS)
}

/// Returns a random packet: one of `whole` with a few bytes changed, often cut off, sometimes noise.
///
/// # Panics
/// When there is none, or one is no frame.
pub fn packet(random: &mut Random, whole: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = whole[random.index(whole.len())].clone();
    if random.below(8) == 0 {
        for byte in &mut packet[12..] {
            *byte = random.below(256) as u8;
        }
    }
    for _ in 0..random.below(5) {
        let place = random.index(packet.len());
        packet[place] = random.below(256) as u8;
    }
    if random.below(3) == 0 {
        packet.truncate(14 + random.index(packet.len() - 13));
    }
    packet
}

/// Returns the source and destination of an IP packet, without checking the rest of its header.
#[must_use]
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    fn at<const N: usize>(packet: &[u8], offset: usize) -> Option<IpAddr>
    where
        IpAddr: From<[u8; N]>,
    {
        Some(IpAddr::from(*packet.get(offset..)?.first_chunk::<N>()?))
    }
    match (packet.get(12..14)?, packet.get(14)? >> 4) {
        ([0x08, 0x00], 4) => Some((at::<4>(packet, 26)?, at::<4>(packet, 30)?)),
        ([0x86, 0xdd], 6) => Some((at::<16>(packet, 22)?, at::<16>(packet, 38)?)),
        _ => None,
    }
}

/// Whether this may be an ICMP error: by protocol and type as they stand, though it is cut off behind them or a fragment.
#[must_use]
pub fn may_be_icmp_error(packet: &[u8]) -> bool {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    let at = |offset: usize| packet.get(offset).copied().unwrap_or(0);
    let (protocol, kind) = match addresses(packet) {
        Some((IpAddr::V4(_), _)) => (at(23), at(14 + 4 * usize::from(at(14) & 0x0f))),
        Some((IpAddr::V6(_), _)) => (at(20), at(54)),
        None => return false,
    };
    matches!((protocol, kind), (ICMP, 3 | 11 | 12) | (ICMPV6, 1..=4))
}

/// Whether the packet belongs to the flow, by another parser; `from_remote` tells which side sent it. A packet whose
/// ports that parser cannot read is accepted.
#[must_use]
pub fn is_of_flow(packet: &[u8], flow: &FlowKey, from_remote: bool) -> bool {
    let Some((source, destination)) = addresses(packet) else {
        return false;
    };
    // The ports count as they are: a wrong length field does not change whose they are.
    let ports = match LaxSlicedPacket::from_ethernet(packet).map(|sliced| sliced.transport) {
        Ok(Some(TransportSlice::Udp(udp))) => Some((udp.source_port(), udp.destination_port())),
        Ok(Some(TransportSlice::Tcp(tcp))) => Some((tcp.source_port(), tcp.destination_port())),
        _ => None,
    };
    let ours = (
        u16::from_be_bytes(flow.local_port),
        u16::from_be_bytes(flow.remote_port),
    );
    let turn = |(a, b): (u16, u16)| if from_remote { (b, a) } else { (a, b) };
    let (local, remote) = if from_remote {
        (destination, source)
    } else {
        (source, destination)
    };
    key(local) == flow.local
        && key(remote) == flow.remote
        && ports.is_none_or(|ports| turn(ports) == ours)
}
