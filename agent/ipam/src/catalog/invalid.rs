//! Validation errors of objects.

/// One rule that an object breaks: which object, which field, which value, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}{}: {reason}; {remedy}", shown(.value))]
pub struct Invalid {
    /// Kind and name, as in `SpiderIPPool worker1-v4`.
    pub object: String,
    /// The path of the field, as in `spec.ips[2]`.
    pub field: String,
    /// The field's value; empty if it is missing.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
    /// What the person can do.
    pub remedy: String,
}

impl Invalid {
    pub(super) fn new(
        object: &str,
        field: impl Into<String>,
        value: impl ToString,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            object: object.to_owned(),
            field: field.into(),
            value: value.to_string(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// Returns the message without the object and the field, for places that show those separately.
    #[must_use]
    pub fn message(&self) -> String {
        format!("{}{}; {}", quoted(&self.value), self.reason, self.remedy)
    }
}

fn shown(value: &str) -> String {
    if value.is_empty() {
        String::new()
    } else {
        format!(" {value:?}")
    }
}

fn quoted(value: &str) -> String {
    if value.is_empty() {
        String::new()
    } else {
        format!("{value:?}: ")
    }
}
