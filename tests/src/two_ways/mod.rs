//! A pod that a client reaches in two ways: directly by the pod's own NIC, or through its node, which forwards what
//! arrives at either NIC (as a NodePort, but for every protocol).
//!
//! The client is on the VPC's edge, so its packets are not translated before they reach the node.

pub mod talk;

use std::{
    fmt, mem,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Result, bail, ensure};
use ebbtide_vpc::{
    edge::VPC_SIDE,
    iptables,
    lab::Lab,
    netns::Netns,
    packet_socket,
    path::{Hop, Path},
    plan::{EDGE_ROUTER_MAC, Family, Plan, ROUTER_EDGE_MAC},
    pod::{NIC_SIDE, NODE_SIDE, Pod},
    tap::{
        Direction::{self, In, Out},
        Mark, Place, Seen,
    },
};
use etherparse::PacketBuilder;
use serde_json::{Value, json};

const NODE: &str = "master";
/// The pod's NIC.
const OWN: &str = "ens6";
/// The other one, with the node's default route.
const OTHER: &str = "ens5";

/// The way by which the client reaches the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the pod's address.
    Straight,
    /// By the node's address on the other NIC, which the node translates.
    NodePort,
    /// By the node's address on the pod's own NIC, which the node translates.
    OwnNodePort,
}

impl Way {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Straight, Self::NodePort, Self::OwnNodePort];

    /// Returns the node's NIC on this way.
    #[must_use]
    pub fn nic(self) -> &'static str {
        match self {
            Self::Straight | Self::OwnNodePort => OWN,
            Self::NodePort => OTHER,
        }
    }

    /// Returns the pod's interface on this way.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::Straight => NIC_SIDE,
            Self::NodePort | Self::OwnNodePort => NODE_SIDE,
        }
    }

    /// Returns the path into the pod: wire and interface.
    fn path(self, pod: &str, interface: &str) -> Path {
        let wire = Place::Wire {
            node: NODE.into(),
            nic: self.nic().into(),
        };
        let end = Place::Pod {
            pod: pod.into(),
            interface: interface.into(),
        };
        Path(
            [wire, end]
                .map(|place| Hop {
                    place,
                    direction: In,
                })
                .into(),
        )
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Straight => "straight",
            Self::NodePort => "by NodePort",
            Self::OwnNodePort => "by NodePort at the pod's NIC",
        })
    }
}

/// The pod and its surroundings.
#[derive(Debug)]
pub struct Site {
    /// The pod. It comes before the lab, so that it is dropped first.
    pub pod: Pod,
    /// The lab.
    pub lab: Lab,
}

/// The parameters of one exchange.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The pod and its surroundings.
    pub site: &'a Site,
    /// How the client reaches the pod.
    pub way: Way,
    /// The family.
    pub family: Family,
    /// The port of the pod's server, which no other case uses.
    pub port: u16,
}

impl Site {
    /// Builds the lab and the pod.
    ///
    /// # Errors
    /// If a step fails; the error names it.
    pub fn create(plan: Plan) -> Result<Self> {
        Self::create_with(plan, &json!({}))
    }

    /// As [`Site::create`], with these fields in the pod's network configuration.
    ///
    /// # Errors
    /// As [`Site::create`].
    pub fn create_with(plan: Plan, fields: &Value) -> Result<Self> {
        let lab = Lab::start(plan)?;
        let pod = lab.pod_with(NODE, OWN, "c", fields)?;
        let site = Self { pod, lab };
        site.translate()?;
        Ok(site)
    }

    /// Replaces the pod by a new one, whose programs have learned nothing yet. Returns the old one: it is unchanged,
    /// but nothing is forwarded to it; its taps could not be read after its removal.
    ///
    /// # Errors
    /// If the plugin or the rules fail.
    pub fn replace_pod(&mut self, name: &str) -> Result<Pod> {
        let pod = self.lab.pod(NODE, OWN, name)?;
        let old = mem::replace(&mut self.pod, pod);
        self.translate()?;
        Ok(old)
    }

    /// Makes the node forward the client's packets to the pod. The rules come before those for an earlier pod.
    fn translate(&self) -> Result<()> {
        for family in Family::BOTH {
            let client = Plan::edge_link(family).edge.addr();
            let pod = self.pod.address(family);
            let rules = [OWN, OTHER].map(|nic| {
                let node = self.lab.vpc.nic(NODE, nic).primary(family);
                format!(
                    "-I PREROUTING -i {nic} -s {client} -d {node} -j DNAT --to-destination {pod}"
                )
            });
            let script = format!("*nat\n{}\nCOMMIT\n", rules.join("\n"));
            iptables::restore(self.node(), family, &script)?;
        }
        Ok(())
    }

    /// Returns the client's namespace.
    #[must_use]
    pub fn client(&self) -> &Netns {
        self.lab.vpc.edge.netns()
    }

    /// Returns the pod's node.
    #[must_use]
    pub fn node(&self) -> &Netns {
        self.lab.vpc.node(NODE)
    }

    /// Runs one kind of exchange in both families and by all ways. Fails with everything that went wrong: a missing
    /// answer, a frame that the VPC dropped, a packet that source-NIC enforcement redirected.
    ///
    /// # Errors
    /// If one is wrong; the error names it.
    pub fn each(&mut self, exchange: impl Fn(&Case<'_>) -> Result<()>) -> Result<()> {
        let mut failed = Vec::new();
        for family in Family::BOTH {
            for way in Way::ALL {
                if let Err(error) = exchange(&self.case(way, family)) {
                    failed.push(format!("{family}, {way}: {error:#}"));
                }
            }
        }
        ensure!(
            failed.is_empty(),
            "{}\n{}",
            failed.join("\n"),
            self.lab.logs()
        );
        self.lab.vpc.assert_no_violations()?;
        let wrong = self.left_to_enforcement()?;
        ensure!(
            wrong == 0,
            "{wrong} packets were left to source-NIC enforcement"
        );
        Ok(())
    }

    /// Returns a case with a port of its own.
    #[must_use]
    pub fn case(&self, way: Way, family: Family) -> Case<'_> {
        static PORT: AtomicU16 = AtomicU16::new(8000);
        Case {
            site: self,
            way,
            family,
            port: PORT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Returns how many packets source-NIC enforcement redirected, because they would have left by the wrong NIC.
    ///
    /// # Errors
    /// If the agent does not answer.
    pub fn left_to_enforcement(&mut self) -> Result<u64> {
        self.lab.agent(NODE).left_to_enforcement()
    }
}

impl Case<'_> {
    /// Returns the client's address.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(Plan::edge_link(self.family).edge.addr(), 0)
    }

    /// Returns the address and port that the client sends to.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address(), self.port)
    }

    /// Returns the address that the client sends to.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self.way {
            Way::Straight => self.site.pod.address(self.family),
            Way::NodePort | Way::OwnNodePort => {
                let nic = self.site.lab.vpc.nic(NODE, self.way.nic());
                nic.primary(self.family)
            }
        }
    }

    /// Builds a frame with a datagram from the client's port to the server.
    ///
    /// # Errors
    /// If it is too long.
    pub fn datagram(&self, client_port: u16, payload: &[u8]) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2([0; 6], [0; 6]);
        let step = match (self.client().ip(), self.address()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            (from, to) => bail!("{from} and {to} are of two families"),
        };
        let mut frame = Vec::new();
        let step = step.udp(client_port, self.port);
        step.write(&mut frame, payload)?;
        Ok(frame)
    }

    /// Sends frames on the client's wire. The link-layer header is replaced.
    ///
    /// # Errors
    /// If they cannot be sent.
    pub fn send(&self, frames: impl IntoIterator<Item = Vec<u8>>) -> Result<()> {
        let macs = [EDGE_ROUTER_MAC, ROUTER_EDGE_MAC];
        packet_socket::send(self.site.client(), VPC_SIDE, macs, frames)
    }

    /// Returns a mark for now.
    ///
    /// # Errors
    /// If a tap cannot be read.
    pub fn mark(&self) -> Result<Mark> {
        self.site.lab.taps.mark()
    }

    /// Returns all packets between the client and this case's port since a mark, and those without ports.
    ///
    /// # Errors
    /// If a tap cannot be read.
    pub fn seen(&self, since: Mark) -> Result<Vec<Seen>> {
        let client = self.client().ip();
        let mut seen = self.site.lab.taps.since(since)?;
        seen.retain(|packet| {
            let ports = [packet.source_port, packet.destination_port];
            [packet.source, packet.destination].contains(&client)
                && (ports == [0, 0] || ports.contains(&self.port))
        });
        Ok(seen)
    }

    /// Returns the pod's interface by which answers leave.
    #[must_use]
    pub fn back(&self) -> &'static str {
        match self.site.lab.vpc.plan.exempt {
            true => NODE_SIDE,
            false => self.way.interface(),
        }
    }

    /// Asserts that everything since a mark took this case's path, in both directions, and no other.
    ///
    /// # Errors
    /// If the packet took another path; the error names it.
    pub fn took_its_way(&self, since: Mark) -> Result<Vec<Seen>> {
        self.came_back_by(self.back(), since)
    }

    /// As [`Case::took_its_way`], but answers leave the pod by this interface.
    ///
    /// # Errors
    /// If the packet took another path; the error names it.
    pub fn came_back_by(&self, interface: &str, since: Mark) -> Result<Vec<Seen>> {
        let seen = self.seen(since)?;
        let pod = &self.site.pod.name;
        let there = self.way.path(pod, self.way.interface());
        let back = self.way.path(pod, interface).reversed();
        for (direction, expected) in [(In, there), (Out, back)] {
            let taken = hops(&seen, direction);
            ensure!(
                taken.same_hops(&expected),
                "{direction:?}: {taken}, not {expected}\n{}",
                list(&seen)
            );
        }
        Ok(seen)
    }
}

/// Returns the places that packets passed in one direction, each once.
fn hops(seen: &[Seen], direction: Direction) -> Path {
    let mut path = Path::default();
    for packet in seen.iter().filter(|packet| packet.direction == direction) {
        let hop = Hop {
            place: packet.place.clone(),
            direction,
        };
        if !path.0.contains(&hop) {
            path.0.push(hop);
        }
    }
    path
}

fn list(seen: &[Seen]) -> String {
    let first = seen.iter().take(40);
    let lines: Vec<String> = first.map(|packet| format!("  {packet}")).collect();
    lines.join("\n")
}
