//! The path of an exchange of packets, derived from what the taps saw.

use std::{fmt, net::SocketAddr};

use nix::libc::IPPROTO_TCP;
use serde::Serialize;

use crate::tap::{Direction, Icmp, Place, Seen};

/// A place on a path, and the direction in which packets pass it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Hop {
    /// The place.
    #[serde(flatten)]
    pub place: Place,
    /// The direction.
    pub direction: Direction,
}

/// A path, from its first hop to its last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Path(pub Vec<Hop>);

/// The paths of requests and replies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// The path from the client to the server.
    pub request: Path,
    /// The path from the server to the client.
    pub reply: Path,
}

impl Exchange {
    /// Derives the paths from packets. TCP and UDP packets are requests or replies by the serving ports (the Service's,
    /// the node's, the pod's), ICMP echo packets by their type; others are left out. Each place counts once, where it
    /// was first passed.
    #[must_use]
    pub fn of(seen: &[Seen], serving: &[u16]) -> Self {
        let mut exchange = Self {
            request: Path::default(),
            reply: Path::default(),
        };
        for packet in seen {
            let path = match half(packet, serving) {
                Some(Half::Request) => &mut exchange.request,
                Some(Half::Reply) => &mut exchange.reply,
                None => continue,
            };
            let hop = Hop::of(packet);
            if !path.0.contains(&hop) {
                path.0.push(hop);
            }
        }
        exchange
    }

    /// Whether the reply passed every place that the request passed, and no other.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        self.reply.same_hops(&self.request.reversed())
    }
}

/// The two halves of an exchange.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Request,
    Reply,
}

fn half(packet: &Seen, serving: &[u16]) -> Option<Half> {
    match packet.icmp {
        Some(Icmp::Request) => Some(Half::Request),
        Some(Icmp::Reply) => Some(Half::Reply),
        Some(Icmp::Other(_)) => None,
        None if serving.contains(&packet.destination_port) => Some(Half::Request),
        None if serving.contains(&packet.source_port) => Some(Half::Reply),
        None => None,
    }
}

/// Removes TCP packets of connections that were open before, since their last segments arrive late.
pub fn forget_earlier_connections(seen: &mut Vec<Seen>) {
    let opened: Vec<_> = seen
        .iter()
        .filter(|packet| packet.opens)
        .map(ends)
        .collect();
    seen.retain(|packet| {
        let (source, destination) = ends(packet);
        i32::from(packet.protocol) != IPPROTO_TCP
            || opened.contains(&(source, destination))
            || opened.contains(&(destination, source))
    });
}

/// Returns source and destination.
fn ends(packet: &Seen) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(packet.source, packet.source_port),
        SocketAddr::new(packet.destination, packet.destination_port),
    )
}

/// Returns a description of the first reply whose addresses and ports are not those of its request, exchanged, at the
/// same place. Such a reply left by the right NIC with the wrong source.
#[must_use]
pub fn crooked(seen: &[Seen], serving: &[u16]) -> Option<String> {
    let replies = seen
        .iter()
        .filter(|packet| half(packet, serving) == Some(Half::Reply));
    for reply in replies {
        let there = Hop::of(reply).flipped();
        let mut requests = seen
            .iter()
            .filter(|packet| half(packet, serving) == Some(Half::Request))
            .filter(|packet| Hop::of(packet) == there);
        let Some(first) = requests.next() else {
            continue;
        };
        let (source, destination) = ends(reply);
        if ends(first) != (destination, source)
            && !requests.any(|request| ends(request) == (destination, source))
        {
            return Some(format!("{reply}, the request was {first}"));
        }
    }
    None
}

impl Hop {
    fn of(packet: &Seen) -> Self {
        Self {
            place: packet.place.clone(),
            direction: packet.direction,
        }
    }

    /// Returns the same place in the other direction.
    #[must_use]
    pub fn flipped(&self) -> Self {
        Self {
            place: self.place.clone(),
            direction: match self.direction {
                Direction::In => Direction::Out,
                Direction::Out => Direction::In,
            },
        }
    }
}

impl Path {
    /// Whether both paths pass the same places in the same directions.
    /// The order is not compared: the time stamps are of different namespaces and too close to each other, and a packet
    /// can pass these places in one order only.
    #[must_use]
    pub fn same_hops(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().all(|hop| other.0.contains(hop))
    }

    /// Returns the path in the opposite direction.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self(self.0.iter().rev().map(Hop::flipped).collect())
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.request)?;
        if !self.is_symmetric() {
            write!(f, ", back: {}", self.reply)?;
        }
        Ok(())
    }
}

impl fmt::Display for Path {
    /// Formats the path as `ipvlan → master/ens5 → vpc → worker1/ens6 → ipvlan`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut stations: Vec<String> = Vec::new();
        for hop in &self.0 {
            match (&hop.place, hop.direction) {
                (Place::Wire { .. }, Direction::Out) => {
                    stations.extend([hop.place.to_string(), "vpc".into()]);
                }
                (Place::Wire { .. }, Direction::In) => {
                    stations.extend(["vpc".into(), hop.place.to_string()]);
                }
                (Place::Pod { interface, .. }, _) if interface.starts_with("veth") => {
                    stations.push("veth".into());
                }
                (Place::Pod { .. }, _) => stations.push("ipvlan".into()),
            }
        }
        stations.dedup();
        if stations.is_empty() {
            return f.write_str("nothing seen");
        }
        f.write_str(&stations.join(" → "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(node: &str, nic: &str, direction: Direction) -> Hop {
        Hop {
            place: Place::Wire {
                node: node.into(),
                nic: nic.into(),
            },
            direction,
        }
    }

    fn pod(interface: &str, direction: Direction) -> Hop {
        Hop {
            place: Place::Pod {
                pod: "a".into(),
                interface: interface.into(),
            },
            direction,
        }
    }

    #[test]
    fn paths_read_as_stations() {
        use Direction::{In, Out};
        let cases = [
            (vec![], "nothing seen"),
            (vec![pod("eth0", Out), pod("eth0", In)], "ipvlan"),
            (vec![pod("veth0", In)], "veth"),
            (
                vec![wire("master", "ens5", In), pod("veth0", In)],
                "vpc → master/ens5 → veth",
            ),
            (
                vec![
                    pod("eth0", Out),
                    wire("master", "ens5", Out),
                    wire("worker1", "ens6", In),
                    pod("eth0", In),
                ],
                "ipvlan → master/ens5 → vpc → worker1/ens6 → ipvlan",
            ),
        ];
        for (hops, expected) in cases {
            assert_eq!(Path(hops).to_string(), expected);
        }
    }

    fn packet(hop: Hop, source: &str, destination: &str) -> Seen {
        let source: SocketAddr = source.parse().unwrap();
        let destination: SocketAddr = destination.parse().unwrap();
        Seen {
            place: hop.place,
            direction: hop.direction,
            source: source.ip(),
            destination: destination.ip(),
            protocol: 17,
            source_port: source.port(),
            destination_port: destination.port(),
            icmp: None,
            opens: false,
            reset: false,
            length: 40,
            time: std::time::Duration::ZERO,
        }
    }

    #[test]
    fn a_late_segment_of_an_earlier_connection_is_no_part_of_this_one() {
        use Direction::{In, Out};
        let (client, server) = ("203.0.113.9:40000", "172.31.16.10:80");
        let at = |direction, source, destination, opens| Seen {
            opens,
            protocol: 6,
            ..packet(wire("master", "ens5", direction), source, destination)
        };
        let this = [
            at(In, client, server, true),
            at(Out, server, client, false),
            packet(wire("master", "ens5", Out), server, "203.0.113.9:53"),
        ];
        let late = at(Out, server, "203.0.113.9:39999", false);
        let mut seen = vec![late];
        seen.extend(this.clone());
        forget_earlier_connections(&mut seen);
        assert_eq!(seen, this);
    }

    #[test]
    fn a_reply_with_another_source_is_crooked() {
        use Direction::{In, Out};
        let request = packet(
            wire("master", "ens5", In),
            "198.51.100.50:4000",
            "172.31.22.228:30080",
        );
        let straight = packet(
            wire("master", "ens5", Out),
            "172.31.22.228:30080",
            "198.51.100.50:4000",
        );
        let bent = packet(
            wire("master", "ens5", Out),
            "172.31.16.4:8080",
            "198.51.100.50:4000",
        );
        let serving = [30080, 8080];
        assert_eq!(crooked(&[request.clone(), straight], &serving), None);
        assert!(crooked(&[request, bent], &serving).is_some());
    }

    #[test]
    fn a_reply_by_another_nic_is_told() {
        use Direction::{In, Out};
        let exchange = Exchange {
            request: Path(vec![wire("master", "ens5", In), pod("veth0", In)]),
            reply: Path(vec![pod("eth0", Out), wire("master", "ens6", Out)]),
        };
        assert!(!exchange.is_symmetric());
        assert_eq!(
            exchange.to_string(),
            "vpc → master/ens5 → veth, back: ipvlan → master/ens6 → vpc"
        );
    }
}
