//! `kubectl ebbtide page --cluster`: a page of all nodes, served on the person's own machine.
//!
//! Nothing of it is in the cluster: the API server is asked as kubectl asks it, with the rights of who looks, and only
//! while a page is open.

mod ask;
mod rows;
mod share;
mod view;

use std::{net::Ipv4Addr, process::ExitCode, sync::Arc};

use anyhow::{Context as _, bail};
use ebbtide_agent::{
    http,
    page::{self, PageLink},
};
use tokio::net::TcpListener;

use self::{
    ask::Known,
    share::{About, Shared},
};
use super::{Cli, cluster::Cluster};
use crate::{format::Output, page::Options};

/// Serves until it is interrupted.
pub(super) fn run(cli: &Cli, options: &Options, output: Output) -> anyhow::Result<ExitCode> {
    if !cli.node.is_empty() || cli.pod.is_some() {
        bail!("--cluster is of all nodes: leave out --node and --pod, or --cluster");
    }
    let cluster = Cluster::of(cli);
    if options.once {
        return once(cluster);
    }
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build();
    runtime.context("start a runtime")?.block_on(async {
        let place = (Ipv4Addr::LOCALHOST, options.port.unwrap_or(0));
        let listener = TcpListener::bind(place).await;
        let listener = listener.with_context(|| format!("listen at {}:{}", place.0, place.1))?;
        let link = PageLink {
            address: listener.local_addr().context("know the address")?,
            token: page::token().context("get random bytes for the page's token")?,
        };
        let about = About {
            cluster: cluster.name(),
            command: command(cli),
        };
        let shared = Arc::new(Shared::of(Known::of(cluster), about));
        let router = page::of_cluster(link.token.clone(), move || Arc::clone(&shared).get());
        let text = match output {
            Output::Json => serde_json::to_string(&link).context("write the address")?,
            Output::Text => format!("{}\n(all nodes; until this is interrupted)", link.url()),
        };
        super::show(&format!("{text}\n"))?;
        http::answer_all(&listener, Arc::new(router)).await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints what the page would show.
fn once(cluster: Cluster) -> anyhow::Result<ExitCode> {
    let mut known = Known::of(cluster);
    known.ask();
    let faults = known.faults();
    for fault in &faults {
        super::say(&format!("{}: {}", fault.what, fault.why));
    }
    let text = serde_json::to_string_pretty(&known.view()).context("write the view")?;
    super::show(&format!("{text}\n"))?;
    Ok(match faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Returns how the same cluster's nodes are asked, for people to copy.
fn command(cli: &Cli) -> String {
    let options = [
        ("--kubeconfig", cli.kubeconfig.as_deref()),
        ("--context", cli.context.as_deref()),
        (
            "--namespace",
            Some(cli.namespace.as_str()).filter(|it| *it != "ebbtide-system"),
        ),
    ];
    let options = options
        .into_iter()
        .filter_map(|(option, value)| Some(format!(" {option} {}", quoted(value?))));
    format!("kubectl ebbtide{}", options.collect::<String>())
}

/// Returns a word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+=,%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_command_names_the_same_cluster() {
        for (words, expected) in [
            ("page", "kubectl ebbtide"),
            ("--context prod page", "kubectl ebbtide --context prod"),
            (
                "-n net --kubeconfig /tmp/it's page",
                r"kubectl ebbtide --kubeconfig '/tmp/it'\''s' --namespace net",
            ),
        ] {
            let words = ["kubectl-ebbtide"].into_iter().chain(words.split(' '));
            assert_eq!(command(&Cli::parse_from(words)), expected);
        }
    }

    #[test]
    fn a_page_of_all_nodes_is_of_no_node() {
        let words = "kubectl-ebbtide --node n1 page --cluster";
        let cli = Cli::parse_from(words.split(' '));
        let options = Options {
            port: None,
            cluster: true,
            once: true,
        };
        let error = run(&cli, &options, Output::Text).unwrap_err().to_string();
        assert!(error.contains("--node"), "{error}");
    }
}
