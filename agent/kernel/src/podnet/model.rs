//! The input of planning, and the plan of a pod's network.

use std::{net::IpAddr, path::PathBuf};

use ebbtide_types::{Family, IpvlanMode, bandwidth::Bandwidth, settings::PodMetadata};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::RegisteredPod,
    netlink::{
        Error,
        link::{Ipvlan, Veth},
        model::{Action, Direction, Filter, MAIN_TABLE, NamespacePlan, Selector},
        netns::{Evidence, Netns},
    },
};

/// Name of the pod's end of the veth pair.
pub(super) const VETH: &str = "veth0";

/// The runtime's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The container ID.
    pub container_id: String,
    /// The interface's name in the pod.
    pub interface: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// Its inode: the path alone may refer to another namespace later.
    pub netns_inode: u64,
    /// For a path below `/proc`: the PID namespace in which it is valid.
    pub pid_namespace: Option<u64>,
    /// The pod's name for people: `namespace/name`, or the container ID without Kubernetes.
    pub pod: String,
}

impl Sandbox {
    /// Returns the pod's number, by which eBPF programs identify it.
    #[must_use]
    pub fn number(&self) -> u16 {
        number(self.netns_inode)
    }
}

/// Derives the number by which programs identify a pod from the inode of its namespace; never zero. The kernel assigns
/// the lowest free inodes (`proc_alloc_inum`, fs/proc/generic.c), so no two existing namespaces get the same number, as
/// long as there are fewer than 65535.
fn number(netns_inode: u64) -> u16 {
    u16::try_from(netns_inode % u64::from(u16::MAX)).unwrap_or(0) + 1
}

/// The pod's state from its earlier interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// The veth pair that came with the first interface; later ones share it.
    pub veth: Option<Veth>,
    /// Routing tables in use in the pod; the main table if an interface has the default route there.
    pub tables: Vec<u32>,
    /// The families whose default route in the main table is another plugin's.
    pub others_defaults: Vec<Family>,
    /// Addresses to be routed by the main table only: those of the interface with the default route, if that is another
    /// one, those of other plugins' interfaces, and those in this interface's previous plan.
    pub in_main: Vec<IpAddr>,
    /// Families whose replies another interface's plan leads to the veth already.
    pub families: Vec<Family>,
    /// The table of this interface in its previous plan.
    pub own_table: Option<u32>,
    /// Whether the pod has foreign rules that route by marks.
    pub marks: bool,
    /// Whether the pod has anything foreign that may route replies: a link, a default route, a rule.
    pub foreign: bool,
    /// The limit of the pod's bandwidth, which all its interfaces share.
    pub bandwidth: Option<Bandwidth>,
}

/// The network that an interface belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Name of the NIC.
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
    /// Gateways that the pod requests, in place of the pools'.
    pub gateways: Vec<IpAddr>,
    /// The MTU of the interface, if an earlier plugin of the chain created it: then there is no master.
    pub made_before: Option<u32>,
    /// Whether accepted sockets take their SYN's mark, which routes replies to the veth. They do not if something else
    /// in the pod marks incoming packets (TPROXY); then the programs track the connections.
    pub accept_marks: bool,
    /// Whether a rule routes replies by their mark to an interface of Ebbtide's, since something in the pod may route
    /// them elsewhere or not at all. `None` in the record of an agent that always made the rule: it stays until the pod
    /// is inspected.
    #[serde(default)]
    pub reply_rule: Option<bool>,
    /// How the interface reaches the cloud's metadata service, if not as the settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
    /// The limit of the pod's bandwidth. An interface that an earlier plugin created has none of Ebbtide's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Links in the host that earlier plugins created and that filter reverse paths strictly. The route to the pod is
    /// over Ebbtide's pair now, so packets from the pod by these links would be dropped.
    pub strict_links: Vec<String>,
}

impl NetworkSpec {
    /// Creates a network with only a name: for an interface behind an earlier plugin of a chain, or to be completed by
    /// the caller.
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
            reply_rule: Some(false),
            metadata: None,
            bandwidth: None,
            strict_links: Vec::new(),
        }
    }

    /// Returns the gateway that the pod requests for this address.
    #[must_use]
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpAddr> {
        let mut gateways = self.gateways.iter().copied();
        gateways.find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }
}

/// An IPAM plugin that assigned an interface's addresses. It is called again when the interface is removed, with the
/// same environment and configuration (CNI specification, section 4).
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

/// An address of the pod, with its pool's data about the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// Address and prefix length.
    pub address: IpNet,
    /// Name of the pool.
    pub pool: String,
    /// The subnet's gateway: the pod's default route, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Further routes by this interface: destination and next hop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<(IpNet, IpAddr)>,
}

/// One interface of a pod and its objects, in both namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodNet {
    /// The pod's name for people.
    pub pod: String,
    /// The container ID.
    pub container_id: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its inode.
    pub netns_inode: u64,
    /// For a path below `/proc`: the PID namespace in which it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<u64>,
    /// Name of the network.
    pub network: String,
    /// The request, to plan again when the node has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<NetworkSpec>,
    /// Its addresses on this interface.
    pub addresses: Vec<PodAddress>,
    /// The interface's name.
    pub interface: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The interface itself; `None` if an earlier plugin of the chain created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipvlan: Option<Ipvlan>,
    /// The IPAM plugin that assigned the addresses, if they are not from a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
    /// The pair to the host, created with this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub veth: Option<Veth>,
    /// The pair to the host that came with an earlier interface of the pod.
    #[serde(
        default,
        rename = "sharedVeth",
        skip_serializing_if = "Option::is_none"
    )]
    pub shared_veth: Option<Veth>,
    /// The interface's own routing table in the pod, if it does not have the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The families whose default route was another plugin's when this interface was added: that route stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others_defaults: Vec<Family>,
    /// Whether all packets that the interface sends take the host-stack bypass: over the pair, and from its host's end
    /// directly to the NIC.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_bypass: bool,
    /// Flags of the programs for the clouds' metadata services that it must not reach
    /// ([`SendOptions::metadata`](crate::datapath::SendOptions::metadata)).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub metadata: u16,
    /// Whether the NIC answers ARP requests and neighbour solicitations for the addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answered: bool,
    /// Alias of Ebbtide's links: names their owner.
    pub alias: String,
    /// All other objects, in the pod's namespace.
    #[serde(rename = "inPod")]
    pub in_pod: NamespacePlan,
    /// All other objects, in the host's namespace.
    #[serde(rename = "inHost")]
    pub in_host: NamespacePlan,
}

fn is_zero(flags: &u16) -> bool {
    *flags == 0
}

impl PodNet {
    /// Returns the addresses that its rules route by the main table.
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

    /// Returns the name of the NIC, if the interface is Ebbtide's.
    #[must_use]
    pub fn master(&self) -> Option<&str> {
        self.ipvlan.as_ref().map(|ipvlan| ipvlan.master.as_str())
    }

    /// Whether its addresses come from elsewhere than the pools.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.ipvlan.is_none() || self.delegate.is_some()
    }

    /// Returns the pod's number, by which eBPF programs identify it.
    #[must_use]
    pub fn number(&self) -> u16 {
        number(self.netns_inode)
    }

    /// Whether packets that the interface sends pass the host's netfilter, and those that it receives do not.
    #[must_use]
    pub fn is_l3(&self) -> bool {
        let mode = self.ipvlan.as_ref().map(|ipvlan| ipvlan.mode);
        mode == Some(IpvlanMode::L3)
    }

    /// Returns the pod as the host's programs are to know it. What reaches its interface is seen by the NIC's program and by
    /// those of the other pods on the NIC, unless the pod has a program for that.
    #[must_use]
    pub fn registered(&self) -> RegisteredPod {
        let comes_in = |filter: &Filter| {
            filter.link == self.interface
                && filter.direction == Direction::Ingress
                && !filter.is_limit()
        };
        RegisteredPod {
            number: self.number(),
            is_l3: self.is_l3(),
            is_followed: !self.in_pod.filters.iter().any(comes_in),
        }
    }

    /// Whether the interface's packets reach the wire as the pod built them, with its link-layer addresses.
    #[must_use]
    pub fn sends_frames(&self) -> bool {
        let mode = self.ipvlan.as_ref().map(|ipvlan| ipvlan.mode);
        mode == Some(IpvlanMode::L2)
    }

    /// Returns the limit of the pod's bandwidth, if it has one by this interface.
    #[must_use]
    pub fn bandwidth(&self) -> Option<Bandwidth> {
        let limits = self.in_pod.filters.iter().any(Filter::is_limit);
        self.spec.as_ref()?.bandwidth.filter(|_| limits)
    }

    /// Whether the pod's accepted sockets take their SYN's mark.
    #[must_use]
    pub fn accepts_marks(&self) -> bool {
        self.spec.as_ref().is_none_or(|spec| spec.accept_marks)
    }

    /// Whether the request asks for the reply rule, or does not say.
    #[must_use]
    pub fn has_reply_rule(&self) -> bool {
        let spec = self.spec.as_ref();
        spec.is_none_or(|spec| spec.reply_rule != Some(false))
    }

    /// Returns the families whose replies its plan leads to the veth. One interface of a pod does that for each family.
    #[must_use]
    pub fn reply_families(&self) -> Vec<Family> {
        let mut families = Family::BOTH.to_vec();
        families.retain(|family| {
            let mut neighbours = self.in_pod.neighbours.iter();
            neighbours.any(|n| n.link == VETH && Family::of(n.address) == *family)
        });
        families
    }

    /// Returns the pair to the host, whichever interface it came with.
    #[must_use]
    pub fn host_veth(&self) -> Option<&Veth> {
        self.veth.as_ref().or(self.shared_veth.as_ref())
    }

    /// Checks whether its namespace exists: the same one, not just something at its path.
    ///
    /// # Errors
    /// If that cannot be determined.
    pub fn namespace(&self) -> Result<Evidence, Error> {
        let noted_elsewhere = self
            .pid_namespace
            .is_some_and(|noted| Netns::pid_namespace_of(&self.netns) != Some(noted));
        if noted_elsewhere {
            return Err(Error::new(
                format_args!("inspect the network namespace {}", self.netns.display()),
                std::io::Error::other(
                    "its path was recorded in another PID namespace than the agent's: run the \
                     agent in the node's (`hostPID: true`)",
                ),
            ));
        }
        Netns::inspect(&self.netns, Some(self.netns_inode))
    }

    /// Returns the addresses without their prefix lengths.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|a| a.address.addr()).collect()
    }
}

/// Minimum MTU of a link with IPv6 (RFC 8200, 5); below it the kernel disables IPv6 on the link (`addrconf_notify`,
/// net/ipv6/addrconf.c).
pub(super) const IPV6_MIN_MTU: u32 = 1280;

/// The reason why an interface cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The master does not exist.
    #[error("the master {master} of network {network} is not on this node; it has {present}")]
    NoMaster {
        /// Name of the NIC.
        master: String,
        /// Name of the network.
        network: String,
        /// The existing links.
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
    /// The master is itself a child of another link.
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
    /// The requested MTU is larger than the master's.
    #[error("network {network} asks for an MTU of {mtu}, but its master {master} has {master_mtu}")]
    Mtu {
        /// Name of the network.
        network: String,
        /// The requested MTU.
        mtu: u32,
        /// Name of the NIC.
        master: String,
        /// The NIC's MTU.
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
        /// MTU of its interfaces.
        mtu: u32,
        /// Name of the NIC.
        master: String,
    },
    /// Two interfaces of one pod ask for different limits.
    #[error(
        "the pod's bandwidth is limited to {existing} by another interface of it, and this one asks for {requested}: \
         all interfaces of a pod share one limit"
    )]
    OtherLimit {
        /// The pod's limit.
        existing: Bandwidth,
        /// The requested one.
        requested: Bandwidth,
    },
    /// The interface cannot have the veth's name.
    #[error(
        "the interface cannot be called {VETH}: the veth pair to the host has that name in the \
         pod; choose another one"
    )]
    NameTaken,
}
