//! `kubectl ebbtide page`: a node's page, through a port that kubectl forwards.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use ebbtide_agent::page::PageLink;

use super::{Agent, cluster::Cluster};
use crate::{format::Output, page::Options};

/// Forwards until kubectl ends.
pub(super) fn run(
    cluster: &Cluster,
    options: &Options,
    output: Output,
    agents: &[Agent],
) -> anyhow::Result<ExitCode> {
    let [agent] = agents else {
        let nodes: Vec<&str> = agents.iter().map(|agent| agent.node.as_str()).collect();
        bail!(
            "a page is of one node: name it with --node ({}), or a pod of its with --pod",
            nodes.join(", ")
        );
    };
    if !agent.is_running {
        bail!("{}: its agent {} does not run", agent.node, agent.pod);
    }
    let link: PageLink = cluster
        .ebbtidectl(&agent.pod, &["page"])
        .context(agent.node.clone())?;
    let mut forward = cluster.kubectl()?.command();
    forward
        .args(["port-forward", "--address", "127.0.0.1"])
        .args(["-n", &cluster.agents, &agent.pod])
        .arg(ports(options.port.unwrap_or(0), &link));
    let mut running = forward
        .stdout(Stdio::piped())
        .spawn()
        .context("run kubectl (is it in the search path?)")?;
    let lines = BufReader::new(running.stdout.take().context("kubectl's output")?).lines();
    // It says something for each connection, too, and must not wait for a reader.
    for line in lines.map_while(Result::ok) {
        if let Some(address) = forwarded(&line) {
            let link = PageLink {
                address,
                ..link.clone()
            };
            let text = match output {
                Output::Json => serde_json::to_string(&link).context("write the address")?,
                Output::Text => format!(
                    "{}\n(node {}; until this is interrupted)",
                    link.url(),
                    agent.node
                ),
            };
            super::show(&format!("{text}\n"))?;
        }
    }
    let status = running.wait().context("wait for kubectl")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Returns what is forwarded, in kubectl's words. Nothing before the colon stands for a free port.
fn ports(local: u16, link: &PageLink) -> String {
    let there = link.address.port();
    match local {
        0 => format!(":{there}"),
        local => format!("{local}:{there}"),
    }
}

/// Returns where kubectl listens, if this line says so: `Forwarding from 127.0.0.1:40123 -> 19464`.
fn forwarded(line: &str) -> Option<SocketAddr> {
    let rest = line.strip_prefix("Forwarding from ")?;
    let address: SocketAddr = rest.split_whitespace().next()?.parse().ok()?;
    (address.ip() == Ipv4Addr::LOCALHOST).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_what_kubectl_says() {
        for (line, port) in [
            ("Forwarding from 127.0.0.1:40123 -> 19464", Some(40123)),
            ("Forwarding from [::1]:40123 -> 19464", None),
            ("Handling connection for 40123", None),
            ("", None),
        ] {
            assert_eq!(forwarded(line).map(|at| at.port()), port, "{line}");
        }
    }

    #[test]
    fn a_free_port_is_taken_unless_one_is_named() {
        let link = PageLink {
            address: "[::1]:19464".parse().unwrap(),
            token: String::new(),
        };
        assert_eq!(ports(0, &link), ":19464");
        assert_eq!(ports(8080, &link), "8080:19464");
    }
}
