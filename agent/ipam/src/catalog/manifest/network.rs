//! `SpiderMultusConfig`.

use std::borrow::Cow;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CoordinatorSpec, text};

/// A network: which interface a pod gets on which NIC. The blocks of other CNI types are kept, not
/// read.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderMultusConfig",
    plural = "spidermultusconfigs",
    singular = "spidermultusconfig",
    shortname = "smc",
    category = "spiderpool",
    namespaced,
    doc = "A network: which interface a pod gets on which NIC.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.cniType) || self.cniType != 'ipvlan' || has(self.ipvlan)", "cniType ipvlan needs the ipvlan block"),
    validation = ("!has(self.cniType) || self.cniType != 'macvlan' || has(self.macvlan)", "cniType macvlan needs the macvlan block"),
    validation = ("!has(self.ipvlan) || (has(self.cniType) && self.cniType == 'ipvlan')", "the ipvlan block belongs to cniType ipvlan"),
)]
pub struct MultusConfigSpec {
    /// `ipvlan` is the one that the agent makes; `custom` if missing.
    #[schemars(extend(
        "enum" = ["macvlan", "ipvlan", "vlan", "sriov", "ovs", "ib-sriov", "ipoib", "custom"],
        "default" = "custom"
    ))]
    pub cni_type: Option<String>,
    /// Whether the pod gets the veth to its node; true if missing.
    #[serde(default, deserialize_with = "text::flag")]
    #[schemars(extend("default" = true))]
    pub enable_coordinator: Option<bool>,
    /// No addresses at all.
    #[serde(rename = "disableIPAM", default, deserialize_with = "text::flag")]
    #[schemars(extend("default" = false))]
    pub disable_ipam: Option<bool>,
    /// Settings of the veth and of routes.
    pub coordinator: Option<CoordinatorSpec>,
    /// More plugins of the chain, each the JSON of a CNI configuration.
    #[serde(rename = "chainCNIJsonData")]
    #[schemars(inner(regex(pattern = text::JSON_OBJECT)))]
    pub chain_cni_json_data: Option<Vec<String>>,
    /// The ipvlan interface.
    pub ipvlan: Option<IpvlanSpec>,
    /// Another type's block.
    pub macvlan: Option<AnyBlock>,
    /// Another type's block.
    pub vlan: Option<AnyBlock>,
    /// Another type's block.
    pub sriov: Option<AnyBlock>,
    /// Another type's block.
    pub ibsriov: Option<AnyBlock>,
    /// Another type's block.
    pub ipoib: Option<AnyBlock>,
    /// Another type's block.
    pub ovs: Option<AnyBlock>,
    /// Another type's block.
    #[serde(rename = "customCNI")]
    #[schemars(regex(pattern = text::JSON_OBJECT_OR_NONE))]
    pub custom_cni: Option<String>,
}

/// `spec.ipvlan`. Unknown fields are kept, for the agent to name: one of them may be meant to name pools.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("size(self.master) < 2 || has(self.bond)", "several masters need the bond block"),
)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct IpvlanSpec {
    /// The NIC; several are to be bonded.
    #[schemars(required, length(min = 1, max = 32), inner(regex(pattern = text::INTERFACE)))]
    pub master: Option<Vec<String>>,
    /// `l3` (the default), `l2` or `l3s`. Ebbtide's own: Spiderpool has no such field.
    #[schemars(extend("enum" = ["l2", "l3", "l3s"]))]
    pub mode: Option<String>,
    /// 0 or missing: the master's.
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: Option<i64>,
    /// 0 or missing: none.
    #[serde(rename = "vlanID")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan_id: Option<i64>,
    /// How several masters are bonded.
    pub bond: Option<AnyBlock>,
    /// Not used.
    pub rdma_resource_name: Option<String>,
    /// The network's own pools.
    pub ippools: Option<PoolNames>,
    /// The same, as Spiderpool's first releases called it.
    pub spiderpool_config_pools: Option<OldPoolNames>,
}

/// Pools by name. What else is in it is kept, for the agent to refuse: a misspelt family must not mean the default
/// pools.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct PoolNames {
    /// IPv4 pools in order of preference.
    #[schemars(inner(regex(pattern = text::POOL)))]
    pub ipv4: Option<Vec<String>>,
    /// IPv6 pools in order of preference.
    #[schemars(inner(regex(pattern = text::POOL)))]
    pub ipv6: Option<Vec<String>>,
    /// For SR-IOV only.
    #[serde(default, deserialize_with = "text::flag")]
    pub match_master_subnet: Option<bool>,
}

/// Pools by name, as Spiderpool's first releases wrote it.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct OldPoolNames {
    /// IPv4 pools in order of preference.
    #[serde(rename = "IPv4IPPool")]
    #[schemars(inner(regex(pattern = text::POOL)))]
    pub ipv4: Option<Vec<String>>,
    /// IPv6 pools in order of preference.
    #[serde(rename = "IPv6IPPool")]
    #[schemars(inner(regex(pattern = text::POOL)))]
    pub ipv6: Option<Vec<String>>,
}

/// An object that is kept as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AnyBlock(pub Value);

impl JsonSchema for AnyBlock {
    fn schema_name() -> Cow<'static, str> {
        "AnyBlock".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
    }
}
