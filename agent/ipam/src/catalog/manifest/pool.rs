//! `SpiderIPPool`.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LabelSelector, text};

/// A range of addresses, and whom it is for.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderIPPool",
    root = "SpiderIpPool",
    plural = "spiderippools",
    singular = "spiderippool",
    shortname = "sp",
    category = "spiderpool",
    status = "IpPoolStatus",
    doc = "A range of addresses, and which pods may have them.",
    derive = "PartialEq",
    printcolumn(name = "VERSION", type_ = "string", json_path = ".spec.ipVersion"),
    printcolumn(name = "SUBNET", type_ = "string", json_path = ".spec.subnet"),
    printcolumn(
        name = "ALLOCATED-IP-COUNT",
        type_ = "integer",
        json_path = ".status.allocatedIPCount"
    ),
    printcolumn(
        name = "TOTAL-IP-COUNT",
        type_ = "integer",
        json_path = ".status.totalIPCount"
    ),
    printcolumn(name = "DEFAULT", type_ = "boolean", json_path = ".spec.default"),
    printcolumn(
        name = "DISABLE",
        type_ = "boolean",
        json_path = ".spec.disable",
        priority = 10
    ),
    printcolumn(
        name = "NodeName",
        type_ = "string",
        json_path = ".spec.nodeName",
        priority = 10
    ),
    printcolumn(
        name = "MultusName",
        type_ = "string",
        json_path = ".spec.multusName",
        priority = 10
    ),
    printcolumn(
        name = "APP-NAMESPACE",
        type_ = "string",
        json_path = r".spec.podAffinity.matchLabels['ipam\.spidernet\.io/app\-namespace']",
        priority = 10
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(oldSelf.ipVersion) || !has(self.ipVersion) || self.ipVersion == oldSelf.ipVersion", "ipVersion cannot be changed: declare another pool"),
    validation = ("!has(self.ipVersion) || (self.ipVersion == 6) == self.subnet.contains(':')", "subnet is not of this ipVersion"),
    validation = ("!has(self.gateway) || self.gateway == '' || self.gateway.contains(':') == self.subnet.contains(':')", "gateway is not of the subnet's IP version"),
    validation = ("!has(self.ips) || self.ips.all(ip, ip.contains(':') == self.subnet.contains(':'))", "ips has an address that is not of the subnet's IP version"),
    validation = ("!has(self.excludeIPs) || self.excludeIPs.all(ip, ip.contains(':') == self.subnet.contains(':'))", "excludeIPs has an address that is not of the subnet's IP version"),
    validation = ("!has(self.routes) || self.routes.all(r, !r.dst.endsWith('/0'))", "a default route is the gateway's: set gateway instead of a route"),
    validation = ("!has(self.routes) || self.routes.all(r, r.dst.contains(':') == self.subnet.contains(':') && r.gw.contains(':') == self.subnet.contains(':'))", "routes has an address that is not of the subnet's IP version"),
)]
pub struct IpPoolSpec {
    /// 4 or 6; inferred from `subnet` if missing.
    #[schemars(extend("enum" = [4, 6]))]
    pub ip_version: Option<i64>,
    /// A prefix; its length is the addresses' prefix length. Cannot be changed.
    #[schemars(required, length(max = 64), regex(pattern = text::PREFIX))]
    #[x_kube(validation = ("self == oldSelf", "subnet cannot be changed: declare another pool"))]
    pub subnet: Option<String>,
    /// Addresses and ranges `first-last`.
    #[schemars(length(max = 4096), inner(length(max = 96), regex(pattern = text::RANGE)))]
    pub ips: Option<Vec<String>>,
    /// Taken out of `ips`.
    #[serde(rename = "excludeIPs")]
    #[schemars(length(max = 4096), inner(length(max = 96), regex(pattern = text::RANGE)))]
    pub exclude_ips: Option<Vec<String>>,
    /// Becomes the default route's gateway. It may be outside of the subnet, where the provider has it so.
    #[schemars(length(max = 64), regex(pattern = text::ADDRESS_OR_NONE))]
    pub gateway: Option<String>,
    /// More routes on the pod's interface.
    #[schemars(length(max = 256))]
    pub routes: Option<Vec<RouteSpec>>,
    /// Pods' labels; not without any.
    #[schemars(extend("minProperties" = 1))]
    pub pod_affinity: Option<LabelSelector>,
    /// Namespaces' labels; without any, all namespaces.
    pub namespace_affinity: Option<LabelSelector>,
    /// Namespaces by name; wins over `namespaceAffinity`.
    #[schemars(inner(length(min = 1, max = 63)))]
    pub namespace_name: Option<Vec<String>>,
    /// Nodes' labels; without any, all nodes.
    pub node_affinity: Option<LabelSelector>,
    /// Nodes by name; wins over `nodeAffinity`.
    #[schemars(inner(length(min = 1, max = 253)))]
    pub node_name: Option<Vec<String>>,
    /// Networks by name, `namespace/name` or `name`.
    #[schemars(inner(length(max = 317), regex(pattern = text::NETWORK)))]
    pub multus_name: Option<Vec<String>>,
    /// Used where nothing names a pool.
    #[serde(default, deserialize_with = "text::flag")]
    #[schemars(extend("default" = false))]
    pub default: Option<bool>,
    /// No new addresses from it.
    #[serde(default, deserialize_with = "text::flag")]
    #[schemars(extend("default" = false))]
    pub disable: Option<bool>,
}

/// One route of a pool.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSpec {
    /// Where to.
    #[schemars(length(max = 64), regex(pattern = text::PREFIX))]
    pub dst: String,
    /// Through which gateway: one of the subnet, or the pool's own.
    #[schemars(length(max = 64), regex(pattern = text::ADDRESS))]
    pub gw: String,
}

/// How full a pool is, as the elected controller writes it.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolStatus {
    /// Who has what, as JSON: `{"ADDRESS": {"pod": "NAMESPACE/NAME", "podUid": "UID"}}`.
    #[serde(rename = "allocatedIPs", skip_serializing_if = "Option::is_none")]
    pub allocated_ips: Option<String>,
    /// How many addresses the pool has.
    #[serde(rename = "totalIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_ip_count: Option<i64>,
    /// How many of them are in use.
    #[serde(rename = "allocatedIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub allocated_ip_count: Option<i64>,
}
