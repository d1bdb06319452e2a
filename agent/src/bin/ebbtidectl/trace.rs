//! `ebbtidectl trace`: the decisions of Ebbtide's programs, as they are made.

use std::{io::Write as _, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use ebbtide_agent::query::TraceLine;
use ebbtide_plugin::wire::{self, Query, Request, Response, Trace};
use ebbtide_types::printable::printable_json;

use super::{
    agent::{TIMEOUT, parse},
    format::Output,
};

/// The packets that are traced.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// `namespace/name`, `name`, or the start of a container ID.
    pod: String,
    /// The protocol: `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or a number.
    #[arg(long, value_parser = protocol)]
    proto: Option<u8>,
    /// The port, of either side.
    #[arg(long)]
    port: Option<u16>,
    /// The peer's address; with it, packets at the NICs are shown too, before the Service proxy translates them.
    #[arg(long, value_name = "ADDRESS")]
    peer: Option<IpAddr>,
    /// Exit after this many lines.
    #[arg(long, value_name = "N")]
    count: Option<u32>,
    /// Exit after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    duration: u32,
}

impl Options {
    pub(super) fn query(&self) -> Query {
        Query::Trace(Trace {
            pod: self.pod.clone(),
            protocol: self.proto,
            port: self.port,
            peer: self.peer,
            count: self.count,
            seconds: self.duration,
        })
    }
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        "sctp" => Ok(132),
        number => number
            .parse()
            .map_err(|_| "one of tcp, udp, icmp, icmpv6, sctp, or a number".to_owned()),
    }
}

/// Prints the agent's lines until the trace ends.
pub(super) fn run(options: &Options, socket: &Path, output: Output) -> anyhow::Result<()> {
    let asking = || {
        format!(
            "ask the agent at {} (is ebbtide-agent running, and are you root?)",
            socket.display()
        )
    };
    let mut stream = wire::connect(socket).with_context(asking)?;
    let timeout = Duration::from_secs(options.duration.into()) + TIMEOUT;
    stream.set_read_timeout(Some(timeout))?;
    wire::send(&mut stream, &Request::Query(options.query())).with_context(asking)?;
    loop {
        let answer: Response = match wire::receive(&mut stream) {
            Ok(answer) => answer,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                bail!("the agent was stopped")
            }
            Err(e) => return Err(e).with_context(asking),
        };
        if answer.exit != 0 {
            bail!("{}", answer.output);
        }
        if answer.output.is_empty() {
            return Ok(());
        }
        let text = match output {
            Output::Json => printable_json(&answer.output),
            Output::Text => text(&parse(&answer.output)?),
        };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
            // Nobody reads any more; the agent notices that the connection is closed.
            return Ok(());
        }
    }
}

fn text(line: &TraceLine) -> String {
    let TraceLine {
        time,
        program,
        interface,
        protocol,
        source,
        destination,
        length,
        mark_before,
        mark_after,
        verdict,
        reason,
    } = line;
    let mark = if mark_before == mark_after {
        format!("mark {mark_after:#x}")
    } else {
        format!("mark {mark_before:#x} -> {mark_after:#x}")
    };
    format!(
        "{time:10.6} {program} {interface}: {protocol} {source} > {destination}, {length} bytes, \
         {mark}, {verdict}: {reason}"
    )
}
