//! Who takes part: the pod and the node, by their addresses, links and marks.

use std::net::IpAddr;

use ebbtide_layout::{DEFAULT_NIC_MARKS, reply_bit};

/// A pod on the NIC [`THIS`].
pub const POD: &str = "172.31.16.4";
/// The same pod; the NIC of this address is [`THAT`].
pub const POD6: &str = "fd00:16::4";
/// The number by which the programs identify the pod.
pub const POD_NUMBER: u16 = 4242;
/// Another pod, on [`THIS`].
pub const OTHER_POD: &str = "172.31.16.5";
/// The same other pod.
pub const OTHER_POD6: &str = "fd00:16::5";
/// The node's address on [`THIS`].
pub const NODE: &str = "172.31.22.228";
/// The node's IPv6 address on [`THIS`].
pub const NODE6: &str = "fd00:16::228";
/// The node's address on [`THAT`], which has a gateway.
pub const OTHER: &str = "210.22.16.10";
/// The node's address on [`THAT`] in a network without a gateway.
pub const LOST: &str = "192.168.7.7";
/// A pod on [`THAT`].
pub const FAR_POD: &str = "172.31.16.6";
/// Somebody outside.
pub const CLIENT: &str = "198.51.100.7";
/// See [`CLIENT`].
pub const CLIENT6: &str = "2001:db8::7";

/// The loopback: the device of a test run in any namespace.
pub const THIS: u32 = 1;
/// Another NIC.
pub const THAT: u32 = 77;
/// The redirect device.
pub const REDIRECT_DEVICE: u32 = 78;
/// The pod's end of its veth pair.
pub const VETH: u32 = 79;
/// The number of [`THIS`].
pub const THIS_NIC: u8 = 1;
/// The number of [`THAT`].
pub const THAT_NIC: u8 = 2;
/// The mark of [`THIS`].
pub const MARK: u32 = 0x02;
/// The mark of [`THAT`].
pub const THAT_MARK: u32 = 0x04;
/// The bit of replies, in the host.
pub const REPLY: u32 = reply_bit(DEFAULT_NIC_MARKS);

/// Parses an address that is written in the source.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
