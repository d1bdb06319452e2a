//! `SpiderEndpoint`: the addresses of one pod, for people to read.

use ebbtide_ipam::catalog::manifest::GROUP;
use kube::{
    Api, CustomResource,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster::Cluster;

/// The label with the node whose agent wrote a SpiderEndpoint, to find its own ones again.
pub(super) const NODE_LABEL: &str = "ebbtide.io/node";

/// Returns the API resource of SpiderEndpoints.
pub(super) fn resource() -> ApiResource {
    let gvk = GroupVersionKind::gvk(GROUP, "v2beta1", "SpiderEndpoint");
    ApiResource::from_gvk_with_plural(&gvk, "spiderendpoints")
}

/// Returns the API of the SpiderEndpoints of a namespace.
pub(super) fn endpoints(cluster: &Cluster, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(cluster.client.clone(), namespace, &resource())
}

/// A `SpiderEndpoint` has no spec: what there is, is in its status.
#[derive(
    CustomResource, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize,
)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderEndpoint",
    plural = "spiderendpoints",
    singular = "spiderendpoint",
    shortname = "se",
    category = "spiderpool",
    namespaced,
    no_spec,
    status = "EndpointStatus",
    doc = "The addresses of one pod, written by its node's agent.",
    derive = "PartialEq",
    printcolumn(
        name = "INTERFACE",
        type_ = "string",
        json_path = ".status.current.ips[0].interface"
    ),
    printcolumn(
        name = "IPV4POOL",
        type_ = "string",
        json_path = ".status.current.ips[0].ipv4Pool"
    ),
    printcolumn(
        name = "IPV4",
        type_ = "string",
        json_path = ".status.current.ips[0].ipv4"
    ),
    printcolumn(
        name = "IPV6POOL",
        type_ = "string",
        json_path = ".status.current.ips[0].ipv6Pool"
    ),
    printcolumn(
        name = "IPV6",
        type_ = "string",
        json_path = ".status.current.ips[0].ipv6"
    ),
    printcolumn(name = "NODE", type_ = "string", json_path = ".status.current.node")
)]
pub struct SpiderEndpointContent {}

/// What a pod has.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// The pod as it is now.
    #[serde(default)]
    pub current: PodAllocation,
    /// The kind of what the pod belongs to, as in `StatefulSet`.
    #[serde(default)]
    pub owner_controller_type: String,
    /// Its name.
    #[serde(default)]
    pub owner_controller_name: String,
}

/// The addresses of a pod.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAllocation {
    /// The pod's UID.
    #[serde(default)]
    pub uid: String,
    /// The pod's node.
    #[serde(default)]
    pub node: String,
    /// One item an interface.
    #[serde(default)]
    pub ips: Vec<InterfaceAllocation>,
}

/// The addresses of one interface.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceAllocation {
    /// The interface in the pod.
    #[serde(default)]
    pub interface: String,
    /// The IPv4 address with its prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// The IPv6 address with its prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// The pool of the IPv4 address.
    #[serde(default, rename = "ipv4Pool", skip_serializing_if = "Option::is_none")]
    pub ipv4_pool: Option<String>,
    /// The pool of the IPv6 address.
    #[serde(default, rename = "ipv6Pool", skip_serializing_if = "Option::is_none")]
    pub ipv6_pool: Option<String>,
    /// 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: Option<i64>,
    /// The IPv4 pool's gateway.
    #[serde(
        default,
        rename = "ipv4Gateway",
        skip_serializing_if = "Option::is_none"
    )]
    pub ipv4_gateway: Option<String>,
    /// The IPv6 pool's gateway.
    #[serde(
        default,
        rename = "ipv6Gateway",
        skip_serializing_if = "Option::is_none"
    )]
    pub ipv6_gateway: Option<String>,
    /// Whether the gateways are no default routes of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_gateway: Option<bool>,
    /// More routes of the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<EndpointRoute>>,
    /// The interface's MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// One route of an interface, as it is set up.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRoute {
    /// Where to.
    #[schemars(length(max = 64))]
    pub dst: String,
    /// Through which gateway.
    #[schemars(length(max = 64))]
    pub gw: String,
}
