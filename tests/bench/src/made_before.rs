//! An interface of another plugin, made before Ebbtide is called: a macvlan with an address.

use std::{net::Ipv4Addr, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use ebbtide_kernel::netlink::{Batch, direct::Direct, link::Ipvlan};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::netns::Netns;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{
    contender::Pod,
    testbed::{GATEWAY, NIC, Slave},
};

/// Its name in the pod.
pub const INTERFACE: &str = "eth0";
/// Its MTU in bytes, the NIC's.
pub const MTU: u32 = 9001;

/// Makes such interfaces on the NIC of a node.
#[derive(Clone, Debug)]
pub struct MadeBefore(Netns);

impl MadeBefore {
    /// Creates the maker for `node`.
    #[must_use]
    pub fn on(node: &Netns) -> Self {
        Self(node.clone())
    }

    /// Returns the pod's address, in the half of the subnet that no pool has.
    #[must_use]
    pub fn address(pod: &Pod) -> Ipv4Net {
        let number = u32::try_from(pod.number % 0x3ffe).unwrap_or_default();
        Ipv4Net::new_assert(Ipv4Addr::from(0x0a4d_4001 + number), 16)
    }

    /// Creates the pod's interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn make(&self, pod: &Pod) -> Result<()> {
        let link = Ipvlan {
            name: INTERFACE.to_owned(),
            master: NIC.to_owned(),
            mode: IpvlanMode::L3,
            mtu: MTU,
        };
        let namespace = std::fs::File::open(pod.netns.path())?;
        self.0.run(|| {
            let mut netlink = Direct::open("in the node")?;
            let links = netlink.links(&[NIC])?;
            let master = links.get(NIC).context("the node has no NIC")?.ifindex;
            let mut batch = Batch::default();
            Slave::Macvlan.add(&mut batch, &link, master, namespace.as_raw_fd());
            netlink.run(batch)?;
            anyhow::Ok(())
        })?;
        let netlink = pod.netns.netlink()?;
        netlink.add_address(INTERFACE, Self::address(pod).into())?;
        netlink.set_up(INTERFACE)
    }

    /// Returns the result of the plugin that would make it (CNI 1.0.0, section 5).
    #[must_use]
    pub fn result(pod: &Pod) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": INTERFACE, "sandbox": pod.netns.path()}],
            "ips": [{"address": Self::address(pod), "gateway": GATEWAY, "interface": 0}],
        })
    }
}
