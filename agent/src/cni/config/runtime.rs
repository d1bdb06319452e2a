//! What a runtime adds to a configuration: the wishes of the pod.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_plugin::{cni::code, object};
use serde::Deserialize;
use serde_json::Value;

use super::NetConf;
use crate::{catalog::host_address, cni::Failure};

/// What a runtime adds for plugins that declare the capability (CONVENTIONS.md of the CNI specification).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RuntimeConfig {
    /// Of the capability `ips`: addresses, with or without a prefix length.
    #[serde(default)]
    ips: Vec<String>,
    /// Of the capability `portMappings`.
    #[serde(default, rename = "portMappings", deserialize_with = "object::list")]
    port_mappings: Vec<PortMapping>,
    /// Of the capability `bandwidth`: bits and bytes by name, 0 for what is not limited.
    #[serde(default)]
    bandwidth: BTreeMap<String, Value>,
}

/// A `hostPort` of a pod's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct PortMapping {
    /// The node's port; 0: none. containerd and nerdctl write the name of the field in Go (`PortMapping` in go-cni has
    /// no other), which Go's plugins read just so; CRI-O writes it as the convention does.
    #[serde(default, rename = "hostPort", alias = "HostPort")]
    host_port: u16,
}

impl NetConf {
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
    pub(in crate::cni) fn host_ports(&self) -> Vec<u16> {
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
    pub(in crate::cni) fn asks_for_bandwidth(&self) -> bool {
        let mut asked = self
            .runtime
            .iter()
            .flat_map(|runtime| runtime.bandwidth.values());
        asked.any(|rate| rate.as_f64().is_some_and(|rate| rate > 0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_asked_for_by_any_rate_that_is_not_zero() {
        for (runtime, asks) in [
            ("{}", false),
            (r#"{"bandwidth":null}"#, false),
            (
                r#"{"bandwidth":{"IngressRate":0,"EgressRate":10000000}}"#,
                true,
            ),
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
    fn host_ports_are_read_as_each_runtime_writes_them() {
        for (mappings, ports) in [
            ("null", [].as_slice()),
            ("[]", &[]),
            (
                r#"[{"HostPort":8090,"ContainerPort":80,"Protocol":"tcp","HostIP":""}]"#,
                &[8090],
            ),
            (
                r#"[{"hostPort":53,"containerPort":53,"protocol":"udp"},{"hostPort":80,"containerPort":80,
                     "protocol":"tcp","hostIP":"10.0.0.1"}]"#,
                &[53, 80],
            ),
            (r#"[{"HostPort":0,"ContainerPort":80}]"#, &[]),
            (r#"[{"containerPort":80}]"#, &[]),
        ] {
            let text = format!(
                r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{{"portMappings":{mappings}}}}}"#
            );
            let conf = NetConf::parse(&text).unwrap();
            assert_eq!(conf.host_ports(), ports, "{text}");
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
}
