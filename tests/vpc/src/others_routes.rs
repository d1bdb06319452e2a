//! Many routes and neighbours of other software, as on a node with a BGP daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use ebbtide_kernel::netlink::{Batch, direct::Direct, model::Neighbour};
use ebbtide_types::Mac;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::netns::Netns;

/// `RTPROT_BGP` (include/uapi/linux/rtnetlink.h).
const BGP: u8 = 186;
/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;
/// The tables of the routes, in turn: the main one, and one of their own.
const TABLES: [u32; 2] = [254, 1000];
/// The share of IPv6 routes: one of this many.
const IPV6: u32 = 20;

/// Foreign routes over one link of a namespace.
#[derive(Clone, Debug)]
pub struct OthersRoutes {
    netns: Netns,
    ifindex: u32,
    link: String,
}

impl OthersRoutes {
    /// Creates an empty set of routes over the link called `link`, which must be up.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn over(netns: &Netns, link: &str) -> Result<Self> {
        Ok(Self {
            netns: netns.clone(),
            ifindex: netns.netlink()?.index(link)?,
            link: link.to_owned(),
        })
    }

    /// Adds the routes with these numbers.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub fn add(&self, numbers: std::ops::Range<u32>) -> Result<()> {
        self.each(numbers, |route| {
            (RouteNetlinkMessage::NewRoute(route), CREATE)
        })
    }

    /// Deletes the routes with these numbers.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn delete(&self, numbers: std::ops::Range<u32>) -> Result<()> {
        self.each(numbers, |route| (RouteNetlinkMessage::DelRoute(route), 0))
    }

    /// Adds `count` permanent neighbours.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub fn add_neighbours(&self, count: u32) -> Result<()> {
        let mut batch = Batch::default();
        for number in 0..count {
            let neighbour = Neighbour {
                link: self.link.clone(),
                address: Ipv4Addr::from(0x0a40_0000 + number).into(),
                mac: Mac([2, 0, 0, 0, (number >> 8) as u8, number as u8]),
            };
            batch.add_neighbour(&neighbour, self.ifindex);
        }
        self.run(batch)
    }

    fn each(
        &self,
        numbers: std::ops::Range<u32>,
        request: impl Fn(RouteMessage) -> (RouteNetlinkMessage, u16),
    ) -> Result<()> {
        let mut batch = Batch::default();
        for number in numbers {
            let (message, flags) = request(self.route(number));
            batch.push("change others' routes", message, flags);
        }
        self.run(batch)
    }

    fn run(&self, batch: Batch) -> Result<()> {
        let run = || Ok(Direct::open("in the test")?.run(batch)?);
        self.netns.run(run).context("others' routes")
    }

    fn route(&self, number: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.protocol = RouteProtocol::from(BGP);
        message.header.kind = RouteType::Unicast;
        let (family, destination, prefix): (_, IpAddr, _) = match number % IPV6 {
            0 => {
                let number = Ipv6Addr::from((0x2001_0db8_u128 << 96) + (u128::from(number) << 72));
                (AddressFamily::Inet6, number.into(), 56)
            }
            _ => {
                message.header.scope = RouteScope::Link;
                let number = Ipv4Addr::from((20 << 24) + (number << 8));
                (AddressFamily::Inet, number.into(), 24)
            }
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = prefix;
        let table = TABLES[number as usize % TABLES.len()];
        message.attributes.extend([
            RouteAttribute::Table(table),
            RouteAttribute::Oif(self.ifindex),
            RouteAttribute::Destination(destination.into()),
        ]);
        message
    }
}
