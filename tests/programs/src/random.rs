//! Random packets that nobody would send.

use std::net::IpAddr;

use ebbtide_kernel::datapath::key;
use ebbtide_layout::FlowKey;
use etherparse::{LaxSlicedPacket, TransportSlice};

/// The default number of random packets for each program.
const PACKETS: u32 = 20_000;

/// Returns the number of random packets for each program: `EBBTIDE_RANDOM_PACKETS`, or the default.
#[must_use]
pub fn number() -> u32 {
    let text = std::env::var("EBBTIDE_RANDOM_PACKETS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(PACKETS)
}

/// Xorshift (Marsaglia 2003), which repeats the same packets in every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x0eb8_71de)
    }
}

impl Random {
    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// Returns a random packet: one of `whole` with a few bytes changed, often cut off, sometimes noise.
    pub fn packet(&mut self, whole: &[Vec<u8>]) -> Vec<u8> {
        let mut packet = whole[self.below(whole.len())].clone();
        if self.below(8) == 0 {
            for byte in &mut packet[12..] {
                *byte = self.number() as u8;
            }
        }
        for _ in 0..self.below(5) {
            let place = self.below(packet.len());
            packet[place] = self.number() as u8;
        }
        if self.below(3) == 0 {
            packet.truncate(14 + self.below(packet.len() - 13));
        }
        packet
    }
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
