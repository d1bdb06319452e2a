//! What the metadata told an agent, a row for each NIC.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// The titles of the columns.
pub(super) const TITLES: [&str; 6] = [
    "node",
    "told by",
    "NIC",
    "link",
    "the node's own",
    "assigned for pods",
];

/// Returns the rows of one agent's answer to `ebbtidectl cloud`.
pub(super) fn rows(answer: &Value) -> Vec<[String; 6]> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |nic: &Value| {
        let id = match nic["id"].as_str() {
            Some("") | None => text(&nic["mac"]),
            Some(id) => id.to_owned(),
        };
        let primary = nic["primary"].as_array().into_iter().flatten();
        let own: Vec<String> = primary.map(text).collect();
        let blocks = nic["blocks"].as_array().into_iter().flatten();
        let mut assigned: Vec<(String, IpNet)> = blocks
            .filter_map(|block| {
                let net = block["block"].as_str()?.parse().ok()?;
                Some((text(&block["state"]), net))
            })
            .collect();
        assigned.sort();
        [
            text(&answer["node"]),
            text(&answer["cloud"]),
            id,
            text(&nic["link"]),
            own.join("\n"),
            ranges(&assigned).join("\n"),
        ]
    };
    let nics = answer["nics"].as_array().into_iter().flatten();
    nics.map(row).collect()
}

/// Writes blocks, those that follow each other as one range. A state is written that is not `usable`.
fn ranges(blocks: &[(String, IpNet)]) -> Vec<String> {
    let mut ranges: Vec<(&str, IpNet, IpNet)> = Vec::new();
    for (state, block) in blocks {
        match ranges.last_mut() {
            Some((of, _, last)) if of == state && follows(last, block) => *last = *block,
            _ => ranges.push((state, *block, *block)),
        }
    }
    let written = ranges.into_iter().map(|(state, first, last)| {
        let range = match first == last {
            true => shown(&first),
            false => format!("{} - {}", shown(&first), shown(&last)),
        };
        match state {
            "usable" => range,
            state => format!("{range} ({state})"),
        }
    });
    written.collect()
}

/// Whether a block is the next single address after another.
fn follows(before: &IpNet, block: &IpNet) -> bool {
    let is_single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    let next = match before.addr() {
        IpAddr::V4(v4) => u32::from(v4)
            .checked_add(1)
            .map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => u128::from(v6)
            .checked_add(1)
            .map(|bits| IpAddr::V6(bits.into())),
    };
    is_single(before) && is_single(block) && next == Some(block.addr())
}

/// Returns an address without its length, and a prefix with it.
fn shown(block: &IpNet) -> String {
    match block.prefix_len() == block.max_prefix_len() {
        true => block.addr().to_string(),
        false => block.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_follow_each_other_are_a_range() {
        let blocks = [
            ("usable", "10.0.0.4/32"),
            ("usable", "10.0.0.5/32"),
            ("usable", "10.0.0.6/32"),
            ("usable", "10.0.0.9/32"),
            ("usable", "10.0.0.16/28"),
            ("usable", "fd00::9/128"),
            ("waiting", "fd00::a/128"),
        ];
        let blocks = blocks.map(|(state, block)| (state.to_owned(), block.parse().unwrap()));
        assert_eq!(
            ranges(&blocks),
            [
                "10.0.0.4 - 10.0.0.6",
                "10.0.0.9",
                "10.0.0.16/28",
                "fd00::9",
                "fd00::a (waiting)"
            ]
        );
    }
}
