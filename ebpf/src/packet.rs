//! Parses packets by direct access.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use ebbtide_layout::{Address, HOST_BYPASS_MAC};

use crate::extended;

pub(crate) const TCP: u8 = 6;
pub(crate) const ICMP: u8 = 1;
pub(crate) const UDP: u8 = 17;

/// Flags of a TCP header (RFC 9293, 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

pub(crate) const ETH_HLEN: usize = 14;
pub(crate) const ETH_P_IP: [u8; 2] = [0x08, 0x00];
const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];

/// The VLAN's number in a tag. Zero is a priority alone, and such a frame like any other.
const VLAN_VID_MASK: u32 = 0x0fff;

/// Farthest offset at which a transport header is read directly: after IPv4 with all options (74), or IPv6 with 24
/// bytes of extension headers. Not 74, which no IPv6 packet has: the verifier of 7.2 knows that offsets there end in
/// six modulo eight, and lowers the bound of where a read ends, but not that of where it begins; then it takes the read
/// to be beyond what was compared.
const FARTHEST: u32 = (ETH_HLEN + 40 + 24) as u32;

/// [`Payload::fragment`]: the first of several fragments.
pub(crate) const FIRST: u8 = 1;
/// [`Payload::fragment`]: a fragment without a transport header.
pub(crate) const LATER: u8 = 2;
/// [`Payload::fragment`]: the last fragment, [`LATER`] too.
pub(crate) const LAST: u8 = 4;

/// The payload of an IP packet.
pub(crate) struct Payload {
    /// Offset of the transport header from the start of the frame.
    pub(crate) at: u32,
    /// Identifies the fragments of one packet; zero without fragments.
    pub(crate) identification: [u8; 4],
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// [`FIRST`], [`LATER`], [`LAST`]; zero for a whole packet.
    pub(crate) fragment: u8,
}

/// Addresses of an IP packet, and its payload. Written in place, and aligned so that the compiler does not copy it by
/// bytes.
#[repr(C, align(8))]
pub(crate) struct Ip {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) payload: Payload,
}

/// Distinguishes flows between two addresses.
pub(crate) enum Endpoints {
    /// Source and destination port; zeros for protocols without ports.
    Ports([u8; 2], [u8; 2]),
    /// An ICMP echo request's identifier.
    EchoRequest([u8; 2]),
    /// An ICMP echo reply's identifier.
    EchoReply([u8; 2]),
    /// An ICMP error, which quotes a packet.
    Error,
    /// Nothing that identifies a flow.
    None,
}

/// Reads a `T` at `offset`, if the packet's linear part holds it.
#[inline(always)]
pub(crate) fn read<T: Plain>(ctx: &TcContext, offset: usize) -> Option<T> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: `at .. at + size` lies within the packet, as just compared, and every bit pattern is a
    // `T`. It may not be aligned: what that means is up to the kernel, which takes such loads on
    // every architecture with efficient unaligned access, and refuses the program on others. A read
    // by bytes would be right everywhere, and takes four times the instructions.
    Some(unsafe { *(at as *const T) })
}

/// Offset of the flags in a TCP header (RFC 9293, 3.1).
const FLAGS: usize = 13;

/// Types that can be read from packets: arrays of integers.
pub(crate) trait Plain: Copy {}
impl<const N: usize> Plain for [u8; N] {}
impl<const N: usize> Plain for [u32; N] {}
impl<const N: usize> Plain for [u64; N] {}

/// Returns an IPv4 address from a header. In two words, like IPv6's: a processor that loads eight bytes stalls if they
/// were just stored in two parts.
#[inline(always)]
fn v4(word: u32) -> Address {
    let [a, b, c, d] = word.to_ne_bytes();
    v6([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
}

/// Returns an IPv6 address from a header.
#[inline(always)]
fn v6(words: [u64; 2]) -> Address {
    // SAFETY: both are sixteen bytes, and every bit pattern is an address.
    unsafe { core::mem::transmute::<[u64; 2], Address>(words) }
}

/// Returns the IPv4 address in `address` as kernel helpers take it: in network byte order.
#[inline(always)]
pub(crate) fn v4_word(address: Address) -> u32 {
    let [.., a, b, c, d] = address;
    u32::from_ne_bytes([a, b, c, d])
}

/// Returns the address as kernel helpers take an IPv6 one.
#[inline(always)]
pub(crate) fn words(address: Address) -> [u32; 4] {
    // SAFETY: both are sixteen bytes, and every bit pattern is an address.
    unsafe { core::mem::transmute::<Address, [u32; 4]>(address) }
}

/// Ensures that the IP header is in the linear part, where direct access can read it, and no more than that. TCP's own
/// packets have only their headers there, shared with the copy kept for a retransmission: pulling one byte more
/// allocates a new head (`pskb_expand_head`, net/core/skbuff.c), which costs ten times what the program does.
#[inline(always)]
pub(crate) fn linearise(ctx: &TcContext) {
    let have = (ctx.data_end() - ctx.data()) as u32;
    let headers = match read::<[u8; 2]>(ctx, ETH_HLEN - 2) {
        Some(ETH_P_IPV6) => ETH_HLEN as u32 + 40,
        _ => ETH_HLEN as u32 + 20,
    };
    if have < headers && have < ctx.len() {
        let want = if ctx.len() < headers {
            ctx.len()
        } else {
            headers
        };
        // A failure leaves the packet unchanged; the reads below then find it too short.
        let _short = ctx.pull_data(want);
    }
}

/// Returns the packet's addresses and payload, written to `place`; `None` as for [`parse`].
#[inline(always)]
pub(crate) fn ip<'a>(ctx: &TcContext, place: &'a mut MaybeUninit<Ip>) -> Option<&'a Ip> {
    // SAFETY: `parse` has written it if it returns true.
    parse(ctx, place).then(|| unsafe { place.assume_init_ref() })
}

/// Parses the packet's IP header into `place`: zeroing it first would cost a call, and returning it by value a copy.
/// False for anything but IPv4 and IPv6, for truncated packets, and for packets in a VLAN: that is another network,
/// whatever the addresses.
#[inline(always)]
fn parse(ctx: &TcContext, place: &mut MaybeUninit<Ip>) -> bool {
    if is_in_vlan(ctx) {
        return false;
    }
    match read::<[u8; 2]>(ctx, ETH_HLEN - 2) {
        Some(ETH_P_IP) => {
            let Some(header) = read::<[u32; 5]>(ctx, ETH_HLEN) else {
                return false;
            };
            let [first, _, _, _] = header[0].to_ne_bytes();
            let words = u32::from(first & 0x0f);
            if first >> 4 != 4 || words < 5 {
                return false;
            }
            let [id_high, id_low, flags, offset] = header[1].to_ne_bytes();
            let [_ttl, protocol, _, _] = header[2].to_ne_bytes();
            place.write(Ip {
                source: v4(header[3]),
                destination: v4(header[4]),
                payload: Payload {
                    at: ETH_HLEN as u32 + words * 4,
                    identification: [id_high, id_low, 0, 0],
                    protocol,
                    fragment: fragment([flags & 0x1f, offset], flags & 0x20 != 0),
                },
            });
            true
        }
        Some(ETH_P_IPV6) => {
            let Some(header) = read::<[u64; 5]>(ctx, ETH_HLEN) else {
                return false;
            };
            let [first, _, _, _, _, _, protocol, _hops] = header[0].to_ne_bytes();
            if first >> 4 != 6 {
                return false;
            }
            let ip = place.write(Ip {
                source: v6([header[1], header[2]]),
                destination: v6([header[3], header[4]]),
                payload: Payload {
                    at: ETH_HLEN as u32 + 40,
                    identification: [0; 4],
                    protocol,
                    fragment: 0,
                },
            });
            if extended::is_extension(protocol) {
                extended::walk(ctx.skb.skb, &mut ip.payload);
            }
            true
        }
        _ => false,
    }
}

/// Returns the flags of a TCP header at this offset; zero without a header.
#[inline(always)]
pub(crate) fn tcp_flags_at(skb: *mut __sk_buff, at: u32) -> u8 {
    extended::load::<1>(skb, at + FLAGS as u32).map_or(0, |flags| flags[0])
}

/// As [`Ip::endpoints`], of a packet with this protocol and its transport header `at` this offset.
#[inline(always)]
pub(crate) fn endpoints_at(skb: *mut __sk_buff, at: u32, protocol: u8) -> Endpoints {
    if has_ports(protocol) {
        return match extended::load::<4>(skb, at) {
            Some([a, b, c, d]) => Endpoints::Ports([a, b], [c, d]),
            None => Endpoints::None,
        };
    }
    match protocol {
        ICMP | ICMPV6 => match extended::load::<6>(skb, at) {
            Some(h) => icmp(protocol, h[0], [h[4], h[5]]),
            None => Endpoints::None,
        },
        _ => Endpoints::Ports([0; 2], [0; 2]),
    }
}

/// Whether the packet is in a VLAN. The kernel keeps the tag beside the frame in both directions (`skb_vlan_untag`,
/// net/core/skbuff.c), so the frame itself has none. When a VLAN's own link removes the tag, kernels before 6.2 keep
/// its number and clear `vlan_present` alone (`__vlan_hwaccel_clear_tag`, include/linux/if_vlan.h).
#[inline(always)]
pub(crate) fn is_in_vlan(ctx: &TcContext) -> bool {
    // SAFETY: the context of a tc program is valid for as long as the program runs.
    let (present, tag) = unsafe { ((*ctx.skb.skb).vlan_present, (*ctx.skb.skb).vlan_tci) };
    present != 0 && tag & VLAN_VID_MASK != 0
}

/// Whether the frame's source requests the host-stack bypass.
#[inline(always)]
pub(crate) fn is_host_bypass(ctx: &TcContext) -> bool {
    const SOURCE: usize = 6;
    read(ctx, SOURCE) == Some(HOST_BYPASS_MAC)
}

/// Returns the number of the NIC in the frame's source, if that is the end `of` a veth pair ([`NIC_BYTE`]); else zero.
#[inline(always)]
pub(crate) fn nic(ctx: &TcContext, of: [u8; 6]) -> u8 {
    const SOURCE: usize = 6;
    let Some([a, b, c, d, number, last]) = read::<[u8; 6]>(ctx, SOURCE) else {
        return 0;
    };
    let [e, f, g, h, _, end] = of;
    if u32::from_ne_bytes([a, b, c, d]) == u32::from_ne_bytes([e, f, g, h]) && last == end {
        number
    } else {
        0
    }
}

/// Classifies a fragment by its offset in the packet and whether more of them follow.
#[inline(always)]
pub(crate) fn fragment(offset: [u8; 2], more: bool) -> u8 {
    match (offset, more) {
        ([0, 0], false) => 0,
        ([0, 0], true) => FIRST,
        (_, true) => LATER,
        (_, false) => LATER | LAST,
    }
}

/// Classifies an ICMP or ICMPv6 message by its type (RFC 792, RFC 4443).
#[inline(always)]
pub(crate) fn icmp(protocol: u8, kind: u8, identifier: [u8; 2]) -> Endpoints {
    match (protocol, kind) {
        (ICMP, 8) | (ICMPV6, 128) => Endpoints::EchoRequest(identifier),
        (ICMP, 0) | (ICMPV6, 129) => Endpoints::EchoReply(identifier),
        (ICMP, 3 | 11 | 12) | (ICMPV6, 1..=4) => Endpoints::Error,
        _ => Endpoints::None,
    }
}

/// Whether a protocol's header starts with a source and a destination port.
#[inline(always)]
pub(crate) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | UDPLITE | SCTP)
}

impl Ip {
    /// Whether the destination is multicast or broadcast.
    #[inline(always)]
    pub(crate) fn is_multicast(&self) -> bool {
        // 224/4 and 255.255.255.255 start with 0xe or 0xf.
        self.destination[0] == 0xff || (self.is_v4() && self.destination[12] >= 0xe0)
    }

    /// Whether the addresses are IPv4's: `::ffff:a.b.c.d`.
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.destination[10] == 0xff && self.destination[0] == 0
    }

    /// Whether the source identifies no host beyond the link: unspecified (DHCP; RFC 4862's duplicate address
    /// detection), or IPv6 link-local (neighbour discovery, MLD).
    #[inline(always)]
    pub(crate) fn is_from_nobody(&self) -> bool {
        let [a, b, ..] = self.source;
        (a == 0xfe && b & 0xc0 == 0x80)
            || self.source == [0; 16]
            || self.source == ebbtide_layout::mapped([0; 4])
    }

    /// Reads what distinguishes this packet's flow from others between the same addresses.
    #[inline(always)]
    pub(crate) fn endpoints(&self, ctx: &TcContext) -> Endpoints {
        let protocol = self.payload.protocol;
        if self.payload.fragment & LATER != 0 {
            return Endpoints::None;
        }
        if has_ports(protocol) {
            return match self.start::<4>(ctx) {
                Some(p) => Endpoints::Ports([p[0], p[1]], [p[2], p[3]]),
                None => Endpoints::None,
            };
        }
        match protocol {
            ICMP | ICMPV6 => match self.start::<6>(ctx) {
                Some(h) => icmp(protocol, h[0], [h[4], h[5]]),
                None => Endpoints::None,
            },
            // Anything else is distinguished by protocol and addresses alone.
            _ => Endpoints::Ports([0; 2], [0; 2]),
        }
    }

    /// Returns the flags of a TCP header; zero without a header.
    #[inline(always)]
    pub(crate) fn tcp_flags(&self, ctx: &TcContext) -> u8 {
        if self.payload.fragment & LATER != 0 {
            return 0;
        }
        self.start::<{ FLAGS + 1 }>(ctx)
            .map_or(0, |header| header[FLAGS])
    }

    /// As [`Ip::tcp_flags`], after another read of the header: the verifier of 6.1 takes a second comparison of the
    /// offset with [`FARTHEST`] to be independent of the first, and refuses the direct read.
    #[inline(always)]
    pub(crate) fn tcp_flags_again(&self, ctx: &TcContext) -> u8 {
        if self.payload.fragment & LATER != 0 {
            return 0;
        }
        tcp_flags_at(ctx.skb.skb, self.payload.at)
    }

    /// Reads the first bytes of the transport header, wherever in the packet they are.
    #[inline(always)]
    pub(crate) fn start<const N: usize>(&self, ctx: &TcContext) -> Option<[u8; N]> {
        let at = self.payload.at;
        if at <= FARTHEST
            && let Some(bytes) = read(ctx, at as usize)
        {
            return Some(bytes);
        }
        extended::load(ctx.skb.skb, at)
    }
}
