//! The form of a request of AWS' query protocol: `Action=...&Version=...`, percent-encoded.

use std::fmt::Write as _;

/// A form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form(String);

impl Form {
    /// Returns the form of an action.
    pub(crate) fn new(action: &str, version: &str) -> Self {
        Self(String::new())
            .with("Action", action)
            .with("Version", version)
    }

    /// Adds a field.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        encode(&mut self.0, name);
        self.0.push('=');
        encode(&mut self.0, value);
        self
    }

    /// Adds a list, whose numbers begin at one: `NAME.1`, `NAME.2`, ...
    #[must_use]
    pub(crate) fn with_list(self, name: &str, values: impl IntoIterator<Item = String>) -> Self {
        let numbered = values.into_iter().zip(1..);
        numbered.fold(self, |form, (value, number)| {
            form.with(&format!("{name}.{number}"), &value)
        })
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// Appends `text` as RFC 3986, section 2.3, has it, which is what signatures are computed of.
fn encode(to: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                to.push(char::from(byte));
            }
            // A String takes everything.
            _ => drop(write!(to, "%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded_and_its_lists_begin_at_one() {
        let form = Form::new("Do", "2016-11-15")
            .with("Id", "a b/ü&=")
            .with_list("Ipv6", ["fd00::1".to_owned(), "10.0.0.0/28".to_owned()]);
        assert_eq!(
            form.into_text(),
            "Action=Do&Version=2016-11-15&Id=a%20b%2F%C3%BC%26%3D&Ipv6.1=fd00%3A%3A1&Ipv6.2=10.0.0.0%2F28"
        );
    }
}
