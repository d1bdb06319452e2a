//! The network configuration.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_plugin::{
    NAME as PLUGIN,
    cni::{UNNAMED, VERSIONS, code},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Failure,
    nothing::{is_nothing, without_nothing},
};
use crate::{catalog::host_address, netlink::link::IpvlanMode};

/// An IPAM plugin that cannot serve an interface of ours.
pub(super) const DHCP: &str = "dhcp";

/// The fields of a network configuration that are ours; unknown ones are tolerated, as the
/// specification asks.
#[derive(Clone, Debug, Deserialize)]
pub struct NetConf {
    /// Version of the specification this configuration is written for.
    #[serde(rename = "cniVersion", default = "unnamed_version")]
    pub cni_version: String,
    /// Name of the network configuration.
    #[serde(default)]
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
    /// Whether accepted sockets take marks ([`NetworkSpec`](crate::podnet::NetworkSpec)).
    #[serde(default, rename = "acceptMarks")]
    pub(super) accept_marks: Option<bool>,
    #[serde(default)]
    ipam: Option<Ipam>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Option<RuntimeConfig>,
    #[serde(skip)]
    prev_result: Option<Value>,
    // The specification of 1.1.0 has one name in its text and another in its examples.
    #[serde(
        default,
        rename = "cni.dev/valid-attachments",
        alias = "cni.dev/attachments"
    )]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

fn unnamed_version() -> String {
    UNNAMED.to_owned()
}

#[derive(Clone, Debug, Deserialize)]
struct Ipam {
    /// The pools, without one.
    #[serde(default, rename = "type")]
    kind: Option<String>,
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
    /// Of the capability `portMappings`.
    #[serde(default, rename = "portMappings")]
    port_mappings: Vec<PortMapping>,
    /// Of the capability `bandwidth`: bits and bytes by name, 0 for what is not limited.
    #[serde(default)]
    bandwidth: BTreeMap<String, Value>,
}

/// A `hostPort` of a pod's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct PortMapping {
    /// The node's port; 0: none.
    #[serde(default, rename = "hostPort")]
    pub(super) host_port: u16,
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
        let mut value: Value = serde_json::from_str(text).map_err(|e| {
            Failure::new(
                code::DECODING_FAILURE,
                format!("the network configuration is not valid JSON: {e}"),
                "it must be one JSON object, as the CNI specification describes",
            )
        })?;
        // It goes back to the runtime as it came.
        let prev_result = value
            .as_object_mut()
            .and_then(|conf| conf.remove("prevResult"));
        let prev_result = prev_result.filter(|result| !is_nothing(result));
        // libcni gives both names: the one of the specification's text counts.
        if let Some(conf) = value.as_object_mut()
            && conf.contains_key("cni.dev/valid-attachments")
        {
            conf.remove("cni.dev/attachments");
        }
        let mut conf: Self =
            serde_path_to_error::deserialize(without_nothing(value)).map_err(|e| {
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
        conf.prev_result = prev_result;
        if conf.name.is_empty() {
            conf.name = conf.unnamed();
        }
        Ok(conf)
    }

    /// What a network is called whose configuration does not say: as long as it stays the same, so does this.
    fn unnamed(&self) -> String {
        match (&self.network, &self.master) {
            (Some(network), _) => network.clone(),
            (None, Some(master)) => format!("{PLUGIN}-{master}"),
            (None, None) => format!("{PLUGIN}-unnamed"),
        }
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
        if self.ipam_plugin() == Some(DHCP) {
            return Err(unsupported(
                "ipam.type",
                DHCP,
                "its daemon asks by an interface that is there before it has an address, and all \
                 children of a NIC have one MAC address, by which a DHCP server cannot tell them apart: \
                 leave `ipam` out for addresses of the pools, or use host-local, static or whereabouts",
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

    /// The ports of the node that the pod asks for. Who serves them has the capability in our place.
    pub(super) fn host_ports(&self) -> Vec<u16> {
        let asked = self
            .runtime
            .iter()
            .flat_map(|runtime| &runtime.port_mappings);
        asked
            .map(|port| port.host_port)
            .filter(|port| *port != 0)
            .collect()
    }

    /// Whether the pod's traffic is to be limited. Who does that has the capability in our place.
    pub(super) fn asks_for_bandwidth(&self) -> bool {
        let mut asked = self
            .runtime
            .iter()
            .flat_map(|runtime| runtime.bandwidth.values());
        asked.any(|rate| rate.as_f64().is_some_and(|rate| rate > 0.0))
    }

    /// The network's name among the manifests, if the configuration gives one.
    #[must_use]
    pub fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    /// The IPAM plugin of others that is to give the addresses.
    #[must_use]
    pub fn ipam_plugin(&self) -> Option<&str> {
        let kind = self.ipam.as_ref().and_then(|ipam| ipam.kind.as_deref());
        kind.filter(|kind| *kind != PLUGIN)
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
                r#"{"name":7}"#.to_owned(),
                code::INVALID_NETWORK_CONFIG,
                "name",
            ),
            (
                format!(r#"{{{head},"master":"b","ipam":{{"type":"dhcp"}}}}"#),
                code::UNSUPPORTED_FIELD,
                "dhcp",
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
                format!(r#"{{{head},"master":"b","prevResult":{{"ips":[]}}}}"#),
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
    fn absent_empty_and_null_say_the_same() {
        let plain = NetConf::parse(r#"{"cniVersion":"1.0.0","name":"n","master":"b"}"#).unwrap();
        for field in [
            "network",
            "mode",
            "mtu",
            "ipam",
            "runtimeConfig",
            "prevResult",
            "dns",
            "args",
        ] {
            for nothing in ["null", "\"\"", "{}"] {
                let text = format!(
                    r#"{{"cniVersion":"1.0.0","name":"n","master":"b","{field}":{nothing}}}"#
                );
                let conf =
                    NetConf::parse(&text).unwrap_or_else(|e| panic!("{text}: {}", e.message));
                assert_eq!(conf.choice(), plain.choice(), "{text}");
                assert_eq!(conf.is_guest(), plain.is_guest(), "{text}");
                assert_eq!(conf.ips(), Ok(vec![]), "{text}");
            }
        }
        for (inside, nothing) in [
            ("ipam", r#"{"type":null,"ipv4Pools":null,"ipv6Pools":[]}"#),
            ("ipam", r#"{"type":"","ipv4Pools":[""]}"#),
            ("ipam", r#"{"type":"ebbtide"}"#),
            (
                "runtimeConfig",
                r#"{"ips":null,"portMappings":[],"bandwidth":null}"#,
            ),
            (
                "runtimeConfig",
                r#"{"ips":[""],"portMappings":null,"mac":""}"#,
            ),
        ] {
            let text =
                format!(r#"{{"cniVersion":"1.0.0","name":"n","master":"b","{inside}":{nothing}}}"#);
            let conf = NetConf::parse(&text).unwrap_or_else(|e| panic!("{text}: {}", e.message));
            assert_eq!(conf.choice(), plain.choice(), "{text}");
            assert_eq!(conf.ipam_plugin(), None, "{text}");
            assert_eq!(conf.ips(), Ok(vec![]), "{text}");
        }
        for (text, version, name) in [
            (r#"{"network":"default/a"}"#, "0.1.0", "default/a"),
            (
                r#"{"cniVersion":"","name":null,"master":"b"}"#,
                "0.1.0",
                "ebbtide-b",
            ),
            (
                r#"{"cniVersion":null,"name":""}"#,
                "0.1.0",
                "ebbtide-unnamed",
            ),
            (r#"{"cniVersion":"0.3.0","name":"n"}"#, "0.3.0", "n"),
        ] {
            let conf = NetConf::parse(text).unwrap();
            assert_eq!(
                (conf.cni_version.as_str(), conf.name.as_str()),
                (version, name)
            );
        }
    }

    #[test]
    fn attachments_that_are_to_stay_are_found_by_both_names_and_never_taken_for_none() {
        let list = |fields: &str| {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n",{fields}}}"#);
            let conf = NetConf::parse(&text).unwrap();
            conf.valid_attachments().map(|all| all.len())
        };
        let one = r#"[{"containerID":"c","ifname":"eth0"}]"#;
        assert_eq!(list(&format!(r#""cni.dev/attachments":{one}"#)), Ok(1));
        let both = format!(r#""cni.dev/valid-attachments":{one},"cni.dev/attachments":{one}"#);
        assert_eq!(list(&both), Ok(1));
        assert_eq!(list(r#""cni.dev/valid-attachments":[]"#), Ok(0));
        assert!(list(r#""cni.dev/valid-attachments":null"#).is_err());
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
    fn a_bandwidth_is_asked_for_by_any_rate_that_is_not_zero() {
        for (runtime, asks) in [
            ("{}", false),
            (r#"{"bandwidth":null}"#, false),
            (r#"{"bandwidth":{}}"#, false),
            (
                r#"{"bandwidth":{"ingressRate":0,"ingressBurst":0,"egressRate":0,"egressBurst":0}}"#,
                false,
            ),
            (r#"{"bandwidth":{"ingressRate":10000000}}"#, true),
            (
                r#"{"bandwidth":{"ingressRate":0,"egressRate":1e7,"egressBurst":1}}"#,
                true,
            ),
        ] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{runtime}}}"#);
            assert_eq!(
                NetConf::parse(&text).unwrap().asks_for_bandwidth(),
                asks,
                "{text}"
            );
        }
    }

    #[test]
    fn another_plugin_s_addresses_are_told_from_the_pools() {
        for (fields, guest, ipam) in [
            (r#""network":"a""#, false, None),
            (
                r#""master":"b","ipam":{"type":"ebbtide"},"prevResult":{"ips":[]}"#,
                false,
                None,
            ),
            (
                r#""master":"b","ipam":{"type":"host-local"}"#,
                true,
                Some("host-local"),
            ),
            (r#""prevResult":{"ips":[]}"#, true, None),
            (r#""network":"a","prevResult":{"dns":{}}"#, true, None),
            (r#""network":"a","prevResult":{}"#, false, None),
            (r#""network":"a","prevResult":null"#, false, None),
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
