//! The pools that a configuration names in its `ipam`.

use std::collections::BTreeMap;

use ebbtide_ipam::catalog::Addresses;
use ebbtide_plugin::cni::code;
use serde::Deserialize;
use serde_json::Value;

use super::{NetConf, choice::unsupported};
use crate::cni::Failure;

/// The field `ipam`. Keys of another IPAM plugin are not checked.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ipam {
    /// The IPAM plugin; without one, the pools assign the addresses.
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
    /// The IPv4 pools. Spiderpool's configurations use the second name.
    #[serde(default, rename = "ipv4Pools", alias = "default_ipv4_ippool")]
    ipv4_pools: Vec<String>,
    /// The IPv6 pools, as `ipv4_pools`.
    #[serde(default, rename = "ipv6Pools", alias = "default_ipv6_ippool")]
    ipv6_pools: Vec<String>,
    /// As `addresses` beside `ipam`. Of any type: the plugin static has a list of this name.
    #[serde(default)]
    addresses: Option<Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Names of pools. If empty, the network's pools or the default pools are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedPools {
    /// Of IPv4.
    pub ipv4: Vec<String>,
    /// Of IPv6.
    pub ipv6: Vec<String>,
    /// Whether the addresses come from the cloud's metadata instead: no pool is named then.
    pub addresses: Addresses,
}

/// Spiderpool's keys about the operation of its plugin, not about addresses: they are ignored.
const OF_THE_PLUGIN: [&str; 6] = [
    "log_level",
    "log_file_path",
    "log_file_max_size",
    "log_file_max_age",
    "log_file_max_count",
    "ipam_unix_socket_path",
];

impl NetConf {
    /// Returns the pools that the configuration names.
    ///
    /// # Errors
    /// The first key of `ipam` that is not supported: a misspelt one would otherwise mean the default pools.
    pub(super) fn pools(&self) -> Result<NamedPools, Failure> {
        let addresses = self.addresses()?;
        let Some(ipam) = &self.ipam else {
            return Ok(NamedPools {
                addresses,
                ..NamedPools::default()
            });
        };
        // Another plugin has keys of its own.
        if self.ipam_plugin().is_some() {
            return Ok(NamedPools::default());
        }
        let says_no = |value: &Value| *value == Value::Bool(false);
        let unknown = ipam.rest.iter().find(|(key, value)| {
            let is_off = matches!(key.as_str(), "clean_gateway" | "match_master_subnet");
            !(OF_THE_PLUGIN.contains(&key.as_str()) || is_off && says_no(value))
        });
        match unknown {
            None => {
                let named = [&ipam.ipv4_pools[..], &ipam.ipv6_pools].concat();
                if addresses == Addresses::Metadata && !named.is_empty() {
                    return Err(Failure::new(
                        code::UNSUPPORTED_FIELD,
                        format!(
                            "the network configuration takes the addresses from the cloud's metadata (`addresses`), \
                             and its `ipam` names pools ({})",
                            named.join(", ")
                        ),
                        "keep one of them",
                    ));
                }
                Ok(NamedPools {
                    ipv4: ipam.ipv4_pools.clone(),
                    ipv6: ipam.ipv6_pools.clone(),
                    addresses,
                })
            }
            Some((key, value)) => Err(Failure::new(
                code::UNSUPPORTED_FIELD,
                format!(
                    "the network configuration's `ipam` has `{key}` ({value}), which is not supported"
                ),
                "known are `type`, `addresses`, `ipv4Pools` and `ipv6Pools` (also as `default_ipv4_ippool` and \
                 `default_ipv6_ippool`): correct the key or remove it; for another IPAM plugin name it with `type`",
            )),
        }
    }

    /// Returns where the addresses come from, by the field itself or that of `ipam`.
    fn addresses(&self) -> Result<Addresses, Failure> {
        let ipam = self.ipam.as_ref().filter(|_| self.ipam_plugin().is_none());
        let inside = ipam.and_then(|ipam| ipam.addresses.as_ref());
        let inside = inside.map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        let places = [
            ("addresses", self.addresses.as_deref()),
            ("ipam.addresses", inside.as_deref()),
        ];
        let mut addresses = Addresses::Pools;
        for (field, text) in places {
            match text {
                None => {}
                Some(Addresses::METADATA) => addresses = Addresses::Metadata,
                Some(other) => {
                    let hint = "write \"metadata\" for what the cloud has assigned to the NIC, or leave it out for \
                                addresses of pools";
                    return Err(unsupported(field, other, hint));
                }
            }
        }
        match self.ipam_plugin() {
            Some(other) if addresses == Addresses::Metadata => Err(unsupported(
                "addresses",
                Addresses::METADATA,
                &format!(
                    "the IPAM plugin {other} gives the addresses: leave `addresses` or `ipam.type` out"
                ),
            )),
            _ => Ok(addresses),
        }
    }

    /// Refuses pools where they would have no effect.
    pub(super) fn refuse_pools(&self, why: &str, hint: &str) -> Result<(), Failure> {
        let pools = self.pools()?;
        if pools.addresses == Addresses::Metadata {
            let value = format!("{} {why}", Addresses::METADATA);
            return Err(unsupported("addresses", &value, hint));
        }
        let named = [
            ("ipam.ipv4Pools", pools.ipv4),
            ("ipam.ipv6Pools", pools.ipv6),
        ];
        match named.into_iter().find(|(_, pools)| !pools.is_empty()) {
            None => Ok(()),
            Some((key, pools)) => Err(unsupported(
                key,
                &format!("{} {why}", pools.join(", ")),
                hint,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::NetworkChoice;

    fn chosen(fields: &str) -> Result<NetworkChoice, Failure> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"ebbtide",{fields}}}"#);
        NetConf::parse(&text)?.choice()
    }

    #[test]
    fn pools_are_named_for_every_network_that_a_configuration_names() {
        for (ipam, ipv4, ipv6) in [
            (r#"{"ipv4Pools":["a"]}"#, &["a"][..], &[][..]),
            (
                r#"{"type":"ebbtide","ipv4Pools":["a","b"],"ipv6Pools":["c"]}"#,
                &["a", "b"],
                &["c"],
            ),
            (
                r#"{"default_ipv4_ippool":["a"],"default_ipv6_ippool":["c"],"log_level":"DEBUG"}"#,
                &["a"],
                &["c"],
            ),
            (
                r#"{"ipv4Pools":["a"],"clean_gateway":false,"match_master_subnet":false}"#,
                &["a"],
                &[],
            ),
            (r#"{"type":"ebbtide"}"#, &[], &[]),
            (r#"{"ipv4Pools":null,"ipv4Pool":null}"#, &[], &[]),
        ] {
            for network in [r#""network":"default/x""#, r#""master":"ens5""#] {
                let choice = chosen(&format!(r#"{network},"ipam":{ipam}"#)).unwrap();
                let pools = match choice {
                    NetworkChoice::Named { pools, .. } | NetworkChoice::Inline { pools, .. } => {
                        pools
                    }
                    NetworkChoice::ByPod => panic!("{ipam}: {choice:?}"),
                };
                assert_eq!(
                    (&pools.ipv4[..], &pools.ipv6[..]),
                    (
                        &ipv4.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()[..],
                        &ipv6.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()[..],
                    ),
                    "{network} {ipam}"
                );
            }
        }
    }

    #[test]
    fn the_cloud_s_metadata_is_a_source_beside_pools() {
        for fields in [
            r#""master":"ens5","addresses":"metadata""#,
            r#""master":"ens5","addresses":"metadata","ipam":{"type":"ebbtide"}"#,
            r#""network":"default/x","ipam":{"type":"ebbtide","addresses":"metadata"}"#,
            r#""network":"default/x","addresses":"metadata","ipam":{"addresses":"metadata"}"#,
        ] {
            let (NetworkChoice::Named { pools, .. } | NetworkChoice::Inline { pools, .. }) =
                chosen(fields).unwrap()
            else {
                panic!("{fields}")
            };
            assert_eq!(pools.addresses, Addresses::Metadata, "{fields}");
        }
        for (fields, said) in [
            (r#""master":"ens5","addresses":"pools""#, "pools"),
            (
                r#""master":"ens5","ipam":{"addresses":"dhcp"}"#,
                "ipam.addresses",
            ),
            (r#""master":"ens5","addresses":7"#, "addresses"),
            (
                r#""master":"ens5","ipam":{"addresses":[{"address":"10.0.0.1/8"}]}"#,
                "ipam.addresses",
            ),
            (
                r#""master":"ens5","addresses":"metadata","ipam":{"ipv4Pools":["a"]}"#,
                "names pools (a)",
            ),
            (
                r#""network":"x","ipam":{"addresses":"metadata","ipv6Pools":["b"]}"#,
                "names pools (b)",
            ),
            (
                r#""master":"ens5","addresses":"metadata","ipam":{"type":"host-local"}"#,
                "addresses",
            ),
            (
                r#""addresses":"metadata""#,
                "without `network` and `master`",
            ),
            (
                r#""addresses":"metadata","prevResult":{"ips":[]}"#,
                "behind another plugin",
            ),
        ] {
            let failure = chosen(fields).unwrap_err();
            assert!(
                failure.message.contains(said),
                "{fields}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn what_would_mean_the_default_pools_in_silence_is_refused() {
        for (fields, said) in [
            (r#""master":"ens5","ipam":{"ipv4Pool":["a"]}"#, "ipv4Pool"),
            (r#""network":"x","ipam":{"ipv4pools":["a"]}"#, "ipv4pools"),
            (
                r#""network":"x","ipam":{"default_ipv4_ippools":["a"]}"#,
                "default_ipv4_ippools",
            ),
            (
                r#""master":"ens5","ipam":{"ranges":[[{"subnet":"10.0.0.0/8"}]]}"#,
                "ranges",
            ),
            (
                r#""network":"x","ipam":{"clean_gateway":true}"#,
                "clean_gateway",
            ),
            (
                r#""network":"x","ipam":{"ipv4Pools":"a"}"#,
                "ipam.ipv4Pools",
            ),
            (
                r#""network":"x","ipam":{"ipv4Pools":["a"],"default_ipv4_ippool":["b"]}"#,
                "duplicate",
            ),
            (r#""ipam":{"ipv4Pools":["a"]}"#, "ipam.ipv4Pools"),
            (
                r#""ipam":{"type":"ebbtide","ipv6Pools":["a"]}"#,
                "ipam.ipv6Pools",
            ),
            (r#""ipam":{"ipv4Pool":["a"]}"#, "ipv4Pool"),
            (
                r#""prevResult":{"ips":[]},"ipam":{"ipv4Pools":["a"]}"#,
                "ipam.ipv4Pools",
            ),
            (
                r#""network":"x","prevResult":{"ips":[]},"ipam":{"ipv4Pools":["a"]}"#,
                "ipam.ipv4Pools",
            ),
        ] {
            let failure = chosen(fields).unwrap_err();
            let codes = [code::UNSUPPORTED_FIELD, code::INVALID_NETWORK_CONFIG];
            assert!(codes.contains(&failure.code), "{fields}: {}", failure.code);
            assert!(
                failure.message.contains(said),
                "{fields}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn what_is_another_ipam_plugin_s_is_left_to_it() {
        for ipam in [
            r#"{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/8"}]],"dataDir":"/x"}"#,
            r#"{"type":"whereabouts","range":"10.0.0.0/8"}"#,
            r#"{"type":"static","addresses":[{"address":"10.10.0.1/24","gateway":"10.10.0.254"}]}"#,
        ] {
            chosen(&format!(r#""master":"ens5","ipam":{ipam}"#)).unwrap();
        }
    }
}
