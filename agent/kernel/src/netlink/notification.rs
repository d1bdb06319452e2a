//! Receives netlink notifications of links, addresses, routes, rules and tc hooks.

use std::{io, net::IpAddr, sync::Arc};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAttribute, RouteMessage, RouteProtocol},
    },
    proto::from_socket_with_codec,
    sys::{AsyncSocket as _, SocketAddr},
};

use super::{
    Parts,
    defaults::hops,
    link::{Link, LinkAddress},
    listening,
    local_routes::local_route,
    model::PROTOCOL,
    owned::is_owned,
    route_filter::RouteFilter,
};

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A link was added or changed.
    Link(Link),
    /// A link was removed.
    LinkGone(Link),
    /// An address was added or changed.
    Address(LinkAddress),
    /// An address was removed.
    AddressGone(LinkAddress),
    /// A foreign default route was added or changed: the links' indices and the next hops.
    Default(Vec<(u32, Option<IpAddr>)>),
    /// A foreign default route was removed.
    DefaultGone(Vec<(u32, Option<IpAddr>)>),
    /// A route of somebody else's was added to the table `local`.
    LocalRoute(IpNet),
    /// A route of somebody else's was removed from the table `local`.
    LocalRouteGone(IpNet),
    /// A foreign rule was added.
    ForeignRule,
    /// A route was removed that is Ebbtide's or not a default route.
    RouteGone(RouteGone),
    /// A rule was removed.
    RuleGone,
    /// A queueing discipline or a filter was removed from the link with this index.
    HookGone(u32),
    /// The socket's buffer overflowed: anything may have changed.
    Overrun,
    /// A notification that does not concern the agent.
    Other,
}

/// A route that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteGone {
    /// Its table.
    pub table: u32,
    /// Whether it was Ebbtide's, by its protocol.
    pub owned: bool,
}

impl RouteGone {
    fn parse(message: &RouteMessage) -> Self {
        let table = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Table(id) => Some(*id),
            _ => None,
        });
        Self {
            table: table.unwrap_or(u32::from(message.header.table)),
            owned: message.header.protocol == RouteProtocol::from(PROTOCOL),
        }
    }
}

/// A socket that receives all notifications of the namespace it was opened in.
#[derive(Debug)]
pub struct Notifications {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    routes: Arc<RouteFilter>,
}

impl Notifications {
    /// Opens the socket. After this returns nothing is missed without an [`Notification::Overrun`], except added
    /// foreign routes: of these only default routes and those of the table `local` are reported.
    ///
    /// # Errors
    /// If the kernel refuses a request.
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
        let mut socket = listening(&groups)?;
        let routes = RouteFilter::of(socket.socket_mut())?;
        routes.only(None)?;
        let (connection, _, messages): Parts = from_socket_with_codec(socket);
        tokio::spawn(connection);
        let routes = Arc::new(routes);
        Ok(Self { messages, routes })
    }

    /// Returns the filter of this socket's route events.
    #[must_use]
    pub fn routes(&self) -> Arc<RouteFilter> {
        Arc::clone(&self.routes)
    }

    /// Receives the next notification; `None` if the socket was closed.
    pub async fn next(&mut self) -> Option<Notification> {
        self.messages
            .next()
            .await
            .map(|(message, _)| parse(message))
    }
}

fn parse(message: NetlinkMessage<RouteNetlinkMessage>) -> Notification {
    use RouteNetlinkMessage as Message;
    let message = match message.payload {
        NetlinkPayload::InnerMessage(message) => message,
        NetlinkPayload::Overrun(_) => return Notification::Overrun,
        _ => return Notification::Other,
    };
    let address = |message, make: fn(LinkAddress) -> Notification| {
        LinkAddress::parse(&message).map_or(Notification::Other, make)
    };
    match message {
        // A bridge's ports are announced again, in another family and incompletely.
        Message::NewLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            Notification::Link(Link::parse(message))
        }
        // The link left its bridge.
        Message::DelLink(message) if message.header.interface_family != AddressFamily::Unspec => {
            Notification::Other
        }
        Message::DelLink(message) => Notification::LinkGone(Link::parse(message)),
        Message::NewAddress(message) => address(message, Notification::Address),
        Message::DelAddress(message) => address(message, Notification::AddressGone),
        Message::NewRoute(message) => match (hops(&message), local_route(&message)) {
            (Some(default), _) => Notification::Default(default.hops),
            (None, Some(net)) => Notification::LocalRoute(net),
            (None, None) => Notification::Other,
        },
        Message::DelRoute(message) => match (hops(&message), local_route(&message)) {
            (Some(default), _) => Notification::DefaultGone(default.hops),
            (None, Some(net)) => Notification::LocalRouteGone(net),
            (None, None) => Notification::RouteGone(RouteGone::parse(&message)),
        },
        Message::NewRule(rule) if !is_owned(&rule) => Notification::ForeignRule,
        Message::DelRule(_) => Notification::RuleGone,
        Message::DelQueueDiscipline(message) | Message::DelTrafficFilter(message) => {
            Notification::HookGone(message.header.index.cast_unsigned())
        }
        _ => Notification::Other,
    }
}
