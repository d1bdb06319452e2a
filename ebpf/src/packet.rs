//! What the programs need to know of a packet, read by direct access.

use aya_ebpf::programs::TcContext;
use ebbtide_layout::{Address, mapped};

pub(crate) const TCP: u8 = 6;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

const ETH_HLEN: usize = 14;
const ETH_P_IP: [u8; 2] = [0x08, 0x00];
const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];

/// The most that is ever read: Ethernet, IPv4 with all options, and ports.
const LONGEST: u32 = (ETH_HLEN + 60 + 8) as u32;

/// Addresses and protocol of an IP packet, and where its payload starts.
pub(crate) struct Ip {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) protocol: u8,
    /// Offset of the transport header from the start of the frame.
    payload: usize,
    /// A fragment other than the first: there is no transport header in it.
    later_fragment: bool,
}

/// What tells flows between two addresses apart.
pub(crate) enum Endpoints {
    /// Source and destination port; zeros for protocols without ports.
    Ports([u8; 2], [u8; 2]),
    /// An ICMP echo request's identifier.
    EchoRequest([u8; 2]),
    /// An ICMP echo reply's identifier.
    EchoReply([u8; 2]),
    /// Nothing that a flow could be told by.
    None,
}

/// `N` bytes at `offset`, if the packet's linear part holds them.
#[inline(always)]
fn bytes<const N: usize>(ctx: &TcContext, offset: usize) -> Option<[u8; N]> {
    let at = ctx.data() + offset;
    if at + N > ctx.data_end() {
        return None;
    }
    // SAFETY: `at .. at + N` lies within the packet, as just compared; byte arrays have no
    // alignment to violate.
    Some(unsafe { *(at as *const [u8; N]) })
}

/// Makes sure that the headers are in the linear part, where direct access can read them.
#[inline(always)]
pub(crate) fn linearise(ctx: &TcContext) {
    let have = (ctx.data_end() - ctx.data()) as u32;
    if have < LONGEST && have < ctx.len() {
        let want = if ctx.len() < LONGEST {
            ctx.len()
        } else {
            LONGEST
        };
        // A failure leaves the packet as it was; the reads below then find it too short.
        let _short = ctx.pull_data(want);
    }
}

/// Parses the IP header; `None` for anything but IPv4 and IPv6, and for truncated packets.
#[inline(always)]
pub(crate) fn ip(ctx: &TcContext) -> Option<Ip> {
    match bytes::<2>(ctx, ETH_HLEN - 2)? {
        ETH_P_IP => {
            let header = bytes::<20>(ctx, ETH_HLEN)?;
            let words = header[0] & 0x0f;
            if header[0] >> 4 != 4 || words < 5 {
                return None;
            }
            Some(Ip {
                source: mapped([header[12], header[13], header[14], header[15]]),
                destination: mapped([header[16], header[17], header[18], header[19]]),
                protocol: header[9],
                payload: ETH_HLEN + words as usize * 4,
                later_fragment: header[6] & 0x1f != 0 || header[7] != 0,
            })
        }
        ETH_P_IPV6 => {
            let start = bytes::<8>(ctx, ETH_HLEN)?;
            if start[0] >> 4 != 6 {
                return None;
            }
            Some(Ip {
                source: bytes(ctx, ETH_HLEN + 8)?,
                destination: bytes(ctx, ETH_HLEN + 24)?,
                protocol: start[6],
                payload: ETH_HLEN + 40,
                later_fragment: false,
            })
        }
        _ => None,
    }
}

impl Ip {
    /// Whether the destination is a group, and no single host.
    #[inline(always)]
    pub(crate) fn is_multicast(&self) -> bool {
        // IPv4 as `::ffff:a.b.c.d`, where 224/4 and 255.255.255.255 start with 0xe or 0xf.
        let v4 = self.destination[10] == 0xff && self.destination[0] == 0;
        self.destination[0] == 0xff || (v4 && self.destination[12] >= 0xe0)
    }

    /// Reads what tells this packet's flow apart from others between the same addresses.
    #[inline(always)]
    pub(crate) fn endpoints(&self, ctx: &TcContext) -> Endpoints {
        if self.later_fragment {
            return Endpoints::None;
        }
        match self.protocol {
            TCP | UDP | UDPLITE | SCTP => match bytes::<4>(ctx, self.payload) {
                Some(p) => Endpoints::Ports([p[0], p[1]], [p[2], p[3]]),
                None => Endpoints::None,
            },
            ICMP | ICMPV6 => match bytes::<6>(ctx, self.payload) {
                // Types: RFC 792 (8 request, 0 reply), RFC 4443 (128, 129).
                Some(h) if self.protocol == ICMP && h[0] == 8 => {
                    Endpoints::EchoRequest([h[4], h[5]])
                }
                Some(h) if self.protocol == ICMP && h[0] == 0 => Endpoints::EchoReply([h[4], h[5]]),
                Some(h) if self.protocol == ICMPV6 && h[0] == 128 => {
                    Endpoints::EchoRequest([h[4], h[5]])
                }
                Some(h) if self.protocol == ICMPV6 && h[0] == 129 => {
                    Endpoints::EchoReply([h[4], h[5]])
                }
                _ => Endpoints::None,
            },
            // Extension headers and anything else: told apart by protocol and addresses alone.
            _ => Endpoints::Ports([0; 2], [0; 2]),
        }
    }
}
