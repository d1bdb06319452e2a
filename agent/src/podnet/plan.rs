//! From facts to a value.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ebbtide_layout::{HOST_MAC, POD_MAC};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::PROGRAMS,
    netlink::{
        Error,
        link::{Ipvlan, IpvlanMode, Veth},
        model::{
            Address, Family, Filter, MAIN_TABLE, Mac, NamespacePlan, Neighbour, Route, Rule,
            Selector, Sysctl, host_net,
        },
        netns::{Evidence, Netns},
    },
    node::{NodeFacts, veth_filters},
    settings::Settings,
};

/// The pod's end of the veth pair.
pub(super) const VETH: &str = "veth0";

/// The host as the pod's next hop. Both are addresses of nobody: the neighbour entry is permanent,
/// so the pod needs no address of the node's to reach the node, and a node that is given another
/// address changes nothing here.
pub(super) const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// See [`NEXT_HOP_V4`].
pub(super) const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// `IN6_ADDR_GEN_MODE_NONE` (include/uapi/linux/if_link.h): no link-local address. It would only
/// cause traffic that no cloud lets pass.
const NO_ADDRESSES: &str = "1";

/// What the runtime asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The container ID.
    pub container_id: String,
    /// The interface's name in the pod.
    pub interface: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// Its inode: the path alone may lead to another one later.
    pub netns_inode: u64,
    /// The pod as a person calls it: `namespace/name`, or the container ID without Kubernetes.
    pub pod: String,
}

/// The network an interface belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name, as a person calls it.
    pub name: String,
    /// The NIC.
    pub master: String,
    /// Mode of the NIC's ipvlan children.
    pub mode: IpvlanMode,
    /// MTU in bytes; the NIC's if `None`.
    pub mtu: Option<u32>,
    /// Whether the pod gets a veth to its node.
    pub veth: bool,
    /// Networks reached through the node, besides those of [`Settings`].
    pub via_host: Vec<IpNet>,
}

/// An address of the pod's, with what its pool says of the network it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// Address and prefix length.
    pub address: IpNet,
    /// The pool.
    pub pool: String,
    /// The subnet's gateway: the pod's default route, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Further routes by this interface: destination and next hop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<(IpNet, IpAddr)>,
}

/// One interface of a pod and all that belongs to it, in both namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodNet {
    /// The pod as a person calls it.
    pub pod: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its inode.
    pub netns_inode: u64,
    /// The network, as a person calls it.
    pub network: String,
    /// Its addresses on this interface.
    pub addresses: Vec<PodAddress>,
    /// The interface itself.
    pub ipvlan: Ipvlan,
    /// The pair to the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub veth: Option<Veth>,
    /// The alias of our links: says whose they are.
    pub alias: String,
    /// The rest, in the pod's namespace.
    #[serde(rename = "inPod")]
    pub in_pod: NamespacePlan,
    /// The rest, in the host's namespace.
    #[serde(rename = "inHost")]
    pub in_host: NamespacePlan,
}

impl PodNet {
    /// Looks whether its namespace is there: the very one, not just something at its path.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn namespace(&self) -> Result<Evidence, Error> {
        Netns::look(&self.netns, Some(self.netns_inode))
    }

    /// The addresses alone.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|a| a.address.addr()).collect()
    }
}

/// Why there can be no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The master is not there.
    #[error("the master {master} of network {network} is not on this node; it has {present}")]
    NoMaster {
        /// Name of the NIC.
        master: String,
        /// Name of the network.
        network: String,
        /// The links that are there.
        present: String,
    },
    /// The master is down.
    #[error(
        "the master {master} of network {network} is down: set it up (`ip link set {master} up`)"
    )]
    MasterDown {
        /// Name of the NIC.
        master: String,
        /// Name of the network.
        network: String,
    },
    /// The master is itself a child.
    #[error(
        "the master {master} of network {network} is itself an {kind} child: name the NIC below it"
    )]
    MasterIsChild {
        /// Name of the NIC.
        master: String,
        /// Name of the network.
        network: String,
        /// `ipvlan` or `macvlan`.
        kind: String,
    },
    /// The MTU asked for is larger than the master's.
    #[error("network {network} asks for an MTU of {mtu}, but its master {master} has {master_mtu}")]
    Mtu {
        /// Name of the network.
        network: String,
        /// Asked for.
        mtu: u32,
        /// Name of the NIC.
        master: String,
        /// The NIC's.
        master_mtu: u32,
    },
    /// The interface cannot have the veth's name.
    #[error("the interface cannot be called {VETH}: that is the name of the pair to the host")]
    NameTaken,
}

/// Name of the host's end: `veth`, which network managers know to leave alone, and a digest, so
/// that a repeated request finds the same one. 11 hex digits are 44 bits: among 1000 interfaces of
/// a node two meet with a probability of 3 in 10^8, and the kernel then refuses the second.
fn host_end(container_id: &str, interface: &str) -> String {
    // FNV-1a, 64 bit: stable for ever, unlike std's hashers.
    let digest = container_id
        .bytes()
        .chain([b'/'])
        .chain(interface.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("veth{:011x}", digest >> 20)
}

/// Plans one interface of a pod.
///
/// # Errors
/// When the node cannot carry it; the message says why and what to do.
pub fn plan(
    sandbox: &Sandbox,
    network: &NetworkSpec,
    addresses: &[PodAddress],
    node: &NodeFacts,
    settings: &Settings,
) -> Result<PodNet, PlanError> {
    let master = node
        .nic(&network.master)
        .ok_or_else(|| PlanError::NoMaster {
            master: network.master.clone(),
            network: network.name.clone(),
            present: node
                .nics
                .iter()
                .map(|n| n.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    if let Some(kind @ ("ipvlan" | "macvlan")) = master.kind.as_deref() {
        return Err(PlanError::MasterIsChild {
            master: network.master.clone(),
            network: network.name.clone(),
            kind: kind.to_owned(),
        });
    }
    if !master.up {
        return Err(PlanError::MasterDown {
            master: network.master.clone(),
            network: network.name.clone(),
        });
    }
    let mtu = network.mtu.unwrap_or(master.mtu);
    if mtu > master.mtu {
        return Err(PlanError::Mtu {
            network: network.name.clone(),
            mtu,
            master: network.master.clone(),
            master_mtu: master.mtu,
        });
    }
    if sandbox.interface == VETH {
        return Err(PlanError::NameTaken);
    }
    let veth = network.veth.then(|| Veth {
        host_name: host_end(&sandbox.container_id, &sandbox.interface),
        host_mac: Mac(HOST_MAC),
        pod_name: VETH.to_owned(),
        pod_mac: Mac(POD_MAC),
        mtu,
    });
    let mut in_pod = NamespacePlan::default();
    let mut in_host = NamespacePlan::default();
    nic_in_pod(&sandbox.interface, addresses, &mut in_pod);
    if let Some(veth) = &veth {
        veth_in_pod(sandbox, network, addresses, node, settings, &mut in_pod);
        veth_in_host(veth, addresses, settings, &mut in_host);
    }
    Ok(PodNet {
        pod: sandbox.pod.clone(),
        netns: sandbox.netns.clone(),
        netns_inode: sandbox.netns_inode,
        network: network.name.clone(),
        addresses: addresses.to_vec(),
        ipvlan: Ipvlan {
            name: sandbox.interface.clone(),
            master: network.master.clone(),
            mode: network.mode,
            mtu,
        },
        veth,
        alias: format!("ebbtide: {} {}", sandbox.pod, sandbox.interface),
        in_pod,
        in_host,
    })
}

fn sysctl(path: String, value: &str) -> Sysctl {
    Sysctl {
        path,
        value: value.to_owned(),
    }
}

fn families(addresses: &[PodAddress]) -> impl Iterator<Item = (Family, IpAddr)> {
    Family::BOTH.into_iter().filter_map(|family| {
        let first = addresses
            .iter()
            .map(|a| a.address.addr())
            .find(|a| Family::of(*a) == family);
        first.map(|address| (family, address))
    })
}

/// IPv6 on a link of the pod's: no addresses and routes but ours.
fn ipv6_settings(link: &str, wanted: bool) -> Vec<Sysctl> {
    let mut settings = vec![sysctl(
        format!("net/ipv6/conf/{link}/addr_gen_mode"),
        NO_ADDRESSES,
    )];
    if wanted {
        settings.push(sysctl(format!("net/ipv6/conf/{link}/disable_ipv6"), "0"));
        settings.push(sysctl(format!("net/ipv6/conf/{link}/accept_ra"), "0"));
    }
    settings
}

fn has_v6(addresses: &[PodAddress]) -> bool {
    addresses.iter().any(|a| a.address.addr().is_ipv6())
}

/// The ipvlan interface: its addresses, and all the world behind the pool's gateway.
///
/// The gateway is a next hop on the link although l3 children resolve nobody: with a device route
/// the kernel would keep a neighbour entry for every destination a pod ever talks to.
fn nic_in_pod(interface: &str, addresses: &[PodAddress], plan: &mut NamespacePlan) {
    plan.sysctls
        .extend(ipv6_settings(interface, has_v6(addresses)));
    for pod in addresses {
        let own = pod.address.addr();
        plan.addresses.push(Address {
            link: interface.to_owned(),
            address: pod.address,
        });
        let route = |destination, via| Route {
            link: interface.to_owned(),
            destination,
            via: Some(via),
            source: Some(own),
            table: MAIN_TABLE,
        };
        if let Some(gateway) = pod.gateway {
            plan.routes
                .push(route(Family::of(own).everything(), gateway));
        }
        for (destination, via) in &pod.routes {
            plan.routes.push(route(*destination, *via));
        }
    }
}

/// The veth in the pod: the way to the node and what is behind it, and the way back for replies.
fn veth_in_pod(
    sandbox: &Sandbox,
    network: &NetworkSpec,
    addresses: &[PodAddress],
    node: &NodeFacts,
    settings: &Settings,
    plan: &mut NamespacePlan,
) {
    plan.sysctls.extend(ipv6_settings(VETH, has_v6(addresses)));
    // The accepted socket inherits the mark of its SYN; RST and ICMP replies carry the mark of
    // what they answer (Documentation/networking/ip-sysctl.rst).
    plan.sysctls
        .push(sysctl("net/ipv4/tcp_fwmark_accept".into(), "1"));
    plan.sysctls
        .push(sysctl("net/ipv4/fwmark_reflect".into(), "1"));
    // Strict rp_filter looks up the way back with the mark, so it finds the veth.
    plan.sysctls
        .push(sysctl(format!("net/ipv4/conf/{VETH}/src_valid_mark"), "1"));
    if has_v6(addresses) {
        plan.sysctls
            .push(sysctl("net/ipv6/fwmark_reflect".into(), "1"));
    }
    let behind_host: Vec<IpNet> = node
        .addresses()
        .into_iter()
        .map(host_net)
        .chain(settings.service_cidrs.iter().copied())
        .chain(settings.via_host_cidrs.iter().copied())
        .chain(network.via_host.iter().copied())
        .collect();
    for (family, own) in families(addresses) {
        let next_hop: IpAddr = match family {
            Family::V4 => NEXT_HOP_V4.into(),
            Family::V6 => NEXT_HOP_V6.into(),
        };
        plan.neighbours.push(Neighbour {
            link: VETH.to_owned(),
            address: next_hop,
            mac: Mac(HOST_MAC),
        });
        let route = |destination, table| Route {
            link: VETH.to_owned(),
            destination,
            via: Some(next_hop),
            source: Some(own),
            table,
        };
        for destination in &behind_host {
            let way = route(*destination, MAIN_TABLE);
            if Family::of_net(destination) == family && !plan.routes.contains(&way) {
                plan.routes.push(way);
            }
        }
        plan.routes
            .push(route(family.everything(), settings.reply_table));
        plan.rules.push(Rule {
            family,
            priority: settings.rule_priority,
            selector: Selector::LocalMark {
                mark: settings.mark,
                mask: settings.mark,
            },
            table: settings.reply_table,
        });
    }
    plan.filters = PROGRAMS
        .iter()
        .map(|program| Filter {
            link: match program.hook {
                ebbtide_layout::Hook::VethIngress => VETH.to_owned(),
                _ => sandbox.interface.clone(),
            },
            direction: program.direction,
            program: program.name.to_owned(),
        })
        .collect();
}

/// The veth in the host: the way to the pod.
fn veth_in_host(
    veth: &Veth,
    addresses: &[PodAddress],
    settings: &Settings,
    plan: &mut NamespacePlan,
) {
    plan.sysctls
        .extend(ipv6_settings(&veth.host_name, has_v6(addresses)));
    plan.filters = veth_filters(&veth.host_name);
    for pod in addresses {
        let own = pod.address.addr();
        plan.neighbours.push(Neighbour {
            link: veth.host_name.clone(),
            address: own,
            mac: veth.pod_mac,
        });
        plan.routes.push(Route {
            link: veth.host_name.clone(),
            destination: host_net(own),
            via: None,
            source: None,
            table: settings.host_table,
        });
    }
}
