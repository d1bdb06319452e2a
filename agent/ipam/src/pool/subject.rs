//! The pod, namespace and node that addresses are for, as plain values: from files or the API server.

use std::collections::BTreeMap;

use super::{PodRef, reservation::ordinal};
use crate::catalog::Labels;

/// The facts about a pod or a namespace that pool selection uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// Its name; empty if unknown.
    pub name: String,
    /// Its labels; none if they are unknown, which differs from an empty set.
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
    /// The pod's uid; empty if unknown.
    pub pod_uid: String,
    /// The controller that created the pod, if known.
    pub controller: Option<Controller>,
    /// The node's labels; none if unknown.
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
    /// An object of which nothing is known.
    pub const UNKNOWN: Self = Self {
        name: String::new(),
        labels: None,
        annotations: BTreeMap::new(),
    };

    /// An object of which only the name is known.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::UNKNOWN
        }
    }
}

impl Subject {
    /// A subject of which nothing is known.
    pub const UNKNOWN: Self = Self {
        pod: Object::UNKNOWN,
        namespace: Object::UNKNOWN,
        pod_uid: String::new(),
        controller: None,
        node_labels: None,
    };

    /// Returns the pod; none if its name is unknown.
    pub(super) fn pod_ref(&self) -> Option<PodRef> {
        (!self.pod.name.is_empty()).then(|| PodRef {
            namespace: self.namespace.name.clone(),
            name: self.pod.name.clone(),
            uid: self.pod_uid.clone(),
        })
    }

    /// Whether the pod will have a successor of the same name, as `web-0` of StatefulSet `web`.
    pub(super) fn is_stateful(&self) -> bool {
        let set = ordinal(&self.pod.name).map(|(set, _)| set);
        self.controller.as_ref().is_some_and(|controller| {
            controller.kind == "StatefulSet" && set == Some(controller.name.as_str())
        })
    }
}
