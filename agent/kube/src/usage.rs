//! The holders of a pool's addresses, in Spiderpool's own format. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_ipam::catalog::{Pool, manifest::IpPoolStatus};
use ebbtide_types::ObjectName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::endpoint::{EndpointStatus, PodAllocation};

/// The pod that holds an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// Its UID.
    #[serde(rename = "podUid", default)]
    pub uid: String,
}

impl Holder {
    /// Returns the pod's name; none if it is malformed.
    #[must_use]
    pub fn name(&self) -> Option<ObjectName> {
        let (namespace, name) = self.pod.split_once('/')?;
        Some(ObjectName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// The holders of a pool's addresses.
pub type Holders = BTreeMap<IpAddr, Holder>;

/// The holders by pool.
pub type Usage = BTreeMap<String, Holders>;

/// Adds the addresses of a SpiderEndpoint.
pub fn add(usage: &mut Usage, name: &ObjectName, status: &EndpointStatus) {
    let holder = Holder {
        pod: name.to_string(),
        uid: status.current.uid.clone(),
    };
    for (pool, address) in addresses(&status.current) {
        let holders = usage.entry(pool.to_owned()).or_default();
        holders.insert(address, holder.clone());
    }
}

/// Iterates over the addresses of a pod with their pools.
pub fn addresses(current: &PodAllocation) -> impl Iterator<Item = (&str, IpAddr)> {
    current.ips.iter().flat_map(|each| {
        let both = [(&each.ipv4_pool, &each.ipv4), (&each.ipv6_pool, &each.ipv6)];
        both.into_iter().filter_map(|(pool, text)| {
            let text = text.as_deref()?;
            let address = text.parse::<IpNet>().map(|net| net.addr());
            let address = address.or_else(|_| text.parse()).ok()?;
            Some((pool.as_deref().filter(|pool| !pool.is_empty())?, address))
        })
    })
}

/// Parses a pool's `status.allocatedIPs`. Unreadable parts are left out.
#[must_use]
pub fn parse(text: &str) -> Holders {
    let raw: BTreeMap<String, Holder> = serde_json::from_str(text).unwrap_or_default();
    raw.into_iter()
        .filter_map(|(address, holder)| Some((address.parse().ok()?, holder)))
        .collect()
}

/// Returns a pool's status.
#[must_use]
pub fn status(pool: &Pool, holders: &Holders) -> IpPoolStatus {
    status_of(
        pool.ranges.len().saturating_add(pool.reserved.len()),
        holders,
    )
}

/// Returns the status of a pool with so many addresses.
#[must_use]
pub fn status_of(total: u128, holders: &Holders) -> IpPoolStatus {
    // A map of texts can always be written as JSON.
    let text = serde_json::to_string(holders).unwrap_or_default();
    IpPoolStatus {
        allocated_ips: (!holders.is_empty()).then_some(text),
        total_ip_count: Some(i64::try_from(total).unwrap_or(i64::MAX)),
        allocated_ip_count: i64::try_from(holders.len()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use ebbtide_ipam::catalog::Catalog;

    use super::*;

    #[test]
    fn a_pools_status_is_in_spiderpools_format() {
        let text =
            "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: a},
            spec: {subnet: 172.31.192.0/20, ips: [172.31.199.187-172.31.199.191]}}";
        let catalog = Catalog::from_texts([(std::path::Path::new("a"), text)]);
        let endpoint: EndpointStatus = serde_json::from_value(json!({
            "current": {"uid": "u", "node": "n", "ips": [
                {"interface": "eth0", "ipv4": "172.31.199.187/20", "ipv4Pool": "a", "ipv6": "", "ipv6Pool": "",
                 "vlan": 0, "cleanGateway": false, "routes": []},
            ]},
            "ownerControllerType": "Deployment", "ownerControllerName": "test-app-1",
        }))
        .unwrap();
        let name = ObjectName {
            namespace: "default".into(),
            name: "test-app-1-ddlx7".into(),
        };
        let mut usage = Usage::new();
        add(&mut usage, &name, &endpoint);
        let status = status(&catalog.pools()[0], &usage["a"]);
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            json!({
                "allocatedIPs": r#"{"172.31.199.187":{"pod":"default/test-app-1-ddlx7","podUid":"u"}}"#,
                "totalIPCount": 5, "allocatedIPCount": 1,
            })
        );
        assert_eq!(parse(&status.allocated_ips.unwrap()), usage["a"]);
        assert!(parse("nonsense").is_empty());
        let empty = super::status(&catalog.pools()[0], &Holders::new());
        assert_eq!(empty.allocated_ips, None);
        assert_eq!(empty.allocated_ip_count, Some(0));
    }
}
