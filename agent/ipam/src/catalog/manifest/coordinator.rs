//! `SpiderCoordinator`, and the block of the same fields in a `SpiderMultusConfig`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AnyBlock, text};

/// How pods reach their node, and what goes through it.
#[derive(CustomResource, JsonSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderCoordinator",
    plural = "spidercoordinators",
    singular = "spidercoordinator",
    shortname = "scc",
    category = "spiderpool",
    status = "CoordinatorStatus",
    doc = "How pods reach their node, and what goes through it.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct CoordinatorSpec {
    /// `auto`, `underlay`, `overlay` or `disabled`.
    #[schemars(extend("enum" = ["auto", "underlay", "overlay", "disabled"]))]
    pub mode: Option<String>,
    /// Where the pods' networks are taken from. Not needed here: they are found in every way.
    #[serde(rename = "podCIDRType")]
    #[schemars(extend("enum" = ["auto", "cluster", "calico", "cilium", "none"]))]
    pub pod_cidr_type: Option<String>,
    /// Destinations that go through the node: addresses or prefixes.
    #[serde(rename = "hijackCIDR")]
    #[schemars(length(max = 1024), inner(length(max = 64), regex(pattern = text::DESTINATION)))]
    pub hijack_cidr: Option<Vec<String>>,
    /// Not used: routes of a pool (`routes`) are.
    pub policy_routes: Option<Vec<PolicyRoute>>,
    /// Not used: an ipvlan interface has its NIC's MAC address.
    #[serde(rename = "podMACPrefix")]
    #[schemars(regex(pattern = text::MAC_PREFIX))]
    pub pod_mac_prefix: Option<String>,
    /// Not used: routes of several interfaces are always kept apart.
    #[serde(default, deserialize_with = "text::flag")]
    pub tune_pod_routes: Option<bool>,
    /// Which interface of the pod keeps the default route.
    #[serde(rename = "podDefaultRouteNIC")]
    #[schemars(regex(pattern = text::INTERFACE_OR_NONE))]
    pub pod_default_route_nic: Option<String>,
    /// Not used: see `hostTable` of the agent's configuration.
    #[schemars(range(min = 0, max = 4294967295_i64))]
    pub host_rule_table: Option<i64>,
    /// Not used: strict filtering works.
    #[serde(rename = "podRPFilter")]
    #[schemars(range(max = 2))]
    pub pod_rp_filter: Option<i64>,
    /// Not used.
    #[schemars(range(min = 0))]
    pub tx_queue_len: Option<i64>,
    /// Not used: the veth needs no address.
    #[schemars(regex(pattern = text::ADDRESS_OR_NONE))]
    pub veth_link_address: Option<String>,
    /// Not used: the veth's MTU follows the NIC's.
    #[serde(rename = "vethMTU")]
    #[schemars(range(min = 0, max = 65535))]
    pub veth_mtu: Option<i64>,
    /// Of older releases, not used: strict filtering works.
    #[serde(rename = "hostRPFilter")]
    pub host_rp_filter: Option<i64>,
    /// Of older releases, not used: see `mode`.
    pub tune_mode: Option<String>,
    /// Of older releases, not used.
    #[serde(rename = "detectIPConflict", default, deserialize_with = "text::flag")]
    pub detect_ip_conflict: Option<bool>,
    /// Of older releases, not used.
    #[serde(default, deserialize_with = "text::flag")]
    pub detect_gateway: Option<bool>,
    /// Of older releases, not used.
    pub detect_options: Option<AnyBlock>,
}

/// A route of the coordinator's.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRoute {
    /// Where to: a prefix or an address.
    #[schemars(length(max = 64), regex(pattern = text::DESTINATION))]
    pub dst: String,
    /// Through which gateway.
    #[schemars(length(max = 64), regex(pattern = text::ADDRESS))]
    pub gw: String,
}

/// What is known of the cluster's networks.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoordinatorStatus {
    /// `Synced` once they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Networks of pods of other plugins.
    #[serde(rename = "overlayPodCIDR", skip_serializing_if = "Option::is_none")]
    pub overlay_pod_cidr: Option<Vec<String>>,
    /// Networks of the Services.
    #[serde(rename = "serviceCIDR", skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<Vec<String>>,
}
