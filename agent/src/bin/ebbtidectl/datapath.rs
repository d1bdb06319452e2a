//! `ebbtidectl datapath`: the programs of each interface, and what they counted.

use ebbtide_agent::query::HookLine;

use super::format::table;

pub(super) fn show(lines: Vec<HookLine>) -> String {
    table(
        [
            "POD",
            "INTERFACE",
            "HOOK",
            "PROGRAM",
            "ATTACHED",
            "SEEN",
            "MARKED",
            "LEARNED",
            "REDIRECTED",
            "PASSED",
            "DROPPED",
            "METADATA",
            "WRONG NIC",
        ],
        lines.into_iter().map(|line| {
            [
                if line.pod.is_empty() {
                    "(the node)".to_owned()
                } else {
                    line.pod
                },
                line.interface,
                line.hook,
                line.program,
                match line.attached {
                    Some(true) => line.by,
                    Some(false) => "NO".to_owned(),
                    None => "?".to_owned(),
                },
                line.seen.to_string(),
                line.marked.to_string(),
                line.learned.to_string(),
                line.redirected.to_string(),
                line.passed.to_string(),
                line.dropped.to_string(),
                line.to_metadata.to_string(),
                line.wrong_nic.to_string(),
            ]
        }),
    )
}
