//! Finds in the output of a failed test why it failed.

/// How much of a long reason is kept, in characters: of its begin, which says what was done, and of its end, which says what
/// was the cause.
const BEGIN: usize = 150;
const END: usize = 350;

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
    let place = |number: usize| text.char_indices().nth(number).map(|(place, _)| place);
    let length = text.chars().count();
    match (place(BEGIN), length.checked_sub(END).and_then(place)) {
        (Some(begin), Some(end)) if begin < end => {
            Some(format!("{} ... {}", text.get(..begin)?, text.get(end..)?))
        }
        _ => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_and_a_panic_with_its_message() {
        let long = format!("Error: {}é{}", "x".repeat(BEGIN), "y".repeat(END));
        let short = format!("{} ... {}", "x".repeat(BEGIN), "y".repeat(END));
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
