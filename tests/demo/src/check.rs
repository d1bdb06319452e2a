//! One row of the demonstration: a client and a server, every family and protocol, and the expected path.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    lab::Lab,
    metadata::{AWS_V6, Cloud},
    netns::Netns,
    path::{Exchange, Path, crooked},
    ping::ping,
    plan::{Family, Plan},
    tap::Seen,
    traffic::{Client, Protocol},
};
use serde::Serialize;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// The protocol of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo.
    Icmp,
}

impl Transport {
    /// All protocols.
    pub const ALL: &[Self] = &[Self::Tcp, Self::Udp, Self::Icmp];
    /// The protocols with ports, which can pass Services and load balancers.
    pub const WITH_PORTS: &[Self] = &[Self::Tcp, Self::Udp];

    /// Whether a packet is of this protocol.
    fn carries(self, packet: &Seen) -> bool {
        match self {
            Self::Tcp => packet.protocol == IPPROTO_TCP,
            Self::Udp => packet.protocol == IPPROTO_UDP,
            Self::Icmp => packet.icmp.is_some(),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        })
    }
}

/// The client's address as the server must see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenAs {
    /// The client's own address and port.
    Itself,
    /// An address of this node, which masquerades.
    Node(String),
    /// From outside the VPC: for IPv4 the NAT gateway's address, for IPv6 the client's own.
    Outside,
}

/// Traffic and its expected path.
#[derive(Clone, Debug)]
pub struct Check {
    /// The row's name in the table.
    pub traffic: &'static str,
    /// The client's name.
    pub from: String,
    /// The server's name.
    pub to: String,
    /// The client's namespace.
    pub client: Netns,
    /// The client's addresses by family, if the kernel may not choose.
    pub source: Option<[IpAddr; 2]>,
    /// The addresses that the client sends to, by family.
    pub server: [SocketAddr; 2],
    /// The ports of the serving side, anywhere on the path.
    pub serving: Vec<u16>,
    /// The families that are tried.
    pub families: &'static [Family],
    /// The protocols.
    pub transports: &'static [Transport],
    /// The time limit for an answer.
    pub patience: Duration,
    /// The client's address as the server must see it.
    pub seen_as: SeenAs,
    /// The path of the request.
    pub path: Path,
    /// The path of the reply; the reverse path if `None`.
    pub back: Option<Path>,
}

/// One exchange.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The protocol.
    pub transport: Transport,
    /// The path that it took.
    pub path: String,
    /// The shortest round trip, in microseconds.
    pub latency_us: Option<u64>,
    /// What failed.
    pub failure: Option<String>,
}

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The row's name.
    pub traffic: String,
    /// The client's name.
    pub from: String,
    /// The server's name.
    pub to: String,
    /// The paths taken; more than one only if something is wrong.
    pub path: String,
    /// The median of the exchanges, in microseconds.
    pub latency_us: Option<u64>,
    /// Whether everything was as expected.
    pub ok: bool,
    /// Whether no answer is expected.
    pub expected_failure: bool,
    /// What failed, or a remark.
    pub note: String,
    /// The exchanges.
    pub exchanges: Vec<Measurement>,
}

impl Check {
    /// Runs all exchanges of the row.
    #[must_use]
    pub fn run(&self, lab: &Lab, verbose: bool) -> Line {
        let mut exchanges = Vec::new();
        for family in self.families {
            for transport in self.transports {
                exchanges.push(self.measure(lab, *family, *transport, verbose));
            }
        }
        let failures: Vec<String> = exchanges
            .iter()
            .filter_map(|exchange| {
                let failure = exchange.failure.as_ref()?;
                Some(format!(
                    "{} {}: {failure}",
                    exchange.family, exchange.transport
                ))
            })
            .collect();
        Line {
            traffic: self.traffic.to_owned(),
            from: self.from.clone(),
            to: self.to.clone(),
            path: paths(&exchanges),
            latency_us: median(&exchanges),
            ok: failures.is_empty(),
            expected_failure: false,
            note: failures.join("\n"),
            exchanges,
        }
    }

    fn measure(
        &self,
        lab: &Lab,
        family: Family,
        transport: Transport,
        verbose: bool,
    ) -> Measurement {
        let mut latency = None;
        let mut way = None;
        let result = self.exchange(lab, family, transport, verbose, &mut latency, &mut way);
        Measurement {
            family: family.to_string(),
            transport,
            path: way.map_or_else(String::new, |way| way.to_string()),
            latency_us: latency.and_then(|latency| u64::try_from(latency.as_micros()).ok()),
            failure: result.err().map(|error| format!("{error:#}")),
        }
    }

    fn exchange(
        &self,
        lab: &Lab,
        family: Family,
        transport: Transport,
        verbose: bool,
        latency: &mut Option<Duration>,
        way: &mut Option<Exchange>,
    ) -> Result<()> {
        let mark = lab.taps.mark()?;
        let asked = self.ask(lab, family, transport);
        let mut seen = lab.taps.since(mark)?;
        // The last packets of the previous exchange may come late, and agents ask their cloud at any time.
        seen.retain(|packet| {
            Family::of(packet.source) == family
                && transport.carries(packet)
                && !is_metadata(packet.source)
                && !is_metadata(packet.destination)
        });
        let expected = Exchange {
            request: self.path.clone(),
            reply: self.back.clone().unwrap_or_else(|| self.path.reversed()),
        };
        let mut taken = Exchange::of(&seen, &self.serving);
        let as_expected =
            taken.request.same_hops(&self.path) && taken.reply.same_hops(&expected.reply);
        if as_expected {
            taken = expected.clone();
        }
        *way = Some(taken.clone());
        let verdict = asked.and_then(|took| {
            *latency = Some(took);
            if let Some(packet) = crooked(&seen, &self.serving) {
                bail!("wrong addresses: {packet}");
            }
            if !as_expected {
                bail!("took {taken}, not {expected}");
            }
            Ok(())
        });
        if verbose {
            let state = if verdict.is_ok() { "ok" } else { "FAILED" };
            let Self { from, to, .. } = self;
            ebbtide_vpc::progress::print(&format!(
                "\n  {from} → {to}, {family} {transport}: {state}, {taken}"
            ));
            if let Err(error) = &verdict {
                ebbtide_vpc::progress::print(&format!("\n    {error:#}"));
                for packet in seen {
                    ebbtide_vpc::progress::print(&format!("\n    {packet}"));
                }
            }
        }
        verdict
    }

    fn ask(&self, lab: &Lab, family: Family, transport: Transport) -> Result<Duration> {
        let server = self.server[index(family)];
        let source = self.source.map(|source| source[index(family)]);
        let protocol = match transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Icmp => {
                let once = || ping(&self.client, source, server.ip(), self.patience);
                return Ok(once()?.min(once()?).min(once()?));
            }
        };
        let mut client = Client::new(&self.client, protocol).timeout(self.patience);
        if let Some(source) = source {
            client = client.from_ip(source);
        }
        let answer = client.ask(server)?;
        let right = match &self.seen_as {
            SeenAs::Itself => answer.seen_as == answer.local,
            SeenAs::Outside if family == Family::V4 => answer.seen_as.ip() == Plan::NAT,
            SeenAs::Outside => answer.seen_as == answer.local,
            SeenAs::Node(node) => lab
                .vpc
                .plan
                .node(node)
                .with_context(|| format!("the plan has no node {node}"))?
                .nics
                .iter()
                .any(|nic| nic.primary(family) == answer.seen_as.ip()),
        };
        if !right {
            bail!(
                "the server saw {}, the client is {}; it must be seen as {:?}",
                answer.seen_as,
                answer.local,
                self.seen_as
            );
        }
        Ok(answer.latency)
    }
}

/// Whether it is the address of a cloud's metadata service.
fn is_metadata(address: IpAddr) -> bool {
    address == AWS_V6
        || Cloud::ALL
            .map(|cloud| cloud.address().ip())
            .contains(&address)
}

/// Returns a family's index in a pair.
fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// Returns the distinct paths of exchanges.
pub(super) fn paths(exchanges: &[Measurement]) -> String {
    let mut paths: Vec<&str> = Vec::new();
    for exchange in exchanges {
        if !paths.contains(&exchange.path.as_str()) {
            paths.push(&exchange.path);
        }
    }
    paths.join("\n")
}

fn median(exchanges: &[Measurement]) -> Option<u64> {
    let mut latencies: Vec<u64> = exchanges
        .iter()
        .filter_map(|exchange| exchange.latency_us)
        .collect();
    latencies.sort_unstable();
    latencies.get(latencies.len() / 2).copied()
}
