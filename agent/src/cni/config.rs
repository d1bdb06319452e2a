//! The network configuration.

use std::net::IpAddr;

use ebbtide_plugin::cni::{VERSIONS, code};
use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use crate::{catalog::host_address, netlink::link::IpvlanMode};

/// The fields of a network configuration that are ours; unknown ones are tolerated, as the
/// specification asks.
#[derive(Clone, Debug, Deserialize)]
pub struct NetConf {
    /// Version of the specification this configuration is written for.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// Name of the network configuration.
    pub name: String,
    /// Name of a SpiderMultusConfig, `namespace/name` or `name`.
    #[serde(default)]
    network: Option<String>,
    #[serde(default)]
    master: Option<String>,
    #[serde(default)]
    mode: Option<IpvlanMode>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    ipam: Option<Ipam>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Option<RuntimeConfig>,
    #[serde(default, rename = "prevResult")]
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Ipam {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, rename = "ipv4Pools")]
    ipv4_pools: Vec<String>,
    #[serde(default, rename = "ipv6Pools")]
    ipv6_pools: Vec<String>,
}

/// What a runtime adds for plugins that declare the capability (CONVENTIONS.md of the CNI specification).
#[derive(Clone, Debug, Deserialize)]
struct RuntimeConfig {
    /// Of the capability `ips`: addresses, with or without a prefix length.
    #[serde(default)]
    ips: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// The network a configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChoice {
    /// By the pod's annotations, or the default network: the cluster's own CNI.
    ByPod,
    /// By name, from the manifests.
    Named(String),
    /// Described in the configuration itself.
    Inline {
        /// The NIC.
        master: String,
        /// Mode of its children.
        mode: IpvlanMode,
        /// MTU in bytes.
        mtu: Option<u32>,
        /// IPv4 pools by name; the default pools if both lists are empty.
        ipv4_pools: Vec<String>,
        /// IPv6 pools by name.
        ipv6_pools: Vec<String>,
    },
}

impl NetConf {
    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// When it is not JSON, lacks a required field, or is of a version that is not spoken.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let value: Value = serde_json::from_str(text).map_err(|e| {
            Failure::new(
                code::DECODING_FAILURE,
                format!("the network configuration is not valid JSON: {e}"),
                "it must be one JSON object, as the CNI specification describes",
            )
        })?;
        let conf: Self = serde_path_to_error::deserialize(value).map_err(|e| {
            let field = e.path().to_string();
            let place = if field == "." {
                String::new()
            } else {
                format!("`{field}`: ")
            };
            Failure::new(
                code::INVALID_NETWORK_CONFIG,
                format!(
                    "the network configuration is not valid: {place}{}",
                    e.inner()
                ),
                "see the README for the fields that there are",
            )
        })?;
        if !VERSIONS.contains(&conf.cni_version.as_str()) {
            return Err(Failure::new(
                code::INCOMPATIBLE_VERSION,
                format!("cniVersion {:?} is not supported", conf.cni_version),
                format!("supported are {}", VERSIONS.join(", ")),
            ));
        }
        if conf.name.is_empty() {
            return Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "the network configuration has an empty `name`",
                "give the network a name that is unique on this node",
            ));
        }
        Ok(conf)
    }

    /// Whether the configuration is of version `minimum` or newer.
    #[must_use]
    pub fn is_at_least(&self, minimum: &str) -> bool {
        let rank = |version| VERSIONS.iter().position(|v| *v == version);
        rank(self.cni_version.as_str()) >= rank(minimum)
    }

    /// The network that is asked for.
    ///
    /// # Errors
    /// When none is, or more than one way is used to name it, or something is asked for that this
    /// plugin does not do.
    pub fn choice(&self) -> Result<NetworkChoice, Failure> {
        if let (Some(_), Some(master)) = (&self.prev_result, &self.master) {
            return Err(unsupported(
                "master",
                master,
                "behind another plugin (`prevResult`) ebbtide adds to the interface that is there: \
                 leave `master` out, or put ebbtide first",
            ));
        }
        match (&self.network, &self.master) {
            (Some(name), None) => {
                let own = [("mode", self.mode.is_some()), ("mtu", self.mtu.is_some())];
                if let Some((field, _)) = own.iter().find(|(_, set)| *set) {
                    return Err(unsupported(
                        field,
                        "a value",
                        "with `network`, it is set in the SpiderMultusConfig of that name",
                    ));
                }
                Ok(NetworkChoice::Named(name.clone()))
            }
            (None, Some(master)) => {
                let ipam = self.ipam.as_ref();
                Ok(NetworkChoice::Inline {
                    master: master.clone(),
                    mode: self.mode.unwrap_or_default(),
                    mtu: self.mtu.filter(|mtu| *mtu != 0),
                    ipv4_pools: ipam.map(|i| i.ipv4_pools.clone()).unwrap_or_default(),
                    ipv6_pools: ipam.map(|i| i.ipv6_pools.clone()).unwrap_or_default(),
                })
            }
            (Some(_), Some(_)) => Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "the network configuration has both `network` and `master`",
                "name a SpiderMultusConfig with `network`, or describe the network with `master`",
            )),
            (None, None) => Ok(NetworkChoice::ByPod),
        }
    }

    /// Whether the configuration leaves it to the pod which networks it is in: then one ADD makes
    /// all of the pod's interfaces, and one DEL removes them.
    #[must_use]
    pub const fn is_by_pod(&self) -> bool {
        self.network.is_none() && self.master.is_none()
    }

    /// What the plugins before this one in the chain made.
    #[must_use]
    pub fn previous(&self) -> Option<&Value> {
        self.prev_result.as_ref()
    }

    /// The addresses that the runtime asks for.
    ///
    /// # Errors
    /// Names one that is none.
    pub fn ips(&self) -> Result<Vec<IpAddr>, Failure> {
        let asked = self.runtime.iter().flat_map(|runtime| &runtime.ips);
        asked
            .map(|text| {
                host_address(text).ok_or_else(|| {
                    Failure::new(
                        code::INVALID_NETWORK_CONFIG,
                        format!("runtimeConfig.ips: {text:?} is not an address"),
                        "correct the pod's request (`ips` in k8s.v1.cni.cncf.io/networks)",
                    )
                })
            })
            .collect()
    }

    /// The network's name among the manifests, if the configuration gives one.
    #[must_use]
    pub fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    /// The IPAM plugin of others that is to give the addresses.
    #[must_use]
    pub fn ipam_plugin(&self) -> Option<&str> {
        let kind = self.ipam.as_ref().map(|ipam| ipam.kind.as_str());
        kind.filter(|kind| *kind != "ebbtide")
    }

    /// Whether the addresses are not from the pools: another plugin made the interface, or gives the
    /// addresses. (A configuration of ours is given its own result as `prevResult`, too.)
    #[must_use]
    pub fn is_guest(&self) -> bool {
        let is_chained = self.prev_result.is_some() && self.master.is_none();
        is_chained || self.ipam_plugin().is_some()
    }

    /// For GC: the attachments that are to stay, as container ID and interface.
    ///
    /// # Errors
    /// When the list is missing: taking that for an empty one would remove every pod's network.
    pub fn valid_attachments(&self) -> Result<Vec<(&str, &str)>, Failure> {
        match &self.valid_attachments {
            Some(list) => Ok(list
                .iter()
                .map(|a| (a.container_id.as_str(), a.ifname.as_str()))
                .collect()),
            None => Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "GC without `cni.dev/valid-attachments`",
                "the runtime must list the attachments that are to stay, even if there are none",
            )),
        }
    }
}

fn unsupported(key: &str, value: &str, way_out: &str) -> Failure {
    Failure::new(
        code::UNSUPPORTED_FIELD,
        format!("the network configuration's `{key}` is {value:?}, which is not supported"),
        way_out,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_named_or_described() {
        let named = NetConf::parse(
            r#"{"cniVersion":"1.0.0","name":"n","type":"ebbtide","network":"default/ipvlan-ens5"}"#,
        )
        .unwrap();
        assert_eq!(
            named.choice().unwrap(),
            NetworkChoice::Named("default/ipvlan-ens5".into())
        );
        let by_pod =
            NetConf::parse(r#"{"cniVersion":"1.0.0","name":"n","type":"ebbtide"}"#).unwrap();
        assert_eq!(by_pod.choice().unwrap(), NetworkChoice::ByPod);
        assert!(by_pod.is_by_pod() && !named.is_by_pod());
        let inline = NetConf::parse(
            r#"{"cniVersion":"1.0.0","name":"n","type":"ebbtide","master":"ens5","mode":"l2",
                "ipam":{"type":"ebbtide","ipv4Pools":["a"]},"unknown":{"tolerated":true}}"#,
        )
        .unwrap();
        assert_eq!(
            inline.choice().unwrap(),
            NetworkChoice::Inline {
                master: "ens5".into(),
                mode: IpvlanMode::L2,
                mtu: None,
                ipv4_pools: vec!["a".into()],
                ipv6_pools: vec![],
            }
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_the_specifications_code() {
        let head = r#""cniVersion":"1.0.0","name":"n""#;
        for (text, expected, named) in [
            ("{".to_owned(), code::DECODING_FAILURE, "JSON"),
            (
                r#"{"name":"n"}"#.to_owned(),
                code::INVALID_NETWORK_CONFIG,
                "cniVersion",
            ),
            (
                r#"{"cniVersion":"1.0.0"}"#.to_owned(),
                code::INVALID_NETWORK_CONFIG,
                "name",
            ),
            (
                r#"{"cniVersion":"9.9.9","name":"n"}"#.to_owned(),
                code::INCOMPATIBLE_VERSION,
                "9.9.9",
            ),
            (
                format!(r#"{{{head},"network":"a","master":"b"}}"#),
                code::INVALID_NETWORK_CONFIG,
                "both",
            ),
            (
                format!(r#"{{{head},"master":"b","mode":"l4"}}"#),
                code::INVALID_NETWORK_CONFIG,
                "mode",
            ),
            (
                format!(r#"{{{head},"master":"b","prevResult":{{}}}}"#),
                code::UNSUPPORTED_FIELD,
                "master",
            ),
        ] {
            let failure = NetConf::parse(&text)
                .and_then(|conf| conf.choice())
                .unwrap_err();
            assert_eq!(failure.code, expected, "{text}: {}", failure.message);
            assert!(
                failure.message.contains(named),
                "{text}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn a_runtime_asks_for_addresses_with_and_without_a_prefix_length() {
        let ips = |list: &str| {
            let text = format!(
                r#"{{"cniVersion":"1.0.0","name":"n","network":"a","runtimeConfig":{{"ips":{list}}}}}"#
            );
            NetConf::parse(&text).and_then(|conf| conf.ips())
        };
        let expected: Vec<IpAddr> = ["10.0.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(ips(r#"["10.0.0.5/24","fd00::5"]"#), Ok(expected));
        assert_eq!(ips("[]"), Ok(vec![]));
        assert!(ips(r#"["x"]"#).unwrap_err().message.contains("\"x\""));
    }

    #[test]
    fn another_plugin_s_addresses_are_told_from_the_pools() {
        for (fields, guest, ipam) in [
            (r#""network":"a""#, false, None),
            (
                r#""master":"b","ipam":{"type":"ebbtide"},"prevResult":{}"#,
                false,
                None,
            ),
            (
                r#""master":"b","ipam":{"type":"host-local"}"#,
                true,
                Some("host-local"),
            ),
            (r#""prevResult":{"ips":[]}"#, true, None),
            (r#""network":"a","prevResult":{}"#, true, None),
        ] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n",{fields}}}"#);
            let conf = NetConf::parse(&text).unwrap();
            assert_eq!(
                (conf.is_guest(), conf.ipam_plugin()),
                (guest, ipam),
                "{text}"
            );
        }
    }

    #[test]
    fn gc_without_a_list_is_refused() {
        let conf = NetConf::parse(r#"{"cniVersion":"1.1.0","name":"n","network":"a"}"#).unwrap();
        assert!(conf.valid_attachments().is_err());
        assert!(conf.is_at_least("0.4.0") && conf.is_at_least("1.1.0"));
    }
}
