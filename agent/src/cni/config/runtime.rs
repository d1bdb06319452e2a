//! The pod's requests that a runtime adds to a configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_ipam::catalog::host_address;
use ebbtide_plugin::{cni::code, object};
use ebbtide_types::bandwidth::{Bandwidth, BandwidthError, Rate};
use serde::Deserialize;
use serde_json::Value;

use super::NetConf;
use crate::cni::{Failure, bandwidth};

/// The fields that a runtime adds for plugins that declare a capability (CONVENTIONS.md of the CNI specification).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RuntimeConfig {
    /// Capability `ips`: addresses, with or without a prefix length.
    #[serde(default)]
    ips: Vec<String>,
    /// Capability `portMappings`.
    #[serde(default, rename = "portMappings", deserialize_with = "object::list")]
    port_mappings: Vec<PortMapping>,
    /// Capability `bandwidth`: `ingressRate`, `ingressBurst`, `egressRate`, `egressBurst` in bits, 0 for no limit.
    /// containerd writes the names of the fields in Go, as with the ports.
    #[serde(default)]
    bandwidth: BTreeMap<String, Value>,
}

/// A pod's `hostPort`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct PortMapping {
    /// The node's port; 0: none. containerd and nerdctl write the name of the field in Go (`PortMapping` in go-cni has
    /// no other), which Go's plugins accept, too; CRI-O writes it as the convention says.
    #[serde(default, rename = "hostPort", alias = "HostPort")]
    host_port: u16,
}

impl NetConf {
    /// Returns the requested addresses: from the capability `ips`, from `args.cni.ips`, and from the variable
    /// `CNI_ARGS` ([`Self::read_args`]); CONVENTIONS.md of the CNI specification has all three.
    ///
    /// # Errors
    /// The first value that is not an address.
    pub fn ips(&self) -> Result<Vec<IpAddr>, Failure> {
        let refused = |place: &str, value: &dyn std::fmt::Display| {
            Failure::new(
                code::INVALID_NETWORK_CONFIG,
                format!("{place}: {value} is not an address"),
                "correct the request (of a pod: `ips` in k8s.v1.cni.cncf.io/networks); nothing was given out",
            )
        };
        let runtime = self.runtime.iter().flat_map(|runtime| &runtime.ips);
        let mut all = runtime
            .map(|text| {
                let place = "runtimeConfig.ips";
                host_address(text).ok_or_else(|| refused(place, &format_args!("{text:?}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let place = "args.cni.ips";
        let args = self.args.as_ref();
        match args.and_then(|args| args.pointer("/cni/ips")) {
            None => {}
            Some(Value::Array(list)) => {
                for each in list {
                    let read = each.as_str().and_then(host_address);
                    all.push(read.ok_or_else(|| refused(place, each))?);
                }
            }
            Some(other) => return Err(refused(place, other)),
        }
        all.extend(&self.asked_by_variable);
        // The same address may be requested in several places.
        let mut seen = BTreeSet::new();
        all.retain(|address| seen.insert(*address));
        Ok(all)
    }

    /// Reads the addresses that the variable `CNI_ARGS` requests (`IP=ADDRESS,ADDRESS`).
    ///
    /// # Errors
    /// The first value that is not an address.
    pub fn read_args(&mut self, args: &str) -> Result<(), Failure> {
        let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        let asked = pairs.filter(|(key, _)| *key == "IP");
        let texts = asked.flat_map(|(_, list)| list.split(',').map(str::trim));
        let texts = texts.filter(|text| !text.is_empty());
        let read = texts.map(|text| {
            host_address(text).ok_or_else(|| {
                Failure::new(
                    code::INVALID_ENVIRONMENT,
                    format!("CNI_ARGS: IP={text:?} is not an address"),
                    "the runtime must give addresses, with or without a prefix length and with commas between; \
                     nothing was given out",
                )
            })
        });
        self.asked_by_variable = read.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Returns the node's ports that the pod requests. A plugin that serves them has the capability instead of
    /// Ebbtide.
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

    /// Returns the limit of the pod's bandwidth that the runtime requests, if it does.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub(in crate::cni) fn bandwidth(&self) -> Result<Option<Bandwidth>, Failure> {
        let given = self.runtime.iter().flat_map(|runtime| &runtime.bandwidth);
        let given: Vec<_> = given.collect();
        let number = |name: &str| {
            let mut all = given.iter();
            let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name));
            found
                .map(|(_, value)| bits(value).ok_or(BandwidthError::NoNumber(value.to_string())))
                .transpose()
        };
        let named = |name: &str, e: BandwidthError| {
            bandwidth::refused(&format!("runtimeConfig.bandwidth.{name}"), &e)
        };
        let egress = || Rate::egress(number("egressRate")?.unwrap_or(0), number("egressBurst")?);
        let ingress =
            || Rate::ingress(number("ingressRate")?.unwrap_or(0), number("ingressBurst")?);
        Ok(Bandwidth::of(
            egress().map_err(|e| named("egressRate", e))?,
            ingress().map_err(|e| named("ingressRate", e))?,
        ))
    }
}

/// Returns a whole number of bits, also of one that is written as 1e7.
fn bits(value: &Value) -> Option<u64> {
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..=1e18).contains(number);
    let number = value.as_f64().filter(whole);
    value.as_u64().or(number.map(|number| number as u64))
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
                NetConf::parse(&text)
                    .unwrap()
                    .bandwidth()
                    .unwrap()
                    .is_some(),
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
    fn addresses_are_asked_for_in_all_three_ways_of_the_conventions() {
        let ips = |fields: &str, args: &str| {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","network":"a"{fields}}}"#);
            let mut conf = NetConf::parse(&text)?;
            conf.read_args(args)?;
            conf.ips()
        };
        for (fields, args, expected) in [
            ("", "", &[][..]),
            (
                "",
                "IgnoreUnknown=1;IP=10.0.0.5/24;K8S_POD_NAME=a",
                &["10.0.0.5"],
            ),
            (
                "",
                "IP=10.0.0.5, fd00::5;MAC=02:00:00:00:00:01",
                &["10.0.0.5", "fd00::5"],
            ),
            ("", "IP=", &[]),
            (
                r#","args":{"cni":{"ips":["10.0.0.5/24","fd00::5"]}}"#,
                "",
                &["10.0.0.5", "fd00::5"],
            ),
            (r#","args":{"cni":{"ips":null}}"#, "", &[]),
            (r#","args":{"cni":{"ips":[]}}"#, "", &[]),
            (r#","args":{"other":{"ips":["x"]}}"#, "", &[]),
            (r#","args":"of others""#, "", &[]),
            (
                r#","args":{"cni":{"ips":["10.0.0.5"]}},"runtimeConfig":{"ips":["10.0.0.5/24"]}"#,
                "IP=10.0.0.5",
                &["10.0.0.5"],
            ),
        ] {
            let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(ips(fields, args), Ok(expected), "{fields} {args}");
        }
        for (fields, args, code, said) in [
            ("", "IP=lan", code::INVALID_ENVIRONMENT, "\"lan\""),
            (
                r#","args":{"cni":{"ips":["lan"]}}"#,
                "",
                code::INVALID_NETWORK_CONFIG,
                "args.cni.ips",
            ),
            (
                r#","args":{"cni":{"ips":[5]}}"#,
                "",
                code::INVALID_NETWORK_CONFIG,
                "args.cni.ips",
            ),
            (
                r#","args":{"cni":{"ips":"10.0.0.5"}}"#,
                "",
                code::INVALID_NETWORK_CONFIG,
                "args.cni.ips",
            ),
        ] {
            let failure = ips(fields, args).unwrap_err();
            assert_eq!(failure.code, code, "{fields} {args}");
            assert!(failure.message.contains(said), "{}", failure.message);
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
