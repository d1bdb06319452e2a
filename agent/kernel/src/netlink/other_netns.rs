//! Receives notifications of changes in all network namespaces that this one has links to: those of the pods.

use std::{io, net::IpAddr};

use ebbtide_types::IpvlanMode;
use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkFlags, LinkMessage},
    },
    proto::from_socket_with_codec,
    sys::{AsyncSocket as _, SocketAddr},
};

use super::{
    Batch, Parts,
    link::{Link, LinkAddress, mode_message},
    listening,
};

/// A change in another namespace. The kernel tells in which; the agent does not need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An address was added to a link.
    Address(IpAddr),
    /// An ipvlan link was added or changed, and has this mode.
    Mode(IpvlanMode),
    /// A link was set up, or created as such; not a loopback.
    Up(Link),
    /// A queueing discipline or a filter was removed.
    HookGone,
    /// The socket's buffer overflowed: notifications were lost.
    Overrun,
}

/// A socket that receives changes from all namespaces that have an ID here (`NETLINK_LISTEN_ALL_NSID`, netlink(7)).
#[derive(Debug)]
pub struct Changes {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// The second change that a message was about.
    second: Option<Change>,
}

impl Changes {
    /// Opens the socket.
    ///
    /// # Errors
    /// If the kernel refuses: it requires `CAP_NET_BROADCAST`.
    pub fn listen() -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Tc,
        ];
        let mut socket = listening(&groups)?;
        socket.socket_mut().set_listen_all_namespaces(true)?;
        let (connection, _, messages): Parts = from_socket_with_codec(socket);
        tokio::spawn(connection);
        Ok(Self {
            messages,
            second: None,
        })
    }

    /// Receives the next change; `None` if the socket was closed.
    pub async fn next(&mut self) -> Option<Change> {
        if let Some(second) = self.second.take() {
            return Some(second);
        }
        while let Some((message, _)) = self.messages.next().await {
            let mut changes = parse(message.payload).into_iter().flatten();
            if let Some(change) = changes.next() {
                self.second = changes.next();
                return Some(change);
            }
        }
        None
    }
}

fn parse(payload: NetlinkPayload<RouteNetlinkMessage>) -> [Option<Change>; 2] {
    use RouteNetlinkMessage as Message;
    let change = match payload {
        NetlinkPayload::Overrun(_) => Some(Change::Overrun),
        NetlinkPayload::InnerMessage(Message::NewAddress(message)) => {
            let address = LinkAddress::parse(&message);
            address.map(|found| Change::Address(found.address.addr()))
        }
        NetlinkPayload::InnerMessage(Message::NewLink(message)) => return of_link(message),
        NetlinkPayload::InnerMessage(
            Message::DelQueueDiscipline(_) | Message::DelTrafficFilter(_),
        ) => Some(Change::HookGone),
        _ => None,
    };
    [change, None]
}

fn of_link(message: LinkMessage) -> [Option<Change>; 2] {
    let has_changed = message.header.change_mask.contains(LinkFlags::Up);
    let link = Link::parse(message);
    let mode = link.ipvlan_mode.map(Change::Mode);
    let is_up = has_changed && link.up && !link.loopback;
    [mode, is_up.then_some(Change::Up(link))]
}

impl Batch {
    /// Removes an address from a link, if it exists.
    pub fn delete_address(&mut self, found: &LinkAddress, link: &str) {
        self.push_tolerant(
            format_args!("remove address {} from {link}", found.address.addr()),
            RouteNetlinkMessage::DelAddress(found.message()),
            0,
            &[nix::errno::Errno::EADDRNOTAVAIL as i32],
        );
    }

    /// Sets the mode of an ipvlan link's NIC, and so of all its children.
    pub fn set_mode(&mut self, link: &Link, mode: IpvlanMode) {
        self.push(
            format_args!("set the ipvlan mode of {} to {mode}", link.name),
            RouteNetlinkMessage::NewLink(mode_message(mode, link.ifindex)),
            0,
        );
    }
}
