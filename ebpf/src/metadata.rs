//! Recognises requests to the clouds' metadata services.
//!
//! They answer whoever sends from an address of the node's, with the credentials of the node's role. A hop limit of one
//! keeps pods off that are behind a bridge or a router, and nobody on ipvlan: nothing forwards what the NIC gets for a pod.

use aya_ebpf::bindings::__sk_buff;
use ebbtide_layout::{
    AZURE_AGENT, AZURE_HOST, Address, METADATA, METADATA_PORT, POD_METADATA_SHIFT, mapped,
};

use crate::{
    extended,
    packet::{ETH_HLEN, ETH_P_IP},
};

/// Returns the bit of `POD_METADATA` for the service that a packet is for; zero for none. `at`: the offset of its TCP header;
/// `is_whole`: zero for what has none that could be read, of which nothing passes.
///
/// Other ports pass: the same addresses serve DNS and NTP. Not inlined, as few packets have such a destination, and with
/// numbers only: see `direct`.
#[inline(never)]
pub(crate) fn asked(skb: *mut __sk_buff, at: u32, is_whole: u32) -> u32 {
    let Some(to) = destination(skb) else {
        return 0;
    };
    let mut service = 0;
    for (index, address) in METADATA.iter().enumerate() {
        if to == *address {
            service = 1 << (POD_METADATA_SHIFT + index as u32);
        }
    }
    if service == 0 || is_whole == 0 {
        return service;
    }
    match extended::load::<2>(skb, at + 2) {
        Some(METADATA_PORT) | None => service,
        Some(AZURE_AGENT) if to == AZURE_HOST => service,
        Some(_) => 0,
    }
}

/// Returns the destination of an IP packet.
#[inline(always)]
fn destination(skb: *mut __sk_buff) -> Option<Address> {
    let header = ETH_HLEN as u32;
    match extended::load::<2>(skb, header - 2)? {
        ETH_P_IP => extended::load::<4>(skb, header + 16).map(mapped),
        _ => extended::load::<16>(skb, header + 24),
    }
}
