//! What is wrong with a text, in the words of the person who wrote it: no names of Rust's types, and no advice to a
//! programmer.

use std::borrow::Cow;

use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter};

/// Rust's integers, as errors name their types.
const INTEGERS: [&str; 10] = [
    "u8", "u16", "u32", "u64", "usize", "i8", "i16", "i32", "i64", "isize",
];

/// Tells errors of reading YAML; the place is added behind.
pub(super) struct Words;

impl MessageFormatter for Words {
    fn format_message<'a>(&self, error: &'a Error) -> Cow<'a, str> {
        let said = match error {
            Error::MultipleDocuments { .. } => "there are several documents (`---`): keep one",
            Error::Unexpected { expected, .. } if expected.starts_with("sequence") => {
                "a list is expected here, as in [a, b]"
            }
            Error::Unexpected { expected, .. } if expected.starts_with("mapping") => {
                "fields are expected here, each as `name: value`"
            }
            Error::Unexpected { expected, .. } if expected.contains("scalar") => {
                "one value is expected here, and neither a list nor fields"
            }
            Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => {
                "one word is expected here, and neither a list nor fields"
            }
            // Of `ipnet`, whatever is wrong; what is read here are prefixes.
            Error::Message { msg, .. } if msg == "invalid IP address syntax" => {
                "is no prefix, as 10.0.0.0/8 and fd00::/64 are"
            }
            Error::NullIntoString { .. } => "there is no value here",
            Error::InvalidScalar { ty: "boolean", .. } => "is neither `true` nor `false`",
            Error::InvalidScalar { ty, .. } if INTEGERS.contains(ty) => {
                "is no whole number, or not one that is possible here"
            }
            Error::DuplicateMappingKey { key, .. } => {
                let key = key.as_deref().unwrap_or("one of the fields");
                return Cow::Owned(format!("{key} is there twice: keep one"));
            }
            other => return DefaultMessageFormatter.format_message(other),
        };
        Cow::Borrowed(said)
    }
}

/// Puts what serde says of a type into words: `invalid type: string "ens5", expected a sequence` becomes
/// `is the text "ens5", and a list is expected`.
#[must_use]
pub fn of_type(said: &str) -> String {
    let told = said
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.rsplit_once(", expected "));
    let Some((found, expected)) = told else {
        return said.to_owned();
    };
    let found = match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer" | "boolean", value)) => value.replace('`', ""),
        Some(("floating", rest)) => rest.replace("point ", "").replace('`', ""),
        _ => match found {
            "sequence" => "a list".to_owned(),
            "map" => "a mapping".to_owned(),
            "null" => "empty".to_owned(),
            other => other.to_owned(),
        },
    };
    let expected = match expected {
        "a sequence" => "a list",
        "a map" => "a mapping",
        "a string" | "a borrowed string" => "a text",
        "a boolean" => "true or false",
        integer if INTEGERS.contains(&integer) => "a whole number",
        of_rust if of_rust.starts_with("struct ") => "a mapping",
        other => other,
    };
    format!("is {found}, and {expected} is expected")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::read_fields;
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Fields {
        list: Vec<String>,
        number: u32,
        switch: bool,
        word: Word,
        prefixes: Vec<ipnet::IpNet>,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    enum Word {
        #[default]
        Auto,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Inner {
        a: u32,
    }

    #[test]
    fn errors_say_what_is_to_be_written() {
        for (text, field, wanted) in [
            ("list: a", "list", "a list is expected here"),
            ("list: [~]", "list[0]", "there is no value here"),
            ("list: [{a: b}]", "list[0]", "one value is expected here"),
            ("number: -1", "number", "is no whole number"),
            ("number: [1]", "number", "one value is expected here"),
            ("switch: maybe", "switch", "is neither `true` nor `false`"),
            ("word: [auto]", "word", "one word is expected here"),
            (
                "prefixes: [10.0.0.0/99]",
                "prefixes[0]",
                "is no prefix, as 10.0.0.0/8",
            ),
            ("prefixes: [example.org]", "prefixes[0]", "is no prefix"),
            ("inner: 5", "inner", "fields are expected here"),
            ("- a", ".", "fields are expected here"),
            ("number: 1\nnumber: 2", "?", "number is there twice"),
            ("number: 1\n---\nnumber: 2", ".", "several documents"),
        ] {
            let (at, said) = read_fields::<Fields>(text).unwrap_err();
            assert!(said.contains(wanted), "{text}: {at}: {said}");
            assert_eq!(at, field, "{text}: {said}");
            for of_rust in [
                "Option", "u32", "scalar", "sequence", "enum", "from_str", "Policy",
            ] {
                assert!(!said.contains(of_rust), "{text}: {said}");
            }
        }
    }

    #[test]
    fn types_are_told_without_rust_s_names() {
        for (said, told) in [
            (
                "invalid type: string \"a, expected b\", expected a sequence",
                "is the text \"a, expected b\", and a list is expected",
            ),
            (
                "invalid type: null, expected a string",
                "is empty, and a text is expected",
            ),
            (
                "invalid type: integer `5`, expected a string",
                "is 5, and a text is expected",
            ),
            (
                "invalid type: string \"4\", expected i64",
                "is the text \"4\", and a whole number is expected",
            ),
            (
                "invalid type: string \"x\", expected struct RouteSpec",
                "is the text \"x\", and a mapping is expected",
            ),
            (
                "invalid type: sequence, expected a boolean",
                "is a list, and true or false is expected",
            ),
            ("missing field `gw`", "missing field `gw`"),
        ] {
            assert_eq!(of_type(said), told);
        }
    }
}
