//! What all objects have in common.

#![expect(
    missing_docs,
    reason = "the fields are Kubernetes': its API reference says what each is"
)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use crate::object::wire;

wire! {
    /// An object's metadata. It is written back with its object, so it keeps everything.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ObjectMeta {
        annotations: Option<BTreeMap<String, String>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        finalizers: Option<Vec<String>>,
        generate_name: Option<String>,
        generation: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        managed_fields: Option<Vec<ManagedFieldsEntry>>,
        name: Option<String>,
        namespace: Option<String>,
        owner_references: Option<Vec<OwnerReference>>,
        resource_version: Option<String>,
        uid: Option<String>,
        rest: Rest,
    }

    /// Which fields somebody has set. Nobody here looks into it.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ManagedFieldsEntry {
        rest: Rest,
    }

    /// The object that this one goes with. It is written back with its object, so it keeps everything.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct OwnerReference {
        api_version: String,
        block_owner_deletion: Option<bool>,
        controller: Option<bool>,
        kind: String,
        name: String,
        uid: String,
        rest: Rest,
    }

    /// A list's metadata. No list is ever written to the API server.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ListMeta {
        #[serde(rename = "continue")]
        continue_: Option<String>,
        remaining_item_count: Option<i64>,
        resource_version: Option<String>,
        self_link: Option<String>,
    }

    /// How a call ended: here of a program that was run in a container.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct Status {
        message: Option<String>,
        reason: Option<String>,
        status: Option<String>,
    }

    /// Which objects are meant, by their labels.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct LabelSelector {
        match_expressions: Option<Vec<LabelSelectorRequirement>>,
        match_labels: Option<BTreeMap<String, String>>,
    }

    /// What an object's label must be like.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct LabelSelectorRequirement {
        key: String,
        operator: String,
        values: Option<Vec<String>>,
    }

    /// The API groups that a server has.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct APIGroupList {
        groups: Vec<APIGroup>,
    }

    /// One API group.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct APIGroup {
        name: String,
        preferred_version: Option<GroupVersionForDiscovery>,
        versions: Vec<GroupVersionForDiscovery>,
    }

    /// A version of an API group.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct GroupVersionForDiscovery {
        group_version: String,
        version: String,
    }

    /// The versions of the group without a name.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct APIVersions {
        versions: Vec<String>,
    }

    /// The kinds of a version of an API group.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct APIResourceList {
        group_version: String,
        resources: Vec<APIResource>,
    }

    /// A kind, as the API server tells it.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct APIResource {
        group: Option<String>,
        kind: String,
        name: String,
        namespaced: bool,
        verbs: Vec<String>,
        version: Option<String>,
    }
}

/// A time, written in whole seconds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.0}", self.0))
    }
}

/// A time, written in microseconds, of which Go's parser wants all six digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct MicroTime(pub Timestamp);

impl Serialize for MicroTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.0))
    }
}
