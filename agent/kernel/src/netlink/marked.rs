//! Rules by mark that somebody makes, in whatever network namespace.

use std::io;

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    proto::from_socket_with_codec,
    sys::{AsyncSocket as _, SocketAddr},
};

use super::{Parts, foreign::is_foreign_by_mark, listening};

/// A socket that hears of them in all namespaces which this one has links to: those of the pods, by their
/// pairs (`NETLINK_LISTEN_ALL_NSID`, netlink(7)).
#[derive(Debug)]
pub struct ForeignMarks(UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>);

impl ForeignMarks {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the kernel refuses: it asks for `CAP_NET_BROADCAST`.
    pub fn listen() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule];
        let mut socket = listening(&groups)?;
        socket.socket_mut().set_listen_all_namespaces(true)?;
        let (connection, _, messages): Parts = from_socket_with_codec(socket);
        tokio::spawn(connection);
        Ok(Self(messages))
    }

    /// Waits until somebody made such a rule, or may have. `None` when the socket was closed.
    pub async fn next(&mut self) -> Option<()> {
        while let Some((message, _)) = self.0.next().await {
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(rule))
                    if !is_foreign_by_mark(&rule) => {}
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(_))
                | NetlinkPayload::Overrun(_) => return Some(()),
                _ => {}
            }
        }
        None
    }
}
