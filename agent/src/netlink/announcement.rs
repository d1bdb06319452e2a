//! What the kernel announces by itself, as far as anybody here listens.

use std::{io, net::IpAddr};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    proto::from_socket_with_codec,
    sys::SocketAddr,
};

use super::{
    Parts,
    defaults::hops,
    link::{Link, LinkAddress},
    listening,
    ours::is_ours,
};

/// One announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// A link came or changed.
    Link(Link),
    /// The link with this index went.
    LinkGone(u32),
    /// An address came or changed.
    Address(LinkAddress),
    /// An address went.
    AddressGone(LinkAddress),
    /// A default route of others came or changed: the links' indices and the next hops.
    Default(Vec<(u32, Option<IpAddr>)>),
    /// A default route of others went.
    DefaultGone(Vec<(u32, Option<IpAddr>)>),
    /// A rule of others came.
    ForeignRule,
    /// Another route, a rule, a queueing discipline or a filter went.
    ObjectGone,
    /// The socket's buffer was full: anything may have happened.
    Overrun,
    /// Nothing that anybody here asks for.
    Other,
}

/// A socket that hears all of it in the namespace it was opened in.
#[derive(Debug)]
pub struct Announcements(UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>);

impl Announcements {
    /// Opens the socket. From when this returns nothing is missed without an
    /// [`Announcement::Overrun`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen() -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Tc,
        ];
        let (connection, _, announcements): Parts = from_socket_with_codec(listening(&groups)?);
        tokio::spawn(connection);
        Ok(Self(announcements))
    }

    /// The next one; `None` when the socket was closed.
    pub async fn next(&mut self) -> Option<Announcement> {
        self.0.next().await.map(|(message, _)| parse(message))
    }
}

fn parse(message: NetlinkMessage<RouteNetlinkMessage>) -> Announcement {
    use RouteNetlinkMessage as Message;
    let message = match message.payload {
        NetlinkPayload::InnerMessage(message) => message,
        NetlinkPayload::Overrun(_) => return Announcement::Overrun,
        _ => return Announcement::Other,
    };
    let address = |message, make: fn(LinkAddress) -> Announcement| {
        LinkAddress::parse(&message).map_or(Announcement::Other, make)
    };
    match message {
        // A bridge's ports are announced once more, in another family and by halves.
        Message::NewLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            Announcement::Link(Link::parse(message))
        }
        Message::DelLink(message) => Announcement::LinkGone(message.header.index),
        Message::NewAddress(message) => address(message, Announcement::Address),
        Message::DelAddress(message) => address(message, Announcement::AddressGone),
        Message::NewRoute(message) => match hops(&message) {
            Some(default) => Announcement::Default(default.hops),
            None => Announcement::Other,
        },
        Message::DelRoute(message) => match hops(&message) {
            Some(default) => Announcement::DefaultGone(default.hops),
            None => Announcement::ObjectGone,
        },
        Message::NewRule(rule) if !is_ours(&rule) => Announcement::ForeignRule,
        Message::DelRule(_) | Message::DelQueueDiscipline(_) | Message::DelTrafficFilter(_) => {
            Announcement::ObjectGone
        }
        _ => Announcement::Other,
    }
}
