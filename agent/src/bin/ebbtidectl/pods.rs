//! `ebbtidectl pods`: the interfaces of this node's pods.

use ebbtide_agent::query::PodLine;

use super::format::table;

pub(super) fn show(lines: Vec<PodLine>) -> String {
    table(
        [
            "POD",
            "INTERFACE",
            "ADDRESSES",
            "NETWORK",
            "NIC",
            "VETH",
            "BANDWIDTH",
            "CONTAINER",
        ],
        lines.into_iter().map(|line| {
            [
                line.pod,
                line.interface,
                line.addresses.join(", "),
                line.network,
                format!("{} ({})", line.master, line.mode),
                line.host_interface.unwrap_or_default(),
                line.bandwidth
                    .map_or_else(String::new, |limit| limit.to_string()),
                line.container_id.chars().take(12).collect(),
            ]
        }),
    )
}
