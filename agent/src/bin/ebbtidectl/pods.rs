//! `ebbtidectl pods`: the interfaces of this node's pods.

use ebbtide_agent::query::PodLine;

use super::format::table;

const HEAD: [&str; 7] = [
    "POD",
    "INTERFACE",
    "ADDRESSES",
    "NETWORK",
    "NIC",
    "VETH",
    "CONTAINER",
];

/// Limits of bandwidth have a column where a pod has one.
pub(super) fn show(lines: Vec<PodLine>) -> String {
    if lines.iter().all(|line| line.bandwidth.is_none()) {
        return table(HEAD, lines.into_iter().map(row));
    }
    let [pod, interface, addresses, network, nic, veth, container] = HEAD;
    table(
        [
            pod,
            interface,
            addresses,
            network,
            nic,
            veth,
            container,
            "BANDWIDTH",
        ],
        lines.into_iter().map(|line| {
            let bandwidth = line.bandwidth.map(|limit| limit.to_string());
            let [pod, interface, addresses, network, nic, veth, container] = row(line);
            let bandwidth = bandwidth.unwrap_or_default();
            [
                pod, interface, addresses, network, nic, veth, container, bandwidth,
            ]
        }),
    )
}

fn row(line: PodLine) -> [String; 7] {
    [
        line.pod,
        line.interface,
        line.addresses.join(", "),
        line.network,
        format!("{} ({})", line.master, line.mode),
        line.host_interface.unwrap_or_default(),
        line.container_id.chars().take(12).collect(),
    ]
}
