//! What is planned from, and what a plan is.

use std::{net::IpAddr, path::PathBuf};

use ebbtide_types::{Family, IpvlanMode};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::netlink::{
    Error,
    link::{Ipvlan, Veth},
    model::{Action, MAIN_TABLE, NamespacePlan, Selector},
    netns::{Evidence, Netns},
};

/// The pod's end of the veth pair.
pub(super) const VETH: &str = "veth0";

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
    /// For a path below `/proc`: the PID namespace in which it means something.
    pub pid_namespace: Option<u64>,
    /// The pod as a person calls it: `namespace/name`, or the container ID without Kubernetes.
    pub pod: String,
}

impl Sandbox {
    /// The pod's number, as programs know it.
    #[must_use]
    pub fn number(&self) -> u16 {
        number(self.netns_inode)
    }
}

/// By which programs know a pod: made of the inode of its namespace, and never zero. The kernel gives
/// out the lowest inodes that are free (`proc_alloc_inum`, fs/proc/generic.c), so no two of the
/// namespaces that are there get the same number, as long as there are not 65535 of them.
fn number(netns_inode: u64) -> u16 {
    u16::try_from(netns_inode % u64::from(u16::MAX)).unwrap_or(0) + 1
}

/// What the pod has already, from its earlier interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// The veth pair that the first interface brought; later ones share it.
    pub veth: Option<Veth>,
    /// The routing tables that are taken in the pod; the main one by who has the default route.
    pub tables: Vec<u32>,
    /// The families whose default route in the main table is another plugin's.
    pub others_defaults: Vec<Family>,
    /// The addresses that are to be sent by the main table alone: those of the interface that has the
    /// default route, if that is another one, those of other plugins' interfaces, and what this
    /// interface's plan said of them before.
    pub in_main: Vec<IpAddr>,
    /// The families whose replies are led back to the veth already.
    pub families: Vec<Family>,
    /// The table that this very interface had when it was planned before.
    pub own_table: Option<u32>,
    /// Whether somebody marks packets in the pod for purposes of their own, by which they are routed.
    pub marks: bool,
}

/// The network an interface belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// Networks reached through the node, besides those of [`Settings`](ebbtide_types::settings::Settings).
    pub via_host: Vec<IpNet>,
    /// The pod's interface that has the default route; the first one if `None`.
    pub default_route: Option<String>,
    /// Whether the network asks for addresses by ARP and neighbour solicitations.
    pub answer_neighbours: bool,
    /// Gateways that the pod names, in place of the pools'.
    pub gateways: Vec<IpAddr>,
    /// An earlier plugin of the chain made the interface, with this MTU: there is no master.
    pub made_before: Option<u32>,
    /// Whether accepted sockets take their SYN's mark, which leads replies back to the veth. Where
    /// somebody in the pod marks what comes in for purposes of their own (TPROXY) they do not, and the
    /// programs follow the connections.
    pub accept_marks: bool,
    /// Links of the host's that earlier plugins made and that filter reverse paths strictly. The way
    /// back to the pod is our pair now, so what comes from the pod by them would be dropped.
    pub strict_links: Vec<String>,
}

impl NetworkSpec {
    /// A network of which nothing is known but its name: one behind an earlier plugin of a chain, or
    /// one whose other fields follow.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            master: String::new(),
            mode: IpvlanMode::default(),
            mtu: None,
            veth: true,
            via_host: Vec::new(),
            default_route: None,
            answer_neighbours: false,
            gateways: Vec::new(),
            made_before: None,
            accept_marks: true,
            strict_links: Vec::new(),
        }
    }

    /// The gateway that the pod names for this address.
    #[must_use]
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpAddr> {
        let mut gateways = self.gateways.iter().copied();
        gateways.find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }
}

/// An IPAM plugin that gave an interface its addresses, and is told when it goes: by the same
/// environment and configuration (CNI specification, section 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delegate {
    /// Its name, `ipam.type`.
    pub kind: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// The network configuration.
    pub config: String,
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
    /// The container ID.
    pub container_id: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its inode.
    pub netns_inode: u64,
    /// For a path below `/proc`: the PID namespace that it was noted in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<u64>,
    /// The network, as a person calls it.
    pub network: String,
    /// What was asked for, to plan again when the node has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<NetworkSpec>,
    /// Its addresses on this interface.
    pub addresses: Vec<PodAddress>,
    /// The interface's name.
    pub interface: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The interface itself; an earlier plugin of the chain made it if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipvlan: Option<Ipvlan>,
    /// Who gave the addresses, if they are not from a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
    /// The pair to the host, made with this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub veth: Option<Veth>,
    /// The pair to the host that an earlier interface of the pod brought.
    #[serde(
        default,
        rename = "sharedVeth",
        skip_serializing_if = "Option::is_none"
    )]
    pub shared_veth: Option<Veth>,
    /// The interface's own routing table in the pod, if it does not have the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The families whose default route was another plugin's when this interface came beside it: that
    /// route stays as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others_defaults: Vec<Family>,
    /// Whether all that is sent by the interface goes by the host-stack bypass: by the pair, and from the
    /// host's end of it straight to the NIC.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_bypass: bool,
    /// Whether the NIC answers who asks for the addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answered: bool,
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
    /// The addresses that its rules send by the main table.
    #[must_use]
    pub fn in_main(&self) -> Vec<IpAddr> {
        let rules = self.in_pod.rules.iter();
        let in_main = rules.filter(|rule| rule.action == Action::Table(MAIN_TABLE));
        in_main
            .filter_map(|rule| match rule.selector {
                Selector::From(address) => Some(address),
                _ => None,
            })
            .collect()
    }

    /// The NIC, if the interface is ours.
    #[must_use]
    pub fn master(&self) -> Option<&str> {
        self.ipvlan.as_ref().map(|ipvlan| ipvlan.master.as_str())
    }

    /// Whether its addresses are not from the pools.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.ipvlan.is_none() || self.delegate.is_some()
    }

    /// The pod's number, as programs know it.
    #[must_use]
    pub fn number(&self) -> u16 {
        number(self.netns_inode)
    }

    /// Whether what the interface sends passes the host's netfilter, and what it gets does not.
    #[must_use]
    pub fn is_l3(&self) -> bool {
        let mode = self.ipvlan.as_ref().map(|ipvlan| ipvlan.mode);
        mode == Some(IpvlanMode::L3)
    }

    /// Whether what the interface sends reaches the wire as the pod made it, with its link-layer addresses.
    #[must_use]
    pub fn sends_frames(&self) -> bool {
        let mode = self.ipvlan.as_ref().map(|ipvlan| ipvlan.mode);
        mode == Some(IpvlanMode::L2)
    }

    /// Whether the pod's accepted sockets take their SYN's mark.
    #[must_use]
    pub fn accepts_marks(&self) -> bool {
        self.spec.as_ref().is_none_or(|spec| spec.accept_marks)
    }

    /// The pair to the host, whichever interface brought it.
    #[must_use]
    pub fn way_to_host(&self) -> Option<&Veth> {
        self.veth.as_ref().or(self.shared_veth.as_ref())
    }

    /// Looks whether its namespace is there: the very one, not just something at its path.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn namespace(&self) -> Result<Evidence, Error> {
        let noted_elsewhere = self
            .pid_namespace
            .is_some_and(|noted| Netns::pid_namespace_of(&self.netns) != Some(noted));
        if noted_elsewhere {
            return Err(Error::new(
                format_args!("look at the network namespace {}", self.netns.display()),
                std::io::Error::other(
                    "it was noted in another PID namespace than the agent's: give the agent the node's \
                     (`hostPID: true`)",
                ),
            ));
        }
        Netns::look(&self.netns, Some(self.netns_inode))
    }

    /// The addresses alone.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|a| a.address.addr()).collect()
    }
}

/// The least MTU of a link with IPv6 (RFC 8200, 5); below it the kernel takes IPv6 away from the link (`addrconf_notify`,
/// net/ipv6/addrconf.c).
pub(super) const IPV6_MIN_MTU: u32 = 1280;

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
    /// The MTU is less than IPv6 needs.
    #[error(
        "network {network} has IPv6 addresses and an MTU of {mtu}: IPv6 needs {IPV6_MIN_MTU}; give {master} a larger one \
         (`ip link set {master} mtu {IPV6_MIN_MTU}`), and the network, or name no IPv6 pools for it"
    )]
    MtuWithoutIpv6 {
        /// Name of the network.
        network: String,
        /// That of its interfaces.
        mtu: u32,
        /// Name of the NIC.
        master: String,
    },
    /// The interface cannot have the veth's name.
    #[error("the interface cannot be called {VETH}: that is the name of the pair to the host")]
    NameTaken,
}
