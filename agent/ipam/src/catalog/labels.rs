//! Label selectors with Kubernetes' semantics.

use std::collections::BTreeMap;

use super::manifest::{LabelExpression, LabelOperator, LabelSelector};

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

impl LabelSelector {
    /// Whether all conditions hold. A selector without conditions matches everything.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .match_expressions
                .iter()
                .all(|expression| expression.matches(labels))
    }

    /// Whether the selector has no conditions.
    pub(super) fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Returns the first invalid condition: its place within the selector, and the reason.
    pub(super) fn fault(&self) -> Option<(String, &'static str)> {
        let expressions = self.match_expressions.iter().enumerate();
        expressions.into_iter().find_map(|(position, expression)| {
            let reason = expression.fault()?;
            Some((format!(".matchExpressions[{position}]"), reason))
        })
    }
}

impl LabelExpression {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            LabelOperator::In => listed,
            LabelOperator::NotIn => !listed,
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }

    fn fault(&self) -> Option<&'static str> {
        let listing = matches!(self.operator, LabelOperator::In | LabelOperator::NotIn);
        if self.key.is_empty() {
            Some("has no key")
        } else if listing && self.values.is_empty() {
            Some("needs values: In and NotIn compare with a list")
        } else if !listing && !self.values.is_empty() {
            Some("must have no values: Exists and DoesNotExist look at the key alone")
        } else {
            None
        }
    }
}
