//! Looks up the route to a single address.

use std::net::IpAddr;

use ebbtide_types::Family;
use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{Error, Netlink, message, state::next_hop};

/// The errors of a lookup that finds no route (`fib_lookup`, `ip6_route_output`): no such network, or a route or rule
/// that refuses.
const UNREACHABLE: [i32; 4] = [
    Errno::ENETUNREACH as i32,
    Errno::EHOSTUNREACH as i32,
    Errno::EACCES as i32,
    Errno::EINVAL as i32,
];

/// The route to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FibResult {
    /// To the namespace itself.
    Local,
    /// To all on a link: a network's broadcast address, an anycast or a multicast one.
    Broadcast,
    /// Out on a link.
    Via {
        /// The link's index.
        ifindex: u32,
        /// The next hop, if there is one.
        via: Option<IpAddr>,
    },
    /// No route.
    Unreachable,
}

impl Netlink {
    /// Looks up the route of the namespace's own sockets to this address: one lookup, no dump.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn fib_lookup(&self, address: IpAddr) -> Result<FibResult, Error> {
        let mut question = RouteMessage::default();
        let family = Family::of(address);
        question.header.address_family = message::address_family(family);
        question.header.destination_prefix_length = family.everything().max_prefix_len();
        let destination = RouteAttribute::Destination(address.into());
        question.attributes.push(destination);
        let what = format!("look up the route to {address}");
        let question = RouteNetlinkMessage::GetRoute(question);
        match self.ask(&what, question).await {
            Ok(answer) => Ok(way(&answer).unwrap_or(FibResult::Unreachable)),
            Err(e) if e.errno().is_some_and(|errno| UNREACHABLE.contains(&errno)) => {
                Ok(FibResult::Unreachable)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the kernel delivers packets for this address locally. An IPv6 address that is still being probed (RFC
    /// 4862, 5.4) is not local yet.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn is_local(&self, address: IpAddr) -> Result<bool, Error> {
        Ok(self.fib_lookup(address).await? == FibResult::Local)
    }
}

fn way(answer: &RouteNetlinkMessage) -> Option<FibResult> {
    let RouteNetlinkMessage::NewRoute(route) = answer else {
        return None;
    };
    let (mut by, mut via) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => by = Some(*index),
            other => via = next_hop(other).or(via),
        }
    }
    Some(match (route.header.kind, by) {
        (RouteType::Local, _) => FibResult::Local,
        (RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast, _) => {
            FibResult::Broadcast
        }
        (RouteType::Unicast, Some(ifindex)) => FibResult::Via { ifindex, via },
        _ => FibResult::Unreachable,
    })
}
