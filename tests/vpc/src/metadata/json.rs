//! Ways in JSON, as Azure and Google Cloud have them in their paths.

use serde_json::Value;

/// Returns the part of a value at a path of names and numbers.
pub(super) fn find<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, part| match value {
        Value::Object(all) => all.get(*part),
        Value::Array(all) => all.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Whether a value has parts.
pub(super) const fn is_branch(value: &Value) -> bool {
    matches!(value, Value::Object(_) | Value::Array(_))
}

/// Returns a value's text: strings without quotes.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns the names of a value's parts, branches with a slash, a line each.
pub(super) fn listing(value: &Value, end: &str) -> String {
    let line = |name: String, below: &Value| {
        let slash = if is_branch(below) { "/" } else { "" };
        format!("{name}{slash}")
    };
    let lines: Vec<String> = match value {
        Value::Object(all) => all
            .iter()
            .map(|(name, below)| line(name.clone(), below))
            .collect(),
        Value::Array(all) => (0..)
            .zip(all)
            .map(|(number, below): (usize, _)| line(number.to_string(), below))
            .collect(),
        _ => Vec::new(),
    };
    let mut listing = lines.join("\n");
    if !lines.is_empty() {
        listing.push_str(end);
    }
    listing
}
