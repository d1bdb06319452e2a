//! Reads the node's routes to networks behind other gateways than a link's default gateway.

use std::net::IpAddr;

use ebbtide_types::Family;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};

use super::{
    Error, Netlink,
    model::{MAIN_TABLE, PROTOCOL},
    state::{ip, next_hop},
};

/// A route to a network by a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByGateway {
    /// The network.
    pub destination: IpNet,
    /// The gateway.
    pub via: IpAddr,
    /// The link's index.
    pub ifindex: u32,
}

impl Netlink {
    /// Reads the main table's routes with one gateway each, except default routes and Ebbtide's.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn routes_by_gateways(&self) -> Result<Vec<ByGateway>, Error> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            all.extend(self.routes_in(family, MAIN_TABLE, |_| true, parse).await?);
        }
        Ok(all)
    }
}

fn parse(message: &RouteMessage) -> Option<ByGateway> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.protocol == RouteProtocol::from(PROTOCOL) {
        return None;
    }
    let (mut destination, mut via, mut link, mut table) =
        (None, None, None, u32::from(header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Table(id) => table = *id,
            other => via = next_hop(other).or(via),
        }
    }
    (table == MAIN_TABLE && header.destination_prefix_length > 0).then_some(())?;
    Some(ByGateway {
        destination: IpNet::new(destination?, header.destination_prefix_length).ok()?,
        via: via?,
        ifindex: link?,
    })
}
