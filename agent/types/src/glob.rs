//! Matches names against patterns: `*` (any text), `?` (one character), `[a-c]` and `[^a-c]` (one of a class).

use crate::is_name;

/// Whether `text` has a wildcard.
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Whether `text` is a name, or a pattern that some name can match.
pub fn is_name_or_glob(text: &str) -> bool {
    if !is_glob(text) {
        return is_name(text);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._*?[]^".contains(c);
    text.len() <= 253 && text.chars().all(allowed) && classes_are_closed(text)
}

fn classes_are_closed(text: &str) -> bool {
    let mut rest = text;
    while let Some(start) = rest.find(['[', ']']) {
        let Some((_, after)) = class(&rest[start..]) else {
            return false;
        };
        rest = after;
    }
    true
}

/// Splits off the class that `pattern` begins with: its content, and the rest of the pattern.
fn class(pattern: &str) -> Option<(&str, &str)> {
    let (inside, after) = pattern.strip_prefix('[')?.split_once(']')?;
    let plain = inside.trim_start_matches('^');
    (!plain.is_empty() && !inside.contains('[')).then_some((inside, after))
}

/// Whether the whole of `name` matches `pattern`. Malformed patterns match nothing.
///
/// Linear in the name for each `*`: on a mismatch only the last `*` takes one more character.
///
/// # Examples
///
/// ```
/// use ebbtide_types::glob::fits;
///
/// assert!(fits("ens*", "ens5"));
/// assert!(fits("br-[0-9a-f]*", "br-4e1f0c"));
/// assert!(!fits("ens?", "ens10"));
/// ```
pub fn fits(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    let mut retry: Option<(&str, &str)> = None;
    loop {
        if let Some(after) = pattern.strip_prefix('*') {
            retry = Some((after, name));
            pattern = after;
            continue;
        }
        let Some(first) = name.chars().next() else {
            return pattern.is_empty();
        };
        let step = one(pattern, first).map(|after| (after, &name[first.len_utf8()..]));
        match (step, retry) {
            (Some(next), _) => (pattern, name) = next,
            (None, Some((after, from))) => {
                let Some(skipped) = from.chars().next() else {
                    return false;
                };
                let from = &from[skipped.len_utf8()..];
                retry = Some((after, from));
                (pattern, name) = (after, from);
            }
            (None, None) => return false,
        }
    }
}

/// Returns the pattern after its first element, if that matches `c`.
fn one(pattern: &str, c: char) -> Option<&str> {
    let first = pattern.chars().next()?;
    match first {
        '?' => Some(&pattern[1..]),
        '[' => {
            let (inside, after) = class(pattern)?;
            let (negated, set) = match inside.strip_prefix('^') {
                Some(set) => (true, set),
                None => (false, inside),
            };
            (in_class(set, c) != negated).then_some(after)
        }
        plain => (plain == c).then(|| &pattern[plain.len_utf8()..]),
    }
}

fn in_class(set: &str, c: char) -> bool {
    let chars: Vec<char> = set.chars().collect();
    let mut at = 0;
    while let Some(&low) = chars.get(at) {
        match (chars.get(at + 1), chars.get(at + 2)) {
            (Some('-'), Some(&high)) => {
                if (low..=high).contains(&c) {
                    return true;
                }
                at += 3;
            }
            _ => {
                if low == c {
                    return true;
                }
                at += 1;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_a_whole_name() {
        for (pattern, name, expected) in [
            ("worker", "worker", true),
            ("worker", "worker1", false),
            ("worker*", "worker", true),
            ("*-v4", "worker1-v4", true),
            ("*-v4", "worker1-v4-v6", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("worker?-v4", "worker1-v4", true),
            ("worker?-v4", "worker10-v4", false),
            ("worker[1-3]", "worker2", true),
            ("worker[1-3]", "worker4", false),
            ("worker[^1-3]", "worker4", true),
            ("worker[135]*", "worker55", true),
            ("*", "", true),
            ("?", "", false),
            ("[", "[", false),
            ("*[ab", "xa", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_that_can_fit_no_name_is_refused() {
        for (text, expected) in [
            ("plain", true),
            ("a*", true),
            ("[a-c]?", true),
            ("", false),
            ("a[", false),
            ("a]", false),
            ("[]", false),
            ("a b*", false),
            ("a/*", false),
        ] {
            assert_eq!(is_name_or_glob(text), expected, "{text:?}");
        }
    }
}
