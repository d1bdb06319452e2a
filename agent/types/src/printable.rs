//! Escapes text from outside for logs and terminals: names are chosen by whoever makes a pod or a network.

use std::borrow::Cow;

/// Whether a character has an effect instead of being visible: it moves the cursor, hides or reorders what follows, or
/// ends a line.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            // Soft hyphen, Arabic letter mark, zero widths and marks of direction, lines' and paragraphs' ends, embeddings
            // and isolates, invisible operators, byte order mark, annotations, tags.
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Escapes unprintable characters as Rust does (`\n`, `\u{1b}`).
///
/// # Examples
///
/// ```
/// use ebbtide_types::printable::printable;
///
/// assert_eq!(printable("web\u{1b}[2J"), "web\\u{1b}[2J");
/// assert_eq!(printable("web\n"), "web\\n");
/// ```
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_unprintable)
}

/// As [`printable`], but keeps line ends.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && is_unprintable(c))
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut whole = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_bad(c) {
            true => whole.extend(c.escape_default()),
            false => whole.push(c),
        }
    }
    Cow::Owned(whole)
}

/// Returns the first `most` characters of a text, followed by `...` if there are more.
#[must_use]
pub fn truncated(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]).into(),
        None => text.into(),
    }
}

/// Escapes unprintable characters in a JSON text as JSON does. Blanks and line ends between its parts stay.
#[must_use]
pub fn printable_json(text: &str) -> String {
    let mut whole = String::with_capacity(text.len());
    for c in text.chars() {
        // JSON has characters below 0x20 only between its parts.
        if c >= ' ' && is_unprintable(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                whole.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            whole.push(c);
        }
    }
    whole
}

/// Escapes unprintable characters in a JSON text, so that its strings are as [`printable`] makes them once they are
/// parsed.
#[must_use]
pub fn printable_in_json(text: &str) -> String {
    let mut whole = String::with_capacity(text.len());
    let mut rest = text.chars();
    // JSON's own escapes, and its blanks between parts, stay; Rust's escapes get their backslash escaped.
    let say = |c: char, whole: &mut String| {
        for c in c.escape_default() {
            whole.extend((c == '\\').then_some('\\').into_iter().chain([c]));
        }
    };
    while let Some(c) = rest.next() {
        if c != '\\' {
            match c >= ' ' && is_unprintable(c) {
                true => say(c, &mut whole),
                false => whole.push(c),
            }
            continue;
        }
        let kind = rest.next().unwrap_or('\\');
        let code = rest.as_str().get(..4).filter(|_| kind == 'u');
        let meant = match kind {
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            _ => code
                .and_then(|code| u32::from_str_radix(code, 16).ok())
                .and_then(char::from_u32),
        };
        match meant.filter(|meant| is_unprintable(*meant)) {
            Some(meant) => {
                say(meant, &mut whole);
                if kind == 'u' {
                    rest = rest.as_str().get(4..).unwrap_or_default().chars();
                }
            }
            None => whole.extend(['\\', kind]),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_or_hides_is_written_out_and_all_else_stays() {
        for (text, line, lines) in [
            ("default/web-0", "default/web-0", "default/web-0"),
            ("Größe, 大小, …", "Größe, 大小, …", "Größe, 大小, …"),
            ("a\nerror: b", r"a\nerror: b", "a\nerror: b"),
            (
                "\x1b[2J\r\t\x07",
                r"\u{1b}[2J\r\t\u{7}",
                r"\u{1b}[2J\r\t\u{7}",
            ),
            ("a\u{9b}1mb", r"a\u{9b}1mb", r"a\u{9b}1mb"),
            (
                "a\u{202e}b\u{200b}\u{2028}",
                r"a\u{202e}b\u{200b}\u{2028}",
                r"a\u{202e}b\u{200b}\u{2028}",
            ),
        ] {
            assert_eq!(printable(text), line);
            assert_eq!(printable_lines(text), lines);
        }
    }

    #[test]
    fn of_a_long_text_the_front_is_shown() {
        for (text, shown) in [("", ""), ("äöü", "äöü"), ("äöüß", "äöü...")] {
            assert_eq!(truncated(text, 3), shown);
        }
    }

    #[test]
    fn texts_in_json_are_read_as_they_are_to_be_shown() {
        for text in [
            "a\nb\r\t\x08\x0c\x1b[2J\x00",
            "C:\\n \\u001b \\\\n \"quoted\"",
            "\u{9b}\u{202e}\u{e0041}\u{7f}",
            "Größe \u{1f600}",
        ] {
            let value = serde_json::json!([text, {text: u64::MAX}]);
            for json in [
                serde_json::to_string(&value).unwrap(),
                serde_json::to_string_pretty(&value).unwrap(),
            ] {
                let shown = printable_in_json(&json);
                let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
                assert_eq!(read[0], *printable(text), "{shown}");
            }
        }
        let read: String =
            serde_json::from_str(&printable_in_json(r#""\u001b\u009b\u00e9""#)).unwrap();
        assert_eq!(read, r"\u{1b}\u{9b}é");
    }

    #[test]
    fn json_stays_json_that_says_the_same() {
        let value = serde_json::json!({"a\u{9b}": ["\u{202e}x\n\x1b", "\u{e0041}"]});
        let shown = printable_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            !shown.contains(|c: char| c != '\n' && is_unprintable(c)),
            "{shown}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            value
        );
    }
}
