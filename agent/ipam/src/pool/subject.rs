//! Who the addresses are for, as plain values: files and the API server feed them alike.

use std::collections::BTreeMap;

use super::{PodRef, reservation::ordinal};
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
    /// The pod's uid; empty if it is not known.
    pub pod_uid: String,
    /// What made the pod, if that is known.
    pub controller: Option<Controller>,
    /// The node's labels; none if they are not known.
    pub node_labels: Option<Labels>,
}

/// The object that a pod's `ownerReferences` name as its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Its kind, as in `StatefulSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
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
        pod_uid: String::new(),
        controller: None,
        node_labels: None,
    };

    /// The pod; none if its name is not known.
    pub(super) fn pod_ref(&self) -> Option<PodRef> {
        (!self.pod.name.is_empty()).then(|| PodRef {
            namespace: self.namespace.name.clone(),
            name: self.pod.name.clone(),
            uid: self.pod_uid.clone(),
        })
    }

    /// Whether the pod will have a successor of the same name: `web-0` of StatefulSet `web`.
    pub(super) fn is_stateful(&self) -> bool {
        let set = ordinal(&self.pod.name).map(|(set, _)| set);
        self.controller.as_ref().is_some_and(|controller| {
            controller.kind == "StatefulSet" && set == Some(controller.name.as_str())
        })
    }
}
