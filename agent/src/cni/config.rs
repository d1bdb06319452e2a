//! The network configuration that a runtime passes to the plugin.

mod attachments;
mod choice;
mod pools;
mod runtime;

use std::net::IpAddr;

use ebbtide_plugin::{
    NAME as PLUGIN,
    cni::{UNNAMED, VERSIONS, code},
    object::{self, Object},
};
use ebbtide_types::{IpvlanMode, settings::PodMetadata};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Failure,
    nulls::{is_null_or_empty, without_nulls},
};

use attachments::VALID_ATTACHMENTS;
pub use choice::NetworkChoice;
use pools::Ipam;
pub use pools::NamedPools;
use runtime::RuntimeConfig;

/// The IPAM plugin that cannot serve Ebbtide's interfaces.
pub(super) const DHCP: &str = "dhcp";

/// The fields of a network configuration that Ebbtide reads; unknown ones are ignored, as the specification requires.
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
    /// Whether accepted sockets take marks ([`NetworkSpec`](ebbtide_kernel::podnet::NetworkSpec)).
    #[serde(default, rename = "acceptMarks")]
    pub(super) accept_marks: Option<bool>,
    /// How the pod reaches the cloud's metadata service, if not as the agent's configuration says.
    #[serde(default, rename = "metadataForPods")]
    pub(super) metadata: Option<PodMetadata>,
    /// Where the addresses come from, if not from pools; also in `ipam`.
    #[serde(default)]
    addresses: Option<String>,
    #[serde(default, deserialize_with = "object::optional")]
    ipam: Option<Ipam>,
    #[serde(
        default,
        rename = "runtimeConfig",
        deserialize_with = "object::optional"
    )]
    runtime: Option<RuntimeConfig>,
    /// Arguments that people and schedulers add for plugins, by their kinds (CONVENTIONS.md of the CNI specification).
    #[serde(default)]
    args: Option<Value>,
    /// The addresses that the runtime's variable `CNI_ARGS` requests.
    #[serde(skip)]
    asked_by_variable: Vec<IpAddr>,
    #[serde(skip)]
    prev_result: Option<Value>,
    /// As it was received: empty values in it must not be dropped.
    #[serde(skip)]
    valid_attachments: Option<Value>,
}

fn unnamed_version() -> String {
    UNNAMED.to_owned()
}

impl NetConf {
    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// If it is not JSON, lacks a required field, or has a `cniVersion` that is not supported.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut value: Value = serde_json::from_str(text).map_err(|e| {
            Failure::new(
                code::DECODING_FAILURE,
                format!("the network configuration is not valid JSON: {e}"),
                "it must be one JSON object, as the CNI specification describes",
            )
        })?;
        let mut apart = |key: &str| value.as_object_mut().and_then(|conf| conf.remove(key));
        // It is returned to the runtime unchanged.
        let prev_result = apart("prevResult").filter(|result| !is_null_or_empty(result));
        let [valid, example] = VALID_ATTACHMENTS.map(&mut apart);
        let Object(mut conf): Object<Self> = serde_path_to_error::deserialize(without_nulls(value))
            .map_err(|e| {
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
                    "see docs/configure.md for the fields that there are",
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
        conf.valid_attachments = valid.or(example);
        if conf.name.is_empty() {
            conf.name = conf.unnamed();
        }
        Ok(conf)
    }

    /// Returns a stable name for a network whose configuration has none.
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

    /// Whether the pod decides which networks it is in: then one ADD makes all of the pod's interfaces, and one DEL
    /// removes them.
    #[must_use]
    pub const fn is_by_pod(&self) -> bool {
        self.network.is_none() && self.master.is_none()
    }

    /// Returns the result of the plugins before this one in the chain.
    #[must_use]
    pub fn previous(&self) -> Option<&Value> {
        self.prev_result.as_ref()
    }

    /// Returns the name of the SpiderMultusConfig, if the configuration names one.
    #[must_use]
    pub fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    /// Returns the other plugin that is to assign the addresses, if there is one.
    #[must_use]
    pub fn ipam_plugin(&self) -> Option<&str> {
        let kind = self.ipam.as_ref().and_then(|ipam| ipam.kind.as_deref());
        kind.filter(|kind| *kind != PLUGIN)
    }

    /// Whether the addresses are not from the pools: another plugin made the interface, or assigns the addresses.
    /// (Ebbtide's own configuration gets its own result as `prevResult`, too.)
    #[must_use]
    pub fn is_chained(&self) -> bool {
        let is_chained = self.prev_result.is_some() && self.master.is_none();
        is_chained || self.ipam_plugin().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_the_specifications_code() {
        let head = r#""cniVersion":"1.0.0","name":"n""#;
        for (text, expected, named) in [
            ("{".to_owned(), code::DECODING_FAILURE, "JSON"),
            ("[]".to_owned(), code::INVALID_NETWORK_CONFIG, "object"),
            (
                r#"["1.0.0","n"]"#.to_owned(),
                code::INVALID_NETWORK_CONFIG,
                "object",
            ),
            ("null".to_owned(), code::INVALID_NETWORK_CONFIG, "object"),
            (
                format!(r#"{{{head},"master":"b","ipam":["ebbtide"]}}"#),
                code::INVALID_NETWORK_CONFIG,
                "`ipam`",
            ),
            (
                format!(r#"{{{head},"runtimeConfig":[["10.0.0.1"]]}}"#),
                code::INVALID_NETWORK_CONFIG,
                "`runtimeConfig`",
            ),
            (
                format!(r#"{{{head},"runtimeConfig":{{"portMappings":[[80]]}}}}"#),
                code::INVALID_NETWORK_CONFIG,
                "`runtimeConfig.portMappings[0]`",
            ),
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
            "addresses",
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
                assert_eq!(conf.is_chained(), plain.is_chained(), "{text}");
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
    fn another_plugin_s_addresses_are_told_from_the_pools() {
        for (fields, chained, ipam) in [
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
                (conf.is_chained(), conf.ipam_plugin()),
                (chained, ipam),
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
