//! The documents as people write them: Spiderpool's kinds in `spiderpool.spidernet.io/v2beta1`.
//!
//! Only what the agent uses is here; other fields are tolerated and not read. A missing field
//! and an explicit `null` are the same, as in the Kubernetes API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};

/// The group and version of all kinds here.
pub const API_VERSION: &str = "spiderpool.spidernet.io/v2beta1";

/// The name of an object.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Metadata {
    /// The object's name.
    #[serde(default)]
    pub name: String,
    /// The namespace; `default` if there is none.
    pub namespace: Option<String>,
}

/// A `SpiderIPPool` document.
#[derive(Debug, Clone, Deserialize)]
pub struct SpiderIpPool {
    /// Name (the kind is cluster-wide).
    pub metadata: Metadata,
    /// The pool.
    pub spec: IpPoolSpec,
}

/// `spec` of a `SpiderIPPool`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    /// 4 or 6; inferred from `subnet` if missing.
    pub ip_version: Option<i64>,
    /// A prefix; its length is the addresses' prefix length.
    pub subnet: Option<String>,
    /// Addresses and ranges `first-last`.
    pub ips: Option<Vec<String>>,
    /// Taken out of `ips`.
    #[serde(rename = "excludeIPs")]
    pub exclude_ips: Option<Vec<String>>,
    /// Becomes the default route's gateway.
    pub gateway: Option<String>,
    /// More routes on the pod's interface.
    pub routes: Option<Vec<RouteSpec>>,
    /// Pods' labels.
    pub pod_affinity: Option<LabelSelector>,
    /// Namespaces' labels.
    pub namespace_affinity: Option<LabelSelector>,
    /// Namespaces by name; wins over `namespaceAffinity`.
    pub namespace_name: Option<Vec<String>>,
    /// Nodes' labels.
    pub node_affinity: Option<LabelSelector>,
    /// Nodes by name; wins over `nodeAffinity`.
    pub node_name: Option<Vec<String>>,
    /// Networks by name, `namespace/name` or `name`.
    pub multus_name: Option<Vec<String>>,
    /// Used where nothing names a pool.
    pub default: Option<bool>,
    /// No new addresses from it.
    pub disable: Option<bool>,
}

/// A `SpiderReservedIP` document.
#[derive(Debug, Clone, Deserialize)]
pub struct SpiderReservedIp {
    /// Name (the kind is cluster-wide).
    pub metadata: Metadata,
    /// The addresses.
    pub spec: ReservedIpSpec,
}

/// `spec` of a `SpiderReservedIP`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservedIpSpec {
    /// 4 or 6; inferred from the first of `ips` if missing.
    pub ip_version: Option<i64>,
    /// Addresses and ranges `first-last`.
    pub ips: Option<Vec<String>>,
}

/// One route of a pool or a coordinator.
#[derive(Debug, Clone, Deserialize)]
pub struct RouteSpec {
    /// Where to.
    pub dst: String,
    /// Through which gateway.
    pub gw: String,
}

/// A Kubernetes label selector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must be there with this value.
    #[serde(deserialize_with = "null_is_default")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions that must all hold.
    #[serde(deserialize_with = "null_is_default")]
    pub match_expressions: Vec<LabelExpression>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// One condition on a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: LabelOperator,
    /// With what; empty for `Exists` and `DoesNotExist`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelOperator {
    /// The value is one of `values`.
    In,
    /// The value is none of `values`, or the label is missing.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

/// A `SpiderMultusConfig` document.
#[derive(Debug, Clone, Deserialize)]
pub struct SpiderMultusConfig {
    /// Name and namespace.
    pub metadata: Metadata,
    /// The network.
    pub spec: MultusConfigSpec,
}

/// `spec` of a `SpiderMultusConfig`. The blocks of other CNI types are only noticed, not read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MultusConfigSpec {
    /// `ipvlan` is the one that the agent makes; `custom` if missing.
    pub cni_type: Option<String>,
    /// Whether the pod gets the veth to its node; true if missing.
    pub enable_coordinator: Option<bool>,
    /// No addresses at all.
    #[serde(rename = "disableIPAM")]
    pub disable_ipam: Option<bool>,
    /// Settings of the veth and of routes.
    pub coordinator: Option<CoordinatorSpec>,
    /// The ipvlan interface.
    pub ipvlan: Option<IpvlanSpec>,
    /// Another type's block.
    pub macvlan: Option<IgnoredAny>,
    /// Another type's block.
    pub vlan: Option<IgnoredAny>,
    /// Another type's block.
    pub sriov: Option<IgnoredAny>,
    /// Another type's block.
    pub ibsriov: Option<IgnoredAny>,
    /// Another type's block.
    pub ipoib: Option<IgnoredAny>,
    /// Another type's block.
    pub ovs: Option<IgnoredAny>,
    /// Another type's block.
    #[serde(rename = "customCNI")]
    pub custom_cni: Option<String>,
}

/// `spec.ipvlan`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpvlanSpec {
    /// The NIC; several are to be bonded.
    pub master: Option<Vec<String>>,
    /// `l3` (the default), `l2` or `l3s`. Ebbtide's own: Spiderpool has no such field.
    pub mode: Option<String>,
    /// 0 or missing: the master's.
    pub mtu: Option<i64>,
    /// 0 or missing: none.
    #[serde(rename = "vlanID")]
    pub vlan_id: Option<i64>,
    /// How several masters are bonded.
    pub bond: Option<IgnoredAny>,
    /// The network's own pools.
    pub ippools: Option<PoolNames>,
}

/// Pools by name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolNames {
    /// IPv4 pools in order of preference.
    pub ipv4: Option<Vec<String>>,
    /// IPv6 pools in order of preference.
    pub ipv6: Option<Vec<String>>,
    /// For SR-IOV only.
    pub match_master_subnet: Option<bool>,
}

/// `spec.coordinator`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoordinatorSpec {
    /// `auto`, `underlay`, `overlay` or `disabled`.
    pub mode: Option<String>,
    /// Destinations that go through the node: addresses or prefixes.
    #[serde(rename = "hijackCIDR")]
    pub hijack_cidr: Option<Vec<String>>,
    /// Which interface of the pod keeps the default route.
    #[serde(rename = "podDefaultRouteNIC")]
    pub pod_default_route_nic: Option<String>,
}
