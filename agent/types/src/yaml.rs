//! Reads YAML as `kubectl` does: into JSON values, with limits, so that no text costs much.

mod words;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use serde_saphyr::{Options, budget, options};

pub use words::of_type;

/// The deepest nesting of lists and mappings. The API's objects have at most a dozen levels.
const DEEPEST: usize = 64;

/// The most values of one document, with those that aliases repeat. A pool of 4,096 ranges has 5,000.
const MOST: usize = 250_000;

/// A text that is not YAML or exceeds the limits, or a value that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl From<serde_saphyr::Error> for Error {
    fn from(error: serde_saphyr::Error) -> Self {
        Self(error.render_with_formatter(&words::Words))
    }
}

impl From<serde_saphyr::ser::Error> for Error {
    fn from(error: serde_saphyr::ser::Error) -> Self {
        Self(error.to_string())
    }
}

/// Reads one document, with merges (`<<`) and octal numbers as `010`, as `kubectl` does.
///
/// Only `true` and `false` are booleans here: only a field's type tells whether `n` is a name.
///
/// # Errors
/// If it is not YAML, names a key twice, nests deeper than 64 or has more than 250,000 values.
pub fn read(text: &str) -> Result<Value, Error> {
    let mut options = limits();
    options.strict_booleans = true;
    Ok(serde_saphyr::from_str_with_options(text, options)?)
}

/// Reads one document into a type; an error names the field.
///
/// # Errors
/// As [`read`], and if the document is not of the type: the field's path, and the reason with its line.
pub fn read_fields<T: DeserializeOwned>(text: &str) -> Result<T, (String, String)> {
    let mut at = None;
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, limits(), |source| {
        serde_path_to_error::deserialize(source).map_err(|error| {
            at = Some(error.path().to_string());
            error.into_inner()
        })
    });
    read.map_err(|error| {
        let field = at.unwrap_or_else(|| ".".into());
        (field, error.render_with_formatter(&words::Words))
    })
}

/// Splits a text into its documents, without those that have no content.
///
/// `---` at the start of a line ends a document whatever it is in the middle of (YAML 1.2, 9.1.2), so
/// splitting first is exact, and a syntax error stays in its own document.
///
/// # Examples
///
/// ```
/// use ebbtide_types::yaml;
///
/// let text = "kind: A\n---\n# nothing here\n---\nkind: B\n";
/// let documents = yaml::documents(text);
/// assert_eq!(documents.len(), 2);
/// assert_eq!(yaml::read(&documents[1])?["kind"], "B");
/// # Ok::<(), yaml::Error>(())
/// ```
#[must_use]
pub fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
        let rest = match line.strip_prefix("---") {
            Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t']) => {
                documents.push(String::new());
                rest
            }
            _ => line,
        };
        if let Some(document) = documents.last_mut() {
            document.push_str(rest);
            document.push('\n');
        }
    }
    let has_content = |document: &String| {
        document.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with(['#', '%'])
        })
    };
    documents.retain(has_content);
    documents
}

/// Writes a value as one document.
///
/// # Errors
/// If the value cannot be written: a defect of its type.
pub fn write(value: &impl Serialize) -> Result<String, Error> {
    Ok(serde_saphyr::to_string(value)?)
}

fn limits() -> Options {
    options! {
        budget: budget! {
            max_depth: DEEPEST,
            flow_nesting_limit: DEEPEST,
            max_nodes: MOST,
            max_events: 4 * MOST,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MOST,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_kubectl_reads() {
        for (text, wanted) in [
            ("a: 1\nb: [x, 'y']", json!({"a": 1, "b": ["x", "y"]})),
            ("{\"a\": {\"b\": null}}", json!({"a": {"b": null}})),
            ("a: 0x1000", json!({"a": 4096})),
            ("a: 010", json!({"a": 8})),
            (
                "a: true\nb: on\nc: 'true'\nd: [false, n]",
                json!({"a": true, "b": "on", "c": "true", "d": [false, "n"]}),
            ),
            (
                "a: 10.0.0.1\nb: fd00::1\nc: 1.5",
                json!({"a": "10.0.0.1", "b": "fd00::1", "c": 1.5}),
            ),
            (
                "a: &x {b: 1}\nc: {<<: *x, d: 2}",
                json!({"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
            ),
            ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
            ("1: x", json!({"1": "x"})),
            ("", Value::Null),
            ("# nothing", Value::Null),
            ("~", Value::Null),
        ] {
            assert_eq!(read(text).expect(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn refuses_in_words_and_on_one_line_what_is_no_yaml() {
        for text in [
            "a: [",
            "a: 1\na: 2",
            "a: *nowhere",
            "a: b: c",
            "{a: 1} x",
            "\u{0}",
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(
                !error.is_empty() && !error.contains('\n'),
                "{text:?}: {error}"
            );
        }
    }

    /// A file of half a MiB is the most that the API server stores; none of these may cost a second.
    #[test]
    fn no_text_costs_much() {
        let bomb = (1..12).fold(
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(),
            |text, n| {
                let all = vec![format!("*a{}", n - 1); 10].join(", ");
                format!("{text}a{n}: &a{n} [{all}]\n")
            },
        );
        let deep = |open: &str, times| open.repeat(times);
        for (what, text) in [
            ("lists in lists", deep("[", 40_000)),
            ("mappings in mappings", deep("{a: ", 40_000)),
            ("block lists in block lists", deep("- ", 40_000)),
            ("complex keys", deep("? ", 40_000)),
            ("aliases of aliases", bomb),
            (
                "merges of merges",
                (1..5000).fold("a0: &a0 {x: 1}\n".to_owned(), |text, n| {
                    text + &format!("a{n}: &a{n} {{<<: *a{}, k{n}: 1}}\n", n - 1)
                }),
            ),
            ("anchors", "- &a x\n".repeat(80_000)),
            ("tags", "- !t x\n".repeat(80_000)),
            ("a long line", format!("a: {}", "x ".repeat(260_000))),
            ("a long key", format!("{}: x", "x".repeat(520_000))),
            ("quotes", "'".repeat(520_000)),
            ("documents", "--- x\n".repeat(80_000)),
        ] {
            let begun = Instant::now();
            let _ = read(&text);
            let took = begun.elapsed();
            // A debug build on a busy machine; what is bounded here took minutes, or all the memory.
            assert!(took < Duration::from_secs(20), "{what}: {took:?}");
        }
    }
}
