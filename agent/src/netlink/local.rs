//! Whether an address is the namespace's own, asked about that one alone.

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{Error, Netlink, message, model::Family};

/// What the kernel answers where a look-up of a way comes to nothing (`fib_lookup`, `ip6_route_output`): no such
/// network, or a route or rule that refuses.
const NO_WAY: [i32; 4] = [
    Errno::ENETUNREACH as i32,
    Errno::EHOSTUNREACH as i32,
    Errno::EACCES as i32,
    Errno::EINVAL as i32,
];

impl Netlink {
    /// Whether the kernel takes what is sent to this address for itself: one look-up, no list. An IPv6 address
    /// that is still being probed (RFC 4862, 5.4) is not its own yet.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn is_local(&self, address: IpAddr) -> Result<bool, Error> {
        let mut question = RouteMessage::default();
        let family = Family::of(address);
        question.header.address_family = message::address_family(family);
        question.header.destination_prefix_length = family.everything().max_prefix_len();
        let destination = RouteAttribute::Destination(address.into());
        question.attributes.push(destination);
        let what = format!("ask for the way to {address}");
        let question = RouteNetlinkMessage::GetRoute(question);
        match self.collect(&what, question, 0).await {
            Ok(answers) => Ok(answers.iter().any(|answer| {
                matches!(answer, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local)
            })),
            Err(e) if e.errno().is_some_and(|errno| NO_WAY.contains(&errno)) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
