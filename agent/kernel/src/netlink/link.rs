//! Reads links, creates the two that a pod needs, and removes them.

use std::os::fd::RawFd;

use ebbtide_types::{Family, IpvlanMode, Mac};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    LinkDummy, LinkIpVlan, LinkUnspec, LinkVeth,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{
            InfoData, InfoIpVlan, InfoKind, InfoVeth, IpVlanMode, LinkAttribute, LinkExtentMask,
            LinkFlags, LinkInfo, LinkMessage,
        },
    },
};
use serde::{Deserialize, Serialize};

use super::{Batch, Error, Netlink, message::address_family};

/// Makes a message that sets the mode of an ipvlan link.
pub(super) fn mode_message(mode: IpvlanMode, ifindex: u32) -> LinkMessage {
    let mode = InfoData::IpVlan(vec![InfoIpVlan::Mode(kernel_mode(mode))]);
    rtnetlink::LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::IpVlan)
        .index(ifindex)
        .set_info_data(mode)
        .build()
}

const fn kernel_mode(mode: IpvlanMode) -> IpVlanMode {
    match mode {
        IpvlanMode::L2 => IpVlanMode::L2,
        IpvlanMode::L3 => IpVlanMode::L3,
        IpvlanMode::L3s => IpVlanMode::L3S,
    }
}

/// The longest alias of a link, in bytes. The kernel takes 255 (`IFALIASZ` of include/uapi/linux/if.h; `ifla_policy` of
/// net/core/rtnetlink.c), including a final zero, which is sent.
pub const LONGEST_ALIAS: usize = 254;

/// A link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// `IFLA_IFALIAS`, if set; Ebbtide's names the owner.
    pub alias: Option<String>,
    /// Link-layer address.
    pub mac: Option<Mac>,
    /// The link-layer address that the hardware came with; kernels before 5.6 do not tell.
    pub permanent_mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// Its kind: `ipvlan`, `veth`; `None` for hardware.
    pub kind: Option<String>,
    /// The mode of an ipvlan child.
    pub ipvlan_mode: Option<IpvlanMode>,
    /// `IFLA_LINK`: index of the lower link, or of the veth peer, maybe in another namespace.
    pub iflink: Option<u32>,
    /// `IFLA_LINK_NETNSID`: whether that one is in another namespace.
    pub iflink_in_other_netns: bool,
    /// `IFLA_MASTER`: index of the bridge, bond or VRF that it is a port of.
    pub port_of: Option<u32>,
}

impl Link {
    /// Returns a link of this name and index of which nothing else is known.
    #[must_use]
    pub fn named(name: impl Into<String>, ifindex: u32) -> Self {
        Self {
            ifindex,
            name: name.into(),
            alias: None,
            mac: None,
            permanent_mac: None,
            mtu: 0,
            up: false,
            loopback: false,
            kind: None,
            ipvlan_mode: None,
            iflink: None,
            iflink_in_other_netns: false,
            port_of: None,
        }
    }

    pub(super) fn parse(message: LinkMessage) -> Self {
        let mut link = Self {
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            ..Self::named(String::new(), message.header.index)
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(below) => link.iflink = Some(below),
                LinkAttribute::LinkNetNsId(_) => link.iflink_in_other_netns = true,
                LinkAttribute::Controller(controller) => {
                    link.port_of = Some(controller).filter(|index| *index != 0);
                }
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::PermAddress(bytes) => {
                    link.permanent_mac = bytes.try_into().ok().map(Mac);
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                            LinkInfo::Data(InfoData::IpVlan(data)) => {
                                link.ipvlan_mode = data.into_iter().find_map(|d| match d {
                                    InfoIpVlan::Mode(IpVlanMode::L2) => Some(IpvlanMode::L2),
                                    InfoIpVlan::Mode(IpVlanMode::L3) => Some(IpvlanMode::L3),
                                    InfoIpVlan::Mode(IpVlanMode::L3S) => Some(IpvlanMode::L3s),
                                    _ => None,
                                });
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// An address as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Interface index.
    pub ifindex: u32,
    /// Address and prefix length.
    pub address: IpNet,
}

impl Link {
    /// Describes how the link has changed since it was made, if it has.
    #[must_use]
    pub fn differs(&self, mtu: u32, mac: Option<Mac>) -> Option<String> {
        let mac = mac.filter(|mac| self.mac != Some(*mac));
        let parts = [
            (!self.up).then(|| "is down".to_owned()),
            mac.map(|mac| format!("has another MAC address than {mac}")),
            (self.mtu != mtu).then(|| format!("has MTU {} instead of {mtu}", self.mtu)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join(" and "))
    }
}

impl LinkAddress {
    pub(super) fn parse(message: &AddressMessage) -> Option<Self> {
        let find = |local: bool| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
        };
        // IFA_LOCAL is the address itself; IFA_ADDRESS is the peer's where it differs.
        let ip = find(true).or_else(|| find(false))?;
        Some(Self {
            ifindex: message.header.index,
            address: IpNet::new(ip, message.header.prefix_len).ok()?,
        })
    }

    /// Makes the message that identifies the address.
    pub(super) fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = address_family(Family::of(self.address.addr()));
        message.header.index = self.ifindex;
        message.header.prefix_len = self.address.prefix_len();
        message
            .attributes
            .push(AddressAttribute::Local(self.address.addr()));
        message
    }
}

impl Netlink {
    /// Lists all links.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        self.dump("list links", all_links(), new_link).await
    }

    /// Looks up the link called `name`; `None` if it does not exist.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.links_named(&[name]).await?.into_values().next())
    }

    /// Looks up the link of this index; `None` if it does not exist.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn link_at(&self, ifindex: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let request = RouteNetlinkMessage::GetLink(message);
        let what = format!("look up the link of index {ifindex}");
        match self.ask(&what, request).await {
            Ok(answer) => Ok(new_link(answer)),
            Err(e) if e.is_gone() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lists all addresses of all links.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn addresses(&self) -> Result<Vec<LinkAddress>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("list addresses", request, |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => LinkAddress::parse(&message),
            _ => None,
        })
        .await
    }
}

/// Makes the dump request for all links, without counters, which would be most of the answer.
pub(super) fn all_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    let without = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    message.attributes.push(without);
    RouteNetlinkMessage::GetLink(message)
}

pub(super) fn new_link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        // A name that is not UTF-8 is dropped (the kernel allows it: `dev_valid_name`, net/core/dev.c): nobody here can
        // refer to such a link.
        RouteNetlinkMessage::NewLink(message) => {
            Some(Link::parse(message)).filter(|link| !link.name.is_empty())
        }
        _ => None,
    }
}

/// An ipvlan child to create in another namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipvlan {
    /// Its name there.
    pub name: String,
    /// Its master: the NIC, in the host.
    pub master: String,
    /// Mode.
    pub mode: IpvlanMode,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A veth pair with one end in another namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Veth {
    /// Name of the host's end.
    pub host_name: String,
    /// Link-layer address of the host's end.
    pub host_mac: Mac,
    /// Name of the far end.
    pub pod_name: String,
    /// Link-layer address of the far end.
    pub pod_mac: Mac,
    /// MTU in bytes, both ends.
    pub mtu: u32,
}

/// Returns an interface index that no link has: the kernel counts from 1 and gets this far in no namespace. It differs
/// between the interfaces of one pod.
fn chosen_index(name: &str) -> u32 {
    const FROM: u32 = 1 << 30;
    let number = name.bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(257).wrapping_add(u32::from(byte))
    });
    FROM | (number % FROM)
}

impl Batch {
    /// Creates the ipvlan child in the namespace of `netns`, under its final name: one message, no move, no rename (a
    /// rename costs an RCU grace period on older kernels).
    ///
    /// `namesake`: a link here has this name, such as a cloud's `eth0`. Before Linux 6.13 the kernel looks up the new
    /// link in the namespace of the socket, by its index if there is one, else by its name (`__rtnl_newlink`,
    /// net/core/rtnetlink.c). So it gets an index that no link here has.
    pub fn add_ipvlan(&mut self, ipvlan: &Ipvlan, master: u32, netns: RawFd, namesake: bool) {
        let mut message = LinkIpVlan::new(&ipvlan.name, master, kernel_mode(ipvlan.mode))
            .mtu(ipvlan.mtu)
            .setns_by_fd(netns)
            .build();
        if namesake {
            message.header.index = chosen_index(&ipvlan.name);
        }
        self.push(
            format_args!(
                "create ipvlan {} {} on {}",
                ipvlan.mode, ipvlan.name, ipvlan.master
            ),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
    }

    /// Creates the veth pair, with the far end in the namespace of `netns`, both under their final names and MAC
    /// addresses.
    pub fn add_veth(&mut self, veth: &Veth, netns: RawFd) {
        let peer = rtnetlink::LinkMessageBuilder::<LinkUnspec>::new()
            .name(&veth.pod_name)
            .address(veth.pod_mac.0.to_vec())
            .mtu(veth.mtu)
            .setns_by_fd(netns)
            .build();
        let message = rtnetlink::LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(&veth.host_name)
            .address(veth.host_mac.0.to_vec())
            .mtu(veth.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.push(
            format_args!("create veth {}", veth.host_name),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
    }

    /// Creates a dummy link, or keeps an existing one.
    pub fn add_dummy(&mut self, name: &str, mac: Mac) {
        const THERE: &[i32] = &[Errno::EEXIST as i32];
        let message = LinkDummy::new(name).address(mac.0.to_vec()).build();
        self.push_tolerant(
            format_args!("create dummy {name}"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
            THERE,
        );
    }

    /// Sets the link up, with an alias that names its owner.
    pub fn set_up(&mut self, name: &str, ifindex: u32, alias: Option<&str>) {
        let mut message = LinkUnspec::new_with_index(ifindex).up();
        if let Some(alias) = alias {
            message = message.alias(alias);
        }
        self.push(
            format_args!("set {name} up"),
            RouteNetlinkMessage::SetLink(message.build()),
            0,
        );
    }

    /// Restores the link's MTU and link-layer address, if they differ.
    pub fn repair(&mut self, link: &Link, mtu: u32, mac: Option<Mac>) {
        let mut message = LinkUnspec::new_with_index(link.ifindex);
        let different_mac = mac.filter(|mac| link.mac != Some(*mac));
        if let Some(mac) = different_mac {
            message = message.address(mac.0.to_vec());
        }
        if link.mtu != mtu {
            message = message.mtu(mtu);
        }
        if different_mac.is_some() || link.mtu != mtu {
            self.push(
                format_args!("set the MTU and MAC address of {}", link.name),
                RouteNetlinkMessage::SetLink(message.build()),
                0,
            );
        }
    }

    /// Sets a link up, and its alias, unless both are in the desired state.
    pub fn bring_up(&mut self, link: &Link, alias: &str) {
        if !link.up || link.alias.as_deref() != Some(alias) {
            self.set_up(&link.name, link.ifindex, Some(alias));
        }
    }

    /// Removes the link, if it exists.
    pub fn delete_link(&mut self, name: &str, ifindex: u32) {
        const GONE: &[i32] = &[Errno::ENODEV as i32];
        self.push_tolerant(
            format_args!("delete link {name}"),
            RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(ifindex).build()),
            0,
            GONE,
        );
    }
}
