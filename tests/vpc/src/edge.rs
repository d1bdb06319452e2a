//! The VPC's edge: NAT gateway, internet gateway and network load balancer in one namespace.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;

use crate::{
    iptables,
    netns::Netns,
    plan::{Family, Plan},
    traffic::Protocol,
};

/// The edge's interface towards the router.
pub const VPC_SIDE: &str = "vpc";
/// The edge's interface towards the world.
pub(crate) const WORLD_SIDE: &str = "world";

/// A listener of the load balancer: a port of its public address, and its target.
/// The client's address is kept: the target answers the client, and the reply comes back through the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the load balancer's public address.
    pub port: u16,
    /// A pod (IP target) or a node's address and NodePort (instance target).
    pub target: SocketAddr,
}

impl Listener {
    /// Returns the address that clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let family = Family::of(self.target.ip());
        SocketAddr::new(Plan::load_balancer(family), self.port)
    }
}

/// The edge, with its rules installed.
#[derive(Debug)]
pub struct Edge {
    netns: Netns,
}

impl Edge {
    pub(crate) fn new(netns: Netns) -> Result<Self> {
        // Only IPv4: IPv6 leaves by the internet gateway as it is.
        let nat = format!(
            "*nat\n-A POSTROUTING -o {WORLD_SIDE} -j SNAT --to-source {}\nCOMMIT\n",
            Plan::NAT
        );
        iptables::restore(&netns, Family::V4, &nat)?;
        Ok(Self { netns })
    }

    /// Returns the namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Adds listeners to the load balancer.
    ///
    /// # Errors
    /// If iptables fails; the error has its output.
    pub fn listen(&self, listeners: &[Listener]) -> Result<()> {
        for family in Family::BOTH {
            let script = rules(listeners, family);
            if !script.is_empty() {
                iptables::restore(&self.netns, family, &script)?;
            }
        }
        Ok(())
    }
}

/// Returns the edge's addresses in the world.
pub(crate) fn world_addresses() -> [(IpAddr, u8); 4] {
    [
        (Plan::NAT, 24),
        (Plan::load_balancer(Family::V4), 24),
        (Plan::EDGE_V6, 64),
        (Plan::load_balancer(Family::V6), 64),
    ]
}

fn rules(listeners: &[Listener], family: Family) -> String {
    let mut script = String::new();
    for listener in listeners {
        if Family::of(listener.target.ip()) != family {
            continue;
        }
        let public = listener.address();
        let _ = writeln!(
            script,
            "-A PREROUTING -i {WORLD_SIDE} -d {} -p {} --dport {} -j DNAT --to-destination {}",
            public.ip(),
            listener.protocol,
            public.port(),
            listener.target,
        );
    }
    if script.is_empty() {
        script
    } else {
        format!("*nat\n{script}COMMIT\n")
    }
}
