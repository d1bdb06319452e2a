//! One line of the demonstration: from here to there, by every family and protocol, and whether
//! it went the way it should.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    lab::Lab,
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

/// What is sent.
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
    /// Everything.
    pub const ALL: &[Self] = &[Self::Tcp, Self::Udp, Self::Icmp];
    /// What has ports, and thus passes through Services and load balancers.
    pub const WITH_PORTS: &[Self] = &[Self::Tcp, Self::Udp];

    /// Whether a packet is of this kind.
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

/// As whom the server must see the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenAs {
    /// By its own address and port.
    Itself,
    /// By an address of this node: masqueraded there.
    Node(String),
    /// From outside the VPC: IPv4 by the NAT gateway's address, IPv6 by its own.
    Outside,
}

/// Traffic and what must become of it.
#[derive(Clone, Debug)]
pub struct Check {
    /// The row of the traffic table.
    pub traffic: &'static str,
    /// Who asks.
    pub from: String,
    /// Who is asked.
    pub to: String,
    /// Where the client is.
    pub client: Netns,
    /// The client's address, if it must not be left to the kernel, by family.
    pub source: Option<[IpAddr; 2]>,
    /// What the client asks, by family.
    pub server: [SocketAddr; 2],
    /// Ports that belong to the serving side anywhere on the way.
    pub serving: Vec<u16>,
    /// What is sent.
    pub transports: &'static [Transport],
    /// How long a missing answer is waited for.
    pub patience: Duration,
    /// As whom the server must see the client.
    pub seen_as: SeenAs,
    /// The way of the request.
    pub path: Path,
    /// The way of the reply; the same way back if `None`.
    pub back: Option<Path>,
}

/// One exchange.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// What was sent.
    pub transport: Transport,
    /// The way it took.
    pub path: String,
    /// Quickest round trip, in microseconds.
    pub latency_us: Option<u64>,
    /// What was wrong.
    pub failure: Option<String>,
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The row of the traffic table.
    pub traffic: String,
    /// Who asks.
    pub from: String,
    /// Who is asked.
    pub to: String,
    /// The ways taken; more than one only if something is wrong.
    pub path: String,
    /// Median of the exchanges, in microseconds.
    pub latency_us: Option<u64>,
    /// Whether all went as it must.
    pub ok: bool,
    /// Whether "as it must" means that nothing is answered.
    pub expected_failure: bool,
    /// What was wrong, or a remark.
    pub note: String,
    /// The single exchanges.
    pub exchanges: Vec<Measurement>,
}

impl Check {
    /// Sends everything.
    #[must_use]
    pub fn run(&self, lab: &Lab, verbose: bool) -> Line {
        let mut exchanges = Vec::new();
        for family in Family::BOTH {
            for transport in self.transports {
                exchanges.push(self.measure(lab, family, *transport, verbose));
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
        // The last packets of the exchange before may come late.
        seen.retain(|packet| Family::of(packet.source) == family && transport.carries(packet));
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

/// Where a family's value is in a pair.
fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The different ways that exchanges took.
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
