//! Reads routes of others in the table `local`: what the namespace takes for its own though it is on no link.
//!
//! google-guest-agent adds such a route for each alias range and forwarded address of the machine (protocol 66), and
//! proxies add some to answer for whole networks. The kernel's own (protocol 2) are those of addresses on links, which
//! are known by these.

use ebbtide_types::Family;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};

use super::{Error, Netlink, model::LOCAL_TABLE, state::ip};

/// The offsets of a route's table, protocol and type in `struct rtmsg` (include/uapi/linux/rtnetlink.h).
const AT_TABLE: usize = 4;
const AT_PROTOCOL: usize = 5;
const AT_TYPE: usize = 7;
/// `RTPROT_KERNEL` and `RTN_LOCAL`.
const BY_KERNEL: u8 = 2;
const LOCAL: u8 = 2;

/// The protocol of google-guest-agent's routes (`[IpForwarding] ethernet_proto_id` in its configuration).
pub const GOOGLE_GUEST_AGENT: u8 = 66;

/// A route of somebody else's in the table `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    /// The addresses.
    pub net: IpNet,
    /// Its protocol: who added it.
    pub protocol: u8,
}

impl Netlink {
    /// Reads the local destinations that somebody else's routes in the table `local` add.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn local_routes_of_others(&self) -> Result<Vec<IpNet>, Error> {
        let routes = self.local_routes().await?.into_iter();
        Ok(routes.map(|route| route.net).collect())
    }

    /// Reads these routes with their protocols.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn local_routes(&self) -> Result<Vec<LocalRoute>, Error> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            let routes = self.routes_in(family, LOCAL_TABLE, is_others, |route| {
                let protocol = u8::from(route.header.protocol);
                local_route(route).map(|net| LocalRoute { net, protocol })
            });
            all.extend(routes.await?);
        }
        Ok(all)
    }
}

/// Whether the bytes of a route (`struct rtmsg`) are one of these: with IPVS the kernel's own are thousands, and are not
/// decoded.
fn is_others(bytes: &[u8]) -> bool {
    let at = |offset: usize| bytes.get(offset).copied();
    at(AT_TABLE) == Some(LOCAL_TABLE as u8)
        && at(AT_TYPE) == Some(LOCAL)
        && at(AT_PROTOCOL) != Some(BY_KERNEL)
}

/// Returns the destination of a route of somebody else's in the table `local`; `None` for any other.
pub(super) fn local_route(message: &RouteMessage) -> Option<IpNet> {
    let header = &message.header;
    if u32::from(header.table) != LOCAL_TABLE
        || header.kind != RouteType::Local
        || header.protocol == RouteProtocol::Kernel
    {
        return None;
    }
    let mut destinations = message.attributes.iter().filter_map(|a| match a {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    // Without one it is for all addresses, which a proxy that takes everything adds.
    let to = destinations.next()?;
    IpNet::new(to, header.destination_prefix_length).ok()
}
