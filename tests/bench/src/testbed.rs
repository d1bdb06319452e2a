//! A node for benchmarks: one NIC, a wire, a router with a client behind it, and addresses for many pods.

use std::{net::IpAddr, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use ebbtide_kernel::netlink::{Batch, direct::Direct, link::Ipvlan};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::{
    netlink::{Netlink, VethEnd},
    netns::Netns,
};
use ipnet::IpNet;
use rtnetlink::{
    LinkMacVlan,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{RouteNetlinkMessage, link::MacVlanMode},
};

/// The node's NIC.
pub const NIC: &str = "ens5";
/// The network on the NIC.
pub const NETWORK: &str = "default/ipvlan-ens5";
/// The network on the NIC with both families.
pub const DUAL: &str = "default/dual-ens5";
/// The NIC's IPv4 subnet. Pods have addresses of its second half.
pub const SUBNET: &str = "10.77.0.0/16";
/// The subnet's router.
pub const GATEWAY: &str = "10.77.0.1";
/// The node's own address.
pub const NODE: &str = "10.77.0.2";
/// A client behind the router, which connects to pods' own addresses.
pub const CLIENT: &str = "198.51.100.9";
/// Another client, which connects to NodePorts. One client that used both would now and then meet its own earlier ports:
/// with CONNMARK the reply of such a flow leaves by the wrong interface, and is lost.
pub const NODE_PORT_CLIENT: &str = "198.51.100.10";
/// The first and the last address for pods.
pub const PODS: [&str; 2] = ["10.77.128.1", "10.77.191.254"];

/// The kind of a pod's interface on the NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slave {
    /// ipvlan, as Ebbtide uses it.
    Ipvlan,
    /// macvlan, the closest kind if the kernel has no ipvlan.
    Macvlan,
}

impl Slave {
    /// Returns the name that the kernel and the plugins use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipvlan => "ipvlan",
            Self::Macvlan => "macvlan",
        }
    }

    /// Returns what a report calls it, with what follows for packets that the pod sends.
    #[must_use]
    pub const fn described(self) -> &'static str {
        match self {
            Self::Ipvlan => {
                "an ipvlan in l3 mode: what the pod sends passes the node's routing and netfilter"
            }
            Self::Macvlan => {
                "a macvlan, as this kernel has no ipvlan: what the pod sends does not pass the node's \
                 routing and netfilter"
            }
        }
    }

    /// Adds an interface in the namespace of `netns`.
    pub fn add(self, batch: &mut Batch, ipvlan: &Ipvlan, master: u32, netns: i32) {
        match self {
            Self::Ipvlan => batch.add_ipvlan(ipvlan, master, netns, false),
            Self::Macvlan => batch.push(
                format_args!("create macvlan {}", ipvlan.name),
                RouteNetlinkMessage::NewLink(
                    LinkMacVlan::new(&ipvlan.name, master, MacVlanMode::Bridge)
                        .mtu(ipvlan.mtu)
                        .setns_by_fd(netns)
                        .build(),
                ),
                NLM_F_CREATE | NLM_F_EXCL,
            ),
        }
    }
}

/// A node, and the wire of its NIC.
#[derive(Debug)]
pub struct Testbed {
    /// The node's namespace.
    pub node: Netns,
    /// The other end: the subnet's router, and a client behind it.
    pub wire: Netns,
}

impl Testbed {
    /// Builds the node and the wire.
    ///
    /// # Errors
    /// If a step fails; the error names it.
    pub fn build() -> Result<Self> {
        let (node, wire) = (Netns::new("node")?, Netns::new("wire")?);
        for netns in [&node, &wire] {
            netns.sysctls(&[
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/default/router_solicitations", "0"),
            ])?;
        }
        let netlink = wire.netlink()?;
        netlink.add_veth(
            &VethEnd {
                netns: &wire,
                name: "wire",
                mac: [2, 0xc1, 0x0d, 0, 1, 1],
            },
            &VethEnd {
                netns: &node,
                name: NIC,
                mac: [2, 0xc1, 0x0d, 0, 1, 2],
            },
            9001,
        )?;
        let own = node.netlink()?;
        own.set_up(NIC)?;
        for (address, gateway) in [
            ("10.77.0.2/16", GATEWAY),
            ("2001:db8:77::2/64", "2001:db8:77::1"),
        ] {
            let (address, gateway): (IpNet, IpAddr) = (address.parse()?, gateway.parse()?);
            own.add_address(NIC, address)?;
            let everything = IpNet::new(
                match gateway {
                    IpAddr::V4(_) => [0; 4].into(),
                    IpAddr::V6(_) => [0_u16; 8].into(),
                },
                0,
            )?;
            retry(&own, everything, gateway)?;
        }
        netlink.add_address("wire", IpNet::new(GATEWAY.parse()?, 16)?)?;
        for client in [CLIENT, NODE_PORT_CLIENT] {
            netlink.add_address("lo", IpNet::new(client.parse()?, 32)?)?;
        }
        Ok(Self { node, wire })
    }

    /// Returns the kind of interface that this kernel has.
    ///
    /// # Errors
    /// If it has neither.
    pub fn slave(&self) -> Result<Slave> {
        let name = "try0";
        let ipvlan = Ipvlan {
            name: name.to_owned(),
            master: NIC.to_owned(),
            mode: IpvlanMode::L3,
            mtu: 1500,
        };
        self.node.run(|| {
            let mut netlink = Direct::open("in the node")?;
            let own = std::fs::File::open("/proc/thread-self/ns/net")?;
            let master = netlink.links(&[NIC])?.get(NIC).map(|link| link.ifindex);
            let master = master.context("the node has no NIC")?;
            let mut kinds = [Slave::Ipvlan, Slave::Macvlan].into_iter();
            let found = kinds.find(|kind| {
                let mut batch = Batch::default();
                kind.add(&mut batch, &ipvlan, master, own.as_raw_fd());
                netlink.run(batch).is_ok()
            });
            let mut batch = Batch::default();
            if let Some(link) = netlink.links(&[name])?.get(name) {
                batch.delete_link(name, link.ifindex);
            }
            netlink.run(batch)?;
            found.context("this kernel has neither ipvlan nor macvlan")
        })
    }

    /// Returns manifests as a person would write them: one network with an IPv4 pool, one with both families.
    #[must_use]
    pub fn manifests() -> String {
        let [first, last] = PODS;
        format!(
            "\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {{name: ipvlan-{NIC}, namespace: default}}
spec: {{cniType: ipvlan, ipvlan: {{master: [{NIC}], ippools: {{ipv4: [v4]}}}}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {{name: dual-{NIC}, namespace: default}}
spec: {{cniType: ipvlan, ipvlan: {{master: [{NIC}], ippools: {{ipv4: [v4], ipv6: [v6]}}}}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: v4}}
spec: {{subnet: {SUBNET}, ips: [{first}-{last}], gateway: {GATEWAY}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: v6}}
spec:
  subnet: 2001:db8:77::/64
  ips: [2001:db8:77::1:1-2001:db8:77::1:ffff]
  gateway: 2001:db8:77::1
"
        )
    }
}

/// Retries an IPv6 route by a gateway until the link has a carrier and the address is no longer tentative.
fn retry(netlink: &Netlink, destination: IpNet, gateway: IpAddr) -> Result<()> {
    let mut result = Ok(());
    for _ in 0..50 {
        result = netlink.add_route(destination, gateway);
        if result.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    result.context("giving the node its default route")
}
