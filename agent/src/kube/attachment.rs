//! `NetworkAttachmentDefinition`, of the Network Plumbing Working Group's specification (v1.3).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A CNI configuration that pods ask for by name.
#[derive(
    CustomResource, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize,
)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    plural = "network-attachment-definitions",
    singular = "network-attachment-definition",
    shortname = "net-attach-def",
    namespaced,
    doc = "A CNI configuration that pods ask for by name: the Kubernetes Network Plumbing Working Group's way of describing additional networks.",
    derive = "PartialEq"
)]
pub struct NetworkAttachmentDefinitionSpec {
    /// The configuration, JSON of a CNI plugin or plugin list. Empty: it is in a file on each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}
