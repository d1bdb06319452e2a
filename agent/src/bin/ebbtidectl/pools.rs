//! `ebbtidectl pools`: the pools, and how full they are.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use ebbtide_agent::query::PoolLine;

pub(super) fn show(lines: Vec<PoolLine>) -> String {
    let list = |names: Vec<String>| {
        if names.is_empty() {
            "any".to_owned()
        } else {
            names.join(", ")
        }
    };
    let mark = |line: &PoolLine| match (line.default, line.disabled) {
        (_, true) => "disabled",
        (true, false) => "default",
        (false, false) => "by name",
    };
    if lines.is_empty() {
        return "no pool is declared; declare a SpiderIPPool\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "POOL", "SUBNET", "", "USED", "COOLDOWN", "FREE", "TOTAL", "RESERVED", "FOR", "NODES",
        "NETWORKS",
    ]);
    let held: Vec<String> = lines.iter().flat_map(held).collect();
    let derived: Vec<String> = lines.iter().filter_map(derived).collect();
    let asked_back: Vec<String> = lines.iter().filter_map(asked_back).collect();
    table.add_rows(lines.into_iter().map(|line| {
        let (bar, mark) = (bar(line.used, line.in_cooldown, line.total), mark(&line));
        [
            line.name,
            line.subnet,
            bar,
            count(line.used),
            count(line.in_cooldown),
            count(line.free),
            count(line.total),
            count(line.reserved),
            mark.to_owned(),
            list(line.nodes),
            list(line.networks),
        ]
    }));
    for column in table.column_iter_mut().skip(3).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let [derived, asked_back, held] = [derived, asked_back, held].map(|lines| lines.concat());
    format!("{}\n{derived}{asked_back}{held}", table.trim_fmt())
}

/// Returns a line for a pool that nobody declared.
fn derived(line: &PoolLine) -> Option<String> {
    let source = line.source.as_ref()?;
    Some(format!(
        "{} is what the cloud has assigned: {source}\n",
        line.name
    ))
}

/// Returns a line for a pool whose addresses are asked back.
fn asked_back(line: &PoolLine) -> Option<String> {
    let asked_back = line.asked_back;
    (asked_back > 0).then(|| {
        format!(
            "{} addresses of {} are asked back by the cloud controller: nobody gets them\n",
            count(asked_back),
            line.name
        )
    })
}

/// Returns a line for each address that a pool withholds, up to a limit.
fn held(line: &PoolLine) -> Vec<String> {
    const SHOWN: usize = 20;
    let mut lines: Vec<String> = line
        .held
        .iter()
        .take(SHOWN)
        .map(|held| format!("{} of {} is held: {}\n", held.address, line.name, held.why))
        .collect();
    if line.held.len() > SHOWN {
        let more = line.held.len() - SHOWN;
        lines.push(format!("{more} more of {} are held\n", line.name));
    }
    lines
}

/// Formats a number readably: a /64 has 1.8e19 addresses, and nobody needs all digits.
fn count(number: u128) -> String {
    match number {
        0..100_000_000 => number.to_string(),
        _ => format!("{:.1e}", number as f64),
    }
}

/// Draws used, cooling down and free addresses as a bar. A part that is not empty has at least one cell.
fn bar(used: u128, in_cooldown: u128, total: u128) -> String {
    const WIDTH: u128 = 20;
    // A pool of 2^128 addresses: the multiplication must not overflow.
    let cells = |count: u128| match (count, total) {
        (0, _) | (_, 0) => 0,
        _ => (count.saturating_mul(WIDTH) / total).clamp(1, WIDTH),
    };
    let used_cells = cells(used);
    let resting_cells = cells(in_cooldown).min(WIDTH - used_cells);
    let part = |symbol: &str, count: u128| symbol.repeat(usize::try_from(count).unwrap_or(0));
    let free = WIDTH - used_cells - resting_cells;
    format!(
        "{}{}{}",
        part("#", used_cells),
        part("~", resting_cells),
        part(".", free)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_counting_are_short() {
        for (number, expected) in [
            (0, "0"),
            (99_999_999, "99999999"),
            (100_000_000, "1.0e8"),
            ((1 << 64) - 1, "1.8e19"),
            (u128::MAX, "3.4e38"),
        ] {
            assert_eq!(count(number), expected);
        }
    }

    #[test]
    fn a_bar_shows_whatever_is_there_at_all() {
        for (used, in_cooldown, total, expected) in [
            (0, 0, 10, "...................."),
            (5, 0, 10, "##########.........."),
            (5, 5, 10, "##########~~~~~~~~~~"),
            (1, 1, 1 << 64, "#~.................."),
            (11, 0, 10, "####################"),
            (0, 0, 0, "...................."),
            (10, 1, u128::MAX, "#~.................."),
        ] {
            assert_eq!(
                bar(used, in_cooldown, total),
                expected,
                "{used} {in_cooldown} {total}"
            );
        }
    }
}
