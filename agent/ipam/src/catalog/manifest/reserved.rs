//! `SpiderReservedIP`.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::text;

/// Addresses that no pool hands out.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spiderpool.spidernet.io",
    version = "v2beta1",
    kind = "SpiderReservedIP",
    root = "SpiderReservedIp",
    plural = "spiderreservedips",
    singular = "spiderreservedip",
    shortname = "sr",
    category = "spiderpool",
    doc = "Addresses that no pool hands out.",
    derive = "PartialEq",
    printcolumn(name = "VERSION", type_ = "string", json_path = ".spec.ipVersion")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(oldSelf.ipVersion) || (has(self.ipVersion) && self.ipVersion == oldSelf.ipVersion)", "ipVersion cannot be changed or taken away: declare another SpiderReservedIP"),
    validation = ("!has(self.ipVersion) || !has(self.ips) || self.ips.all(ip, ip.contains(':') == (self.ipVersion == 6))", "ips has an address that is not of this ipVersion"),
)]
pub struct ReservedIpSpec {
    /// 4 or 6; inferred from the first of `ips` if missing.
    #[schemars(extend("enum" = [4, 6]))]
    pub ip_version: Option<i64>,
    /// Addresses and ranges `first-last`.
    #[schemars(length(max = 4096), inner(length(max = 96), regex(pattern = text::RANGE)))]
    pub ips: Option<Vec<String>>,
}
