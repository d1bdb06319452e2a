//! Treats absent, empty and null alike: people, templates and Go's encoder write each for "not set".

use serde_json::Value;

/// Removes from `value` null, empty text, and whatever holds nothing else.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter();
            let said = fields.map(|(key, value)| (key, without_nulls(value)));
            Value::Object(said.filter(|(_, value)| !is_null_or_empty(value)).collect())
        }
        Value::Array(items) => {
            let said = items.into_iter().map(without_nulls);
            // Other fields refer to an array's objects by index: each object stays in its place.
            let stays = |item: &Value| item.is_object() || !is_null_or_empty(item);
            Value::Array(said.filter(stays).collect())
        }
        other => other,
    }
}

/// Whether `value` itself is null or empty.
pub(super) fn is_null_or_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_says_nothing_is_left_out_and_what_says_something_stays() {
        let value = json!({
            "a": null, "b": "", "c": {}, "d": {"e": null, "f": {"g": " "}}, "h": [null, "", "x", {}],
            "i": 0, "j": false, "k": [], "l": {"m": 1, "n": ""},
        });
        let expected = json!({"h": ["x", {}], "i": 0, "j": false, "k": [], "l": {"m": 1}});
        assert_eq!(without_nulls(value), expected);
    }
}
