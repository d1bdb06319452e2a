//! How a pod sends.

use ebbtide_layout::{POD_FOLLOWS_TCP, POD_IS_EXEMPT};
use ebbtide_types::Mac;

/// How what a pod sends by its interface is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// The index of its end of the pair, by which goes what is to go by the host-stack bypass. Without one
    /// nothing does.
    pub veth: Option<u32>,
    /// All that it sends goes by the host-stack bypass.
    pub host_bypass: bool,
    /// Its TCP connections are followed like its other flows, since its sockets take no marks.
    pub follows_tcp: bool,
    /// The link-layer address of its frames, where they reach a wire as they are (ipvlan l2).
    pub mac: Option<Mac>,
}

impl Sending {
    /// As the programs read it.
    pub(super) fn flags(self) -> u16 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.host_bypass, POD_IS_EXEMPT) | flag(self.follows_tcp, POD_FOLLOWS_TCP)
    }
}
