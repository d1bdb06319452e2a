//! What somebody changes in whatever network namespace this one has links to: those of the pods.

use std::{io, net::IpAddr};

use ebbtide_types::IpvlanMode;
use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{RouteNetlinkMessage, link::LinkMessage},
    proto::from_socket_with_codec,
    sys::{AsyncSocket as _, SocketAddr},
};

use super::{
    Batch, Parts,
    link::{Link, LinkAddress, mode_message},
    listening,
};

/// One change, in one of them. The kernel says in which; nobody here needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link got an address.
    Address(IpAddr),
    /// An ipvlan link came or changed, and has this mode.
    Mode(IpvlanMode),
    /// A queueing discipline or a filter went.
    HookGone,
    /// More than could be heard.
    Overrun,
}

/// A socket that hears of them in all namespaces that have a number here (`NETLINK_LISTEN_ALL_NSID`, netlink(7)).
#[derive(Debug)]
pub struct Changes(UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>);

impl Changes {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the kernel refuses: it asks for `CAP_NET_BROADCAST`.
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
        Ok(Self(messages))
    }

    /// The next one. `None` when the socket was closed.
    pub async fn next(&mut self) -> Option<Change> {
        while let Some((message, _)) = self.0.next().await {
            if let Some(change) = parse(message.payload) {
                return Some(change);
            }
        }
        None
    }
}

fn parse(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    use RouteNetlinkMessage as Message;
    match payload {
        NetlinkPayload::Overrun(_) => Some(Change::Overrun),
        NetlinkPayload::InnerMessage(Message::NewAddress(message)) => Some(Change::Address(
            LinkAddress::parse(&message)?.address.addr(),
        )),
        NetlinkPayload::InnerMessage(Message::NewLink(message)) => mode(message),
        NetlinkPayload::InnerMessage(
            Message::DelQueueDiscipline(_) | Message::DelTrafficFilter(_),
        ) => Some(Change::HookGone),
        _ => None,
    }
}

fn mode(message: LinkMessage) -> Option<Change> {
    Link::parse(message).ipvlan_mode.map(Change::Mode)
}

impl Batch {
    /// Takes an address off a link, if it is there.
    pub fn delete_address(&mut self, found: &LinkAddress, link: &str) {
        self.push_tolerant(
            format_args!("take {} off {link}", found.address.addr()),
            RouteNetlinkMessage::DelAddress(found.message()),
            0,
            &[nix::errno::Errno::EADDRNOTAVAIL as i32],
        );
    }

    /// Gives an ipvlan link's NIC, and so all its children, this mode.
    pub fn set_mode(&mut self, link: &Link, mode: IpvlanMode) {
        self.push(
            format_args!("give {} the mode {mode}", link.name),
            RouteNetlinkMessage::NewLink(mode_message(mode, link.ifindex)),
            0,
        );
    }
}
