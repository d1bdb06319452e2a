//! What changes in the router and the edge when a cloud assigns addresses to a NIC, or withdraws them.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use ipnet::IpNet;

use crate::{
    netns::Netns,
    plan::{Family, Nic, Plan},
};

/// The largest block, in addresses, for which the router answers ARP and ND: it takes an entry for each.
const ANSWERED: usize = 1024;

/// The way of packets to a NIC's blocks of addresses.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    /// The plan of the VPC.
    pub(crate) plan: &'a Plan,
    /// The router.
    pub(crate) router: &'a Netns,
    /// The edge.
    pub(crate) edge: &'a Netns,
}

impl Delivery<'_> {
    /// Delivers what is sent to this block to a NIC.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn begin(&self, nic: &Nic, block: IpNet) -> Result<()> {
        let (netlink, port) = (self.router.netlink()?, nic.port());
        let answered = self.answered(nic, block)?;
        if in_subnet(nic, block) && is_single(block) {
            // As the plan's own: it is the NIC's neighbour.
            if !self.plan.asks {
                netlink.add_neighbours(&port, [block.addr()], nic.mac)?;
            }
            if self.is_shared(nic) {
                netlink.add_on_link_route(block, &port)?;
            }
        } else if self.plan.asks {
            netlink.add_on_link_route(block, &port)?;
        } else {
            netlink.add_route_by(block, nic.primary(family(block)), &port)?;
        }
        for other in self.plan.neighbours(nic) {
            netlink.answer_for(&other.port(), answered.iter().copied())?;
        }
        if self.is_foreign(block) {
            let router = Plan::edge_link(family(block)).router.addr();
            self.edge.netlink()?.add_route(block, router)?;
        }
        Ok(())
    }

    /// Delivers what is sent to this block to nobody.
    ///
    /// # Errors
    /// If it was not delivered to this NIC.
    pub(crate) fn end(&self, nic: &Nic, block: IpNet) -> Result<()> {
        let (netlink, port) = (self.router.netlink()?, nic.port());
        if self.is_foreign(block) {
            self.edge.netlink()?.remove_route(block)?;
        }
        for other in self.plan.neighbours(nic) {
            for address in self.answered(nic, block)? {
                netlink.stop_answering_for(&other.port(), address)?;
            }
        }
        if in_subnet(nic, block) && is_single(block) {
            if self.is_shared(nic) {
                netlink.remove_route(block)?;
            }
            if !self.plan.asks {
                netlink.remove_neighbour(&port, block.addr())?;
            }
            return Ok(());
        }
        netlink.remove_route(block)
    }

    /// Returns the addresses of a block for which the router answers the other nodes of the subnet.
    fn answered(&self, nic: &Nic, block: IpNet) -> Result<Vec<IpAddr>> {
        if !self.is_shared(nic) || !in_subnet(nic, block) {
            return Ok(Vec::new());
        }
        let all = addresses(block).take(ANSWERED + 1).collect::<Vec<_>>();
        ensure!(
            all.len() <= ANSWERED,
            "{block} is too large for a subnet that several nodes share: the router answers for {ANSWERED} addresses"
        );
        Ok(all)
    }

    fn is_shared(&self, nic: &Nic) -> bool {
        self.plan.neighbours(nic).next().is_some()
    }

    /// Whether the block is in no subnet, as alias ranges of Google Cloud.
    fn is_foreign(&self, block: IpNet) -> bool {
        !self.plan.nics().any(|nic| in_subnet(nic, block))
    }
}

/// Whether a block is one address.
pub(crate) fn is_single(block: IpNet) -> bool {
    block.prefix_len() == block.max_prefix_len()
}

/// Returns all addresses of a block, with the first and the last: a cloud gives all of them out.
fn addresses(block: IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match block {
        IpNet::V4(block) => {
            let (first, last) = (u32::from(block.network()), u32::from(block.broadcast()));
            Box::new((first..=last).map(|bits| std::net::Ipv4Addr::from(bits).into()))
        }
        IpNet::V6(block) => Box::new(block.hosts().map(IpAddr::V6)),
    }
}

fn family(block: IpNet) -> Family {
    Family::of(block.addr())
}

fn in_subnet(nic: &Nic, block: IpNet) -> bool {
    nic.subnet(family(block)).primary.trunc().contains(&block)
}
