//! `ebbtidectl cloud`: what the cloud's metadata service tells of the node's NICs.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use ebbtide_agent::cloud::{AskedBackLine, BlockLine, BlockState, CloudNicLine, CloudReport};
use ebbtide_plugin::wire::Query;

use super::format::table;

/// Options of `ebbtidectl cloud`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Read the metadata service now, then show what it tells.
    Refresh,
}

impl Options {
    pub(super) fn query(&self) -> Query {
        Query::Cloud {
            refresh: matches!(self.action, Some(Action::Refresh)),
        }
    }
}

/// Formats the report.
pub(super) fn show(report: &CloudReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{name:<10} {value}");
    };
    match (&report.cloud, &report.why_none) {
        (Some(cloud), _) => line("cloud", cloud),
        (None, Some(why)) => line("cloud", &format!("none: {why}")),
        (None, None) => line("cloud", "none"),
    }
    if let Some(endpoint) = &report.endpoint {
        line("metadata", endpoint);
    }
    match report.wanted.as_slice() {
        [] => line("wanted", "by no network: the metadata service is not asked"),
        links => line("wanted", &format!("by networks on {}", links.join(", "))),
    }
    line(
        "last read",
        &report.last_read.map_or("never".to_owned(), ago),
    );
    if let Some(error) = &report.error {
        line(
            "failing",
            &format!("{error} ({} in a row)", report.failures),
        );
    }
    for left_out in &report.left_out {
        line("left out", left_out);
    }
    if let Some(asked_back) = &report.asked_back {
        let AskedBackLine {
            asked,
            surrendered,
            kept,
            unknown,
        } = asked_back;
        for (name, addresses, what) in [
            ("asked back", asked, "no new pod gets them"),
            (
                "given back",
                surrendered,
                "no pod has them; the cloud controller may take them",
            ),
            (
                "kept",
                kept,
                "were asked back; nobody gets them for 20 minutes",
            ),
        ] {
            if !addresses.is_empty() {
                line(name, &format!("{addresses} ({what})"));
            }
        }
        if let Some(unknown) = unknown {
            line("", &format!("not known what is asked back now: {unknown}"));
        }
    }
    if report.nics.is_empty() {
        return text;
    }
    text.push('\n');
    let head = ["NIC", "LINK", "ASSIGNED", "STATE", "PODS", "WHY"];
    text.push_str(&table(head, report.nics.iter().flat_map(rows)));
    text
}

fn rows(nic: &CloudNicLine) -> Vec<[String; 6]> {
    let id = if nic.id.is_empty() {
        nic.mac.to_string()
    } else {
        format!("{} ({})", nic.id, nic.mac)
    };
    let link = nic.link.clone().unwrap_or_else(|| "-".to_owned());
    let own = nic.primary.iter().map(|address| {
        [
            address.to_string(),
            "primary".to_owned(),
            String::new(),
            "the node's own".to_owned(),
        ]
    });
    let blocks = nic.blocks.iter().map(|block| {
        [
            shown(block),
            match block.state {
                BlockState::Usable => "usable".to_owned(),
                BlockState::Held => "held".to_owned(),
                BlockState::Waiting => "waiting".to_owned(),
            },
            block.pods.join(", "),
            block.why.clone(),
        ]
    });
    own.chain(blocks)
        .map(|[assigned, state, pods, why]| [id.clone(), link.clone(), assigned, state, pods, why])
        .collect()
}

/// Returns an address without its length, and a prefix with it.
fn shown(block: &BlockLine) -> String {
    match block.block.prefix_len() == block.block.max_prefix_len() {
        true => block.block.addr().to_string(),
        false => block.block.to_string(),
    }
}

fn ago(unix: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(unix);
    let seconds = SystemTime::now()
        .duration_since(at)
        .map_or(0, |since| since.as_secs());
    format!("{seconds} s ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_may_not_have_is_shown_with_the_reason() {
        let report = CloudReport {
            cloud: Some("AWS".into()),
            why_none: None,
            endpoint: Some("http://169.254.169.254".into()),
            wanted: vec!["ens6".into()],
            last_read: None,
            error: Some("GET failed".into()),
            failures: 3,
            nics: vec![CloudNicLine {
                id: "eni-6".into(),
                mac: "02:00:00:00:00:06".to_owned().try_into().unwrap(),
                link: Some("ens6".into()),
                is_gone: false,
                primary: vec!["10.0.1.4".parse().unwrap()],
                subnets: Vec::new(),
                gateways: Vec::new(),
                blocks: vec![
                    BlockLine {
                        block: "10.0.1.5/32".parse().unwrap(),
                        state: BlockState::Held,
                        why: "not told for 40 s".into(),
                        pods: vec!["default/web (10.0.1.5)".into()],
                    },
                    BlockLine {
                        block: "10.0.1.16/28".parse().unwrap(),
                        state: BlockState::Usable,
                        why: String::new(),
                        pods: Vec::new(),
                    },
                ],
            }],
            left_out: Vec::new(),
            asked_back: Some(AskedBackLine {
                asked: "10.0.1.16-10.0.1.18".into(),
                surrendered: "10.0.1.17".into(),
                ..AskedBackLine::default()
            }),
        };
        let text = show(&report);
        for part in [
            "cloud      AWS",
            "last read  never",
            "GET failed (3 in a row)",
            "default/web (10.0.1.5)",
            "10.0.1.16/28",
            "not told for 40 s",
            "the node's own",
            "asked back 10.0.1.16-10.0.1.18 (no new pod gets them)",
            "given back 10.0.1.17 (no pod has them",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        assert!(!text.contains("10.0.1.5/32"), "{text}");
        assert!(!text.contains("\nkept"), "{text}");
    }
}
