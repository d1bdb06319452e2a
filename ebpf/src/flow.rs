//! Computes the keys of the flow that a packet opens, and of the one that it follows.
//!
//! A key is created and changed in place: the stack has room for few of them.

use aya_ebpf::programs::TcContext;
use ebbtide_layout::{FRAGMENTS, FlowKey, WHOLE};

use crate::{
    extended,
    packet::{Endpoints, ICMPV6, Ip, LATER},
};

/// The local end of the packet: the pod's or the node's.
#[derive(Clone, Copy)]
pub(crate) enum LocalEnd {
    Source,
    Destination,
}

/// A key to be filled.
pub(crate) const EMPTY: FlowKey = FlowKey {
    local: [0; 16],
    remote: [0; 16],
    local_port: [0; 2],
    remote_port: [0; 2],
    protocol: 0,
    kind: WHOLE,
    pad: [0; 2],
};

/// Returns the key for this packet's addresses and protocol, without ports.
#[inline(always)]
pub(crate) fn between(ip: &Ip, end: LocalEnd) -> FlowKey {
    let (local, remote) = match end {
        LocalEnd::Source => (ip.source, ip.destination),
        LocalEnd::Destination => (ip.destination, ip.source),
    };
    FlowKey {
        local,
        remote,
        local_port: [0; 2],
        remote_port: [0; 2],
        protocol: ip.payload.protocol,
        kind: WHOLE,
        pad: [0; 2],
    }
}

/// Changes `key` to that of the flow that a packet belongs to. False if it cannot be determined: later fragments, ICMP
/// other than echo.
///
/// `asked` limits echoes to those from the remote side: requests in and replies out (a pod's own pings follow the
/// routing table). Otherwise both count, in both directions.
#[inline(always)]
pub(crate) fn of(ctx: &TcContext, ip: &Ip, end: LocalEnd, asked: bool, key: &mut FlowKey) -> bool {
    let endpoints = ip.endpoints(ctx);
    with_ports(&endpoints, end, asked, key)
}

/// As [`of`], for the flow whose path a packet is to take: for a later fragment the note of the first, for an ICMP
/// error the flow that it quotes.
#[inline(always)]
pub(crate) fn followed(
    ctx: &TcContext,
    ip: &Ip,
    end: LocalEnd,
    asked: bool,
    key: &mut FlowKey,
) -> bool {
    if ip.payload.fragment & LATER != 0 {
        to_fragments(ip, key);
        return true;
    }
    let endpoints = ip.endpoints(ctx);
    if let Endpoints::Error = endpoints {
        let v6 = ip.payload.protocol == ICMPV6;
        let is_sender = matches!(end, LocalEnd::Source);
        return extended::quoted(ctx.skb.skb, ip.payload.at, v6, is_sender, key);
    }
    with_ports(&endpoints, end, asked, key)
}

#[inline(always)]
pub(crate) fn with_ports(
    endpoints: &Endpoints,
    end: LocalEnd,
    asked: bool,
    key: &mut FlowKey,
) -> bool {
    match (endpoints, end) {
        (Endpoints::Ports(source, destination), LocalEnd::Source) => {
            key.local_port = *source;
            key.remote_port = *destination;
        }
        (Endpoints::Ports(source, destination), LocalEnd::Destination) => {
            key.local_port = *destination;
            key.remote_port = *source;
        }
        (Endpoints::EchoRequest(_), LocalEnd::Source)
        | (Endpoints::EchoReply(_), LocalEnd::Destination)
            if asked =>
        {
            return false;
        }
        // The identifier is on the local side of the key, so that request and reply match.
        (Endpoints::EchoRequest(id) | Endpoints::EchoReply(id), _) => key.local_port = *id,
        (Endpoints::Error | Endpoints::None, _) => return false,
    }
    true
}

/// Changes `key` to the one under which the path of a packet's first fragment is noted for the later ones. IPv6 numbers
/// packets between two addresses, whatever they carry (RFC 8200, 4.5), and only the first fragment may contain that.
#[inline(always)]
pub(crate) fn to_fragments(ip: &Ip, key: &mut FlowKey) {
    let id = ip.payload.identification;
    key.local_port = [id[0], id[1]];
    key.remote_port = [id[2], id[3]];
    key.protocol = if ip.is_v4() { ip.payload.protocol } else { 0 };
    key.kind |= FRAGMENTS;
}
