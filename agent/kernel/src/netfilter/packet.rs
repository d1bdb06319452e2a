//! What is known of a packet of a pod's when the host's netfilter sees it.

use std::net::IpAddr;

use ebbtide_types::Family;

/// Where the kernel asks the rules about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// For what the host sends, and what a pod sends by its NIC.
    Output,
    /// For what the host sends on.
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
    /// Whether rules call it so.
    pub(super) fn is_called(self, name: &str) -> bool {
        match self {
            Self::Tcp => matches!(name, "tcp" | "6"),
            Self::Udp => matches!(name, "udp" | "17"),
        }
    }
}

/// What is known of a packet. What is not may be anything.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its family.
    pub family: Family,
    /// Where it comes from.
    pub source: Option<IpAddr>,
    /// Where it goes to.
    pub destination: Option<IpAddr>,
    /// The link it came in by; none for the host's own, and for what a pod sends by its NIC.
    pub input: Option<&'a str>,
    /// The link it leaves by; none for what is for the host.
    pub output: Option<&'a str>,
    /// What conntrack calls it: `NEW`, `INVALID`.
    pub state: &'a str,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The port it goes to.
    pub port: Option<u16>,
}

impl<'a> Packet<'a> {
    /// What a pod sends by its NIC.
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

    /// A request that the host sends on to a pod, by the host's end of its veth.
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

    /// A request of a pod's that the host sends on, by a NIC.
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

    /// A request of a pod's to its node.
    #[must_use]
    pub const fn to_node(pod: IpAddr, veth: &'a str, protocol: Protocol, port: u16) -> Self {
        Self {
            output: None,
            port: Some(port),
            ..Self::from_pod(pod, veth, "", protocol)
        }
    }

    /// Where the rules meet it.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        match (self.input, self.output) {
            (None, _) => Hook::Output,
            (Some(_), Some(_)) => Hook::Forward,
            (Some(_), None) => Hook::Input,
        }
    }
}
