//! Measures what a packet pays for the path of its reply: Ebbtide's programs, iptables, and neither.

pub mod load;
pub mod site;

use std::time::Duration;

use anyhow::{Context as _, Result};

use self::{
    load::Way,
    site::{Marking, Site},
};
use super::{
    figures::{Figures, Series, Table},
    machine::Machine,
    testbed::Testbed,
};

/// The extent of a run.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rounds; all sites take turns in each.
    pub rounds: usize,
    /// Round trips and connections of each site in a round.
    pub operations: usize,
    /// Rounds of streams, and the duration of each.
    pub streams: (usize, Duration),
}

impl Extent {
    /// Enough for figures.
    pub const FULL: Self = Self {
        rounds: 15,
        operations: 600,
        streams: (5, Duration::from_millis(500)),
    };
    /// Just enough to see that it works.
    pub const SHORT: Self = Self {
        rounds: 2,
        operations: 5,
        streams: (1, Duration::from_millis(20)),
    };
}

/// The measured load. The value of a round is the median of its operations.
#[derive(Clone, Copy, Debug)]
enum Load {
    UdpRoundTrips,
    TcpRoundTrips,
    Connections,
    PacketsIn,
    Replies,
    Streams(usize),
}

impl Load {
    const OPERATIONS: [Self; 5] = [
        Self::UdpRoundTrips,
        Self::TcpRoundTrips,
        Self::Connections,
        Self::PacketsIn,
        Self::Replies,
    ];
    const STREAMS: [Self; 2] = [Self::Streams(1), Self::Streams(4)];

    fn title(self) -> (String, &'static str, &'static str) {
        let (title, meaning, unit) = match self {
            Self::UdpRoundTrips => (
                "UDP round trip",
                "A request and an answer of 18 bytes each.",
                "us",
            ),
            Self::TcpRoundTrips => (
                "TCP round trip",
                "A request and an answer of 64 bytes each, in one connection.",
                "us",
            ),
            Self::Connections => (
                "new TCP connection",
                "A connection, a request and an answer of 64 bytes, and its end.",
                "us",
            ),
            Self::PacketsIn => (
                "UDP packet in",
                "One of a burst of 64 datagrams to the pod, sent and received by one CPU: a million \
                 divided by it are the packets of a second.",
                "us",
            ),
            Self::Replies => (
                "UDP reply",
                "One of a burst of 64 datagrams back to the client, sent and received by one CPU.",
                "us",
            ),
            Self::Streams(count) => {
                let title = format!("TCP from the pod, {count} streams");
                return (title, "What arrives; more is better.", "Gbit/s");
            }
        };
        (title.to_owned(), meaning, unit)
    }

    fn measure(self, way: &Way, extent: &Extent) -> Result<f64> {
        let count = extent.operations;
        // Sends as many datagrams as there are round trips.
        let bursts = count.div_ceil(8);
        let values = match self {
            Self::UdpRoundTrips => way.udp_round_trips(count),
            Self::TcpRoundTrips => way.tcp_round_trips(count),
            Self::Connections => way.connections(count),
            Self::PacketsIn => way.udp_bursts(bursts).map(|(there, _)| there),
            Self::Replies => way.udp_bursts(bursts).map(|(_, back)| back),
            Self::Streams(count) => way
                .throughput(count, extent.streams.1)
                .map(|rate| vec![rate]),
        };
        let values = values.with_context(|| self.title().0)?;
        Ok(Series {
            name: String::new(),
            values,
        }
        .summary()
        .median)
    }
}

/// Runs the benchmark, on nodes on which kube-proxy has written rules for so many `services`.
///
/// # Errors
/// If a path does not carry its traffic.
pub fn run(extent: Extent, services: usize) -> Result<Figures> {
    let machine = Machine::look();
    let slave = Testbed::build()?.slave()?;
    let mut notes = vec![
        format!(
            "the pod's interface on the NIC is {}; client, node and pod are namespaces, and one thread \
             drives both ends: no scheduling is in the figures but in those of streams",
            slave.described()
        ),
        "± is the median of the differences round by round: all take turns in each round"
            .to_owned(),
    ];
    if services > 0 {
        notes.push(format!(
            "the node has kube-proxy's rules (iptables) for {services} Services"
        ));
    }
    let mut sites = Vec::new();
    for marking in Marking::ALL {
        match Site::build(marking, slave, services) {
            Ok(site) => sites.push(site),
            Err(e) if matches!(marking, Marking::Nft | Marking::Legacy) => {
                notes.push(format!("{} was not measured: {e:#}", marking.name()));
            }
            Err(e) => return Err(e.context(marking.name())),
        }
    }
    let mut tables = Vec::new();
    for (loads, rounds) in [
        (Load::OPERATIONS.as_slice(), extent.rounds),
        (Load::STREAMS.as_slice(), extent.streams.0),
    ] {
        // A connection that came by the NodePort before would be answered by the host-stack bypass when it comes
        // directly, which is not to be measured here.
        for path in [Path::Direct, Path::NodePort] {
            tables.extend(path.tables(&sites, loads, rounds, &extent)?);
        }
    }
    Ok(Figures {
        name: "datapath".to_owned(),
        machine,
        tables,
        timelines: Vec::new(),
        notes,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    NodePort,
    Direct,
}

impl Path {
    fn way(self, site: &Site) -> Option<Result<Way>> {
        match self {
            Self::NodePort => site.marking.serves_node_port().then(|| site.node_port()),
            Self::Direct => site.marking.serves_direct().then(|| site.direct()),
        }
    }

    /// Creates a table for each load, with a row for each site that supports this path.
    fn tables(
        self,
        sites: &[Site],
        loads: &[Load],
        rounds: usize,
        extent: &Extent,
    ) -> Result<Vec<Table>> {
        let (name, bound) = match self {
            Self::NodePort => ("NodePort, reply by the veth", Marking::Symmetric),
            Self::Direct => ("direct", Marking::Direct),
        };
        let ways = sites
            .iter()
            .filter_map(|site| Some((site.marking, self.way(site)?)))
            .map(|(marking, way)| Ok((marking, way?)))
            .collect::<Result<Vec<_>>>()?;
        loads
            .iter()
            .map(|load| {
                let (title, meaning, unit) = load.title();
                let mut table = Table {
                    title: format!("{title}: {name}"),
                    meaning: meaning.to_owned(),
                    unit,
                    rows: ways
                        .iter()
                        .map(|(marking, _)| Series::new(marking.name()))
                        .collect(),
                    floor: Some(bound.name().to_owned()),
                    peer: Some(Marking::Legacy.name().to_owned()),
                    paired: Some(bound.name().to_owned()),
                };
                // The first round fills caches. Another site begins each time.
                for round in 0..=rounds {
                    for turn in 0..ways.len() {
                        let number = (turn + round) % ways.len();
                        let (marking, way) = &ways[number];
                        let value = load
                            .measure(way, extent)
                            .with_context(|| format!("{}: {name}", marking.name()))?;
                        if round > 0 {
                            table.rows[number].values.push(value);
                        }
                    }
                }
                Ok(table)
            })
            .collect()
    }
}
