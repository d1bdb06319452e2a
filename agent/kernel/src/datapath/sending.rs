//! How a pod's packets are sent.

use ebbtide_layout::{POD_FOLLOWS_TCP, POD_IS_EXEMPT, POD_METADATA, POD_NO_METADATA};
use ebbtide_types::Mac;

/// How the packets that a pod sends from its interface leave the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// The index of the pod's end of the veth pair, by which packets take the host-stack bypass. Without it none do.
    pub veth: Option<u32>,
    /// Whether all its packets take the host-stack bypass.
    pub host_bypass: bool,
    /// Whether its TCP connections are tracked like its other flows, since its sockets take no marks.
    pub follows_tcp: bool,
    /// Flags for the metadata services that it must not reach (`POD_METADATA`, `POD_NO_METADATA`).
    pub metadata: u16,
    /// The link-layer address of its frames, if they reach the wire unchanged (ipvlan l2).
    pub mac: Option<Mac>,
}

impl SendOptions {
    /// Returns the programs' flags.
    pub(super) fn flags(self) -> u16 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.host_bypass, POD_IS_EXEMPT)
            | flag(self.follows_tcp, POD_FOLLOWS_TCP)
            | self.metadata & (POD_METADATA | POD_NO_METADATA)
    }
}
