//! `ebbtidectl status`: the agent, its problems, and what it tries again.

use ebbtide_agent::query::{FailingItem, Status};

use super::format::{ago, table, unix_now};

pub(super) fn show(status: &Status) -> String {
    let mut text = format!(
        "node {}: agent {} with {} interface(s)\n",
        status.node, status.version, status.interfaces
    );
    if status.not_reconciled > 0 {
        let count = status.not_reconciled;
        text.push_str(&format!("{count} of these not reconciled yet\n"));
    }
    for problem in &status.problems {
        text.push_str("problem: ");
        text.push_str(problem);
        text.push('\n');
    }
    if !status.failing.is_empty() {
        text.push_str("failing, and retried:\n");
        let now = unix_now();
        let head = ["ITEM", "SINCE", "ATTEMPTS", "NEXT", "LAST ERROR"];
        text.push_str(&table(
            head,
            status.failing.iter().map(|item| failing(item, now)),
        ));
    }
    text
}

fn failing(item: &FailingItem, now: u64) -> [String; 5] {
    [
        item.key.clone(),
        ago(item.since),
        item.attempts.to_string(),
        match item.next_try {
            Some(next) => format!("in {} s", next.saturating_sub(now)),
            None => "now".to_owned(),
        },
        item.last_error.clone(),
    ]
}
