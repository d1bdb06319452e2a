//! Describes a pod's packet as far as it is known when the host's netfilter sees it.

use std::net::IpAddr;

use ebbtide_types::Family;

/// The netfilter hook at which the kernel evaluates rules for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// For what the host sends, and what a pod sends by its NIC.
    Output,
    /// For what the host forwards.
    Forward,
    /// For what is for the host itself.
    Input,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Whether `name` in a rule is this protocol.
    pub(super) fn is_called(self, name: &str) -> bool {
        match self {
            Self::Tcp => matches!(name, "tcp" | "6"),
            Self::Udp => matches!(name, "udp" | "17"),
        }
    }
}

/// The known properties of a packet. Unknown ones may have any value.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its family.
    pub family: Family,
    /// Its source.
    pub source: Option<IpAddr>,
    /// Its destination.
    pub destination: Option<IpAddr>,
    /// Input link; none for the host's own, and for what a pod sends by its NIC.
    pub input: Option<&'a str>,
    /// Output link; none for what is for the host.
    pub output: Option<&'a str>,
    /// Its conntrack state: `NEW`, `INVALID`.
    pub state: &'a str,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The destination port.
    pub port: Option<u16>,
}

impl<'a> Packet<'a> {
    /// Creates a packet that a pod sends by its NIC.
    #[must_use]
    pub const fn sent(pod: IpAddr, nic: &'a str, state: &'a str) -> Self {
        Self {
            family: Family::of(pod),
            source: Some(pod),
            destination: None,
            input: None,
            output: Some(nic),
            state,
            protocol: None,
            port: None,
        }
    }

    /// Creates a request that the host forwards to a pod, by the host's end of its veth.
    #[must_use]
    pub const fn to_pod(pod: IpAddr, nic: &'a str, veth: &'a str, protocol: Protocol) -> Self {
        Self {
            family: Family::of(pod),
            source: None,
            destination: Some(pod),
            input: Some(nic),
            output: Some(veth),
            state: "NEW",
            protocol: Some(protocol),
            port: None,
        }
    }

    /// Creates a request of a pod that the host forwards by a NIC.
    #[must_use]
    pub const fn from_pod(pod: IpAddr, veth: &'a str, nic: &'a str, protocol: Protocol) -> Self {
        Self {
            source: Some(pod),
            destination: None,
            input: Some(veth),
            output: Some(nic),
            ..Self::to_pod(pod, nic, veth, protocol)
        }
    }

    /// Creates a request of a pod to its node.
    #[must_use]
    pub const fn to_node(pod: IpAddr, veth: &'a str, protocol: Protocol, port: u16) -> Self {
        Self {
            output: None,
            port: Some(port),
            ..Self::from_pod(pod, veth, "", protocol)
        }
    }

    /// Returns the hook at which rules see the packet.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        match (self.input, self.output) {
            (None, _) => Hook::Output,
            (Some(_), Some(_)) => Hook::Forward,
            (Some(_), None) => Hook::Input,
        }
    }
}
