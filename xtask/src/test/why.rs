//! Finds in the output of a failed test why it failed.

/// The longest reason, in characters.
const MOST: usize = 400;

/// Returns the error with its causes, or the panic's message, in one line; `None` if there is neither.
///
/// `lines` begin with the bar that marks a test's output.
pub(super) fn why(lines: &[String]) -> Option<String> {
    let mut lines = lines
        .iter()
        .map(|line| line.trim_start().strip_prefix('|').unwrap_or(line).trim());
    let first = lines.find_map(|line| {
        let error = line.strip_prefix("Error: ");
        error.or_else(|| line.contains("' panicked at ").then_some(""))
    })?;
    let rest = lines.take_while(|line| {
        !line.starts_with("Stack backtrace:")
            && !line.starts_with("stack backtrace:")
            && !line.starts_with("note: run with")
            && !line.starts_with("failures:")
    });
    let words: Vec<&str> = std::iter::once(first)
        .chain(rest)
        .flat_map(str::split_whitespace)
        .collect();
    let text = words.join(" ");
    match text.char_indices().nth(MOST) {
        Some((end, _)) => Some(format!("{} ...", text.get(..end)?)),
        None => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_and_a_panic_with_its_message() {
        let long = format!("Error: {}", "x".repeat(MOST + 9));
        let short = format!("{} ...", "x".repeat(MOST));
        for (text, expected) in [
            ("running 1 test\ntest a ... ok", None),
            (
                "Error: no route\n\nCaused by:\n    0: ask\n    1: errno 3\n\nStack backtrace:\n   0: f",
                Some("no route Caused by: 0: ask 1: errno 3"),
            ),
            (
                "thread 'a' panicked at tests/a.rs:1:2:\nassertion failed: left\n  left: 1\n right: 2\nnote: run with",
                Some("assertion failed: left left: 1 right: 2"),
            ),
            (
                "thread 'a' panicked at tests/a.rs:1:2:\nboom\nstack backtrace:\n 0: f",
                Some("boom"),
            ),
            (&long, Some(&short)),
        ] {
            let lines: Vec<String> = text.lines().map(|line| format!("    | {line}")).collect();
            assert_eq!(why(&lines).as_deref(), expected, "{text}");
        }
    }
}
