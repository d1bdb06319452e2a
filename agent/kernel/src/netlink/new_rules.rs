//! Receives notifications of new foreign rules, in any network namespace.

use std::io;

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    proto::from_socket_with_codec,
    sys::{AsyncSocket as _, SocketAddr},
};

use super::{Parts, foreign::is_foreign, listening};

/// A socket that receives these notifications from all namespaces which this one has links to: those of the pods, by
/// their veth pairs (`NETLINK_LISTEN_ALL_NSID`, netlink(7)).
#[derive(Debug)]
pub struct NewRules(UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>);

impl NewRules {
    /// Opens the socket.
    ///
    /// # Errors
    /// If the kernel refuses: it requires `CAP_NET_BROADCAST`.
    pub fn listen() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule];
        let mut socket = listening(&groups)?;
        socket.socket_mut().set_listen_all_namespaces(true)?;
        let (connection, _, messages): Parts = from_socket_with_codec(socket);
        tokio::spawn(connection);
        Ok(Self(messages))
    }

    /// Waits until such a rule was added, or may have been. `None` if the socket was closed.
    pub async fn next(&mut self) -> Option<()> {
        while let Some((message, _)) = self.0.next().await {
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(rule))
                    if !is_foreign(&rule) => {}
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(_))
                | NetlinkPayload::Overrun(_) => return Some(()),
                _ => {}
            }
        }
        None
    }
}
