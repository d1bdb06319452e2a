//! Who the addresses are for, as plain values: files and the API server feed them alike.

use std::collections::BTreeMap;

use crate::catalog::Labels;

/// A pod or a namespace, as far as pools care.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// Its name; empty if it is not known.
    pub name: String,
    /// Its labels; none if they are not known, which is something else than having no labels.
    pub labels: Option<Labels>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The pod, its namespace and its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The pod.
    pub pod: Object,
    /// Its namespace.
    pub namespace: Object,
    /// The node's labels; none if they are not known.
    pub node_labels: Option<Labels>,
}

impl Object {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        name: String::new(),
        labels: None,
        annotations: BTreeMap::new(),
    };

    /// Known by its name alone.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::UNKNOWN
        }
    }
}

impl Subject {
    /// Nothing is known of anything.
    pub const UNKNOWN: Self = Self {
        pod: Object::UNKNOWN,
        namespace: Object::UNKNOWN,
        node_labels: None,
    };
}
