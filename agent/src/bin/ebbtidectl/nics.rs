//! `ebbtidectl nics`: the node's links.

use ebbtide_agent::query::NicLine;

use super::format::table;

/// Formats the links as a table.
pub(super) fn show(lines: Vec<NicLine>) -> String {
    let head = [
        "LINK",
        "KIND",
        "ADDRESSES",
        "TAKEN FOR",
        "PODS",
        "TABLE",
        "MARK",
        "WHY",
    ];
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    table(
        head,
        lines.into_iter().map(|line| {
            let addresses: Vec<String> = line.addresses.iter().map(ToString::to_string).collect();
            let strict = if line.strict {
                "; filters strictly"
            } else {
                ""
            };
            [
                line.name,
                line.kind,
                addresses.join(", "),
                match line.taken_for.as_str() {
                    "nic" => "NIC".to_owned(),
                    "node" => "node's address".to_owned(),
                    _ => "others'".to_owned(),
                },
                line.pods.to_string(),
                or_none(line.table.map(|table| table.to_string())),
                or_none(line.mark.map(|mark| format!("{mark:#x}"))),
                format!("{}{strict}", line.why),
            ]
        }),
    )
}
