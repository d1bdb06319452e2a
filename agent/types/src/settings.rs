//! The settings of a node's administrator, and the defaults.

mod cloud;
mod links;
mod local_rule;
mod marks;
mod metrics;
mod pod_metadata;
mod ports;
mod tables;

use std::{fs, path::Path};

use ebbtide_layout::{DEFAULT_HOST_BYPASS_MARK, DEFAULT_MARK, DEFAULT_NIC_MARKS, DEFAULT_POD_NICS};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use cloud::CloudSetting;
pub use links::LinkNames;
pub use local_rule::LocalRule;
pub use marks::Marks;
pub use metrics::{ListenAddress, MetricsSettings, NoListenAddress};
pub use pod_metadata::PodMetadata;
pub use ports::PortRange;
pub use tables::{POD_TABLES, POD_TABLES_OFFSET, is_kernel_table};

use crate::{NetworkRef, yaml};

/// The agent's configuration file, YAML. Every field has a default.
///
/// # Examples
///
/// ```
/// use ebbtide_types::settings::Settings;
///
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("ebbtide.yaml");
/// std::fs::write(&path, "cooldownSeconds: 300\nserviceCIDRs: [10.96.0.0/12]\n")?;
/// let settings = Settings::load(&path)?;
/// assert_eq!(settings.cooldown_seconds, 300);
/// assert_eq!(settings.rule_priority, Settings::default().rule_priority);
///
/// std::fs::write(&path, "serviceCIDR: 10.96.0.0/12\n")?;
/// let error = Settings::load(&path).expect_err("no such field").to_string();
/// assert!(error.contains("serviceCIDR"), "{error}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Settings {
    /// The network of pods that request none: `namespace/name` or `name` of a SpiderMultusConfig. Also for CNI
    /// configurations that name none.
    pub default_network: Option<NetworkRef>,
    /// Networks of the cluster's Services: pods reach them through their node's Service proxy.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<IpNet>,
    /// Further networks that pods reach through their node. By default the link-local block:
    /// a node-local DNS cache and the cloud's metadata service are there.
    #[serde(rename = "viaHostCIDRs")]
    pub via_host_cidrs: Vec<IpNet>,
    /// The bits of a packet's mark that mean "came in by the veth", in pods only.
    pub mark: u32,
    /// The bits of a packet's mark that mean "its replies take the host-stack bypass", in pods only.
    pub host_bypass_mark: u32,
    /// The adjacent bits of a packet's mark that hold the number of the NIC by which its connection came, in pods only:
    /// `n` bits serve 2^n - 1 NICs. A request by a further NIC is answered by the node's routing table.
    pub pod_nic_marks: u32,
    /// The bits of a packet's mark that identify its NIC, in the host only: any bits may be set. One of them is for
    /// replies, so `n` bits serve 2^(n-1) - 2 NICs.
    pub nic_marks: u32,
    /// Software whose mark bits may be used, since it is not on this node: `calico`, `cilium`...
    pub ignore_marks_of: Vec<String>,
    /// Routing table, in pods, for replies to packets that came in by the veth. Further interfaces of a pod use those
    /// after it.
    pub reply_table: u32,
    /// Routing table, in the host, with the routes to this node's pods. The table of the NIC with interface index `i`
    /// is this plus `i`: 257 at least, so that no sum is one of the kernel's own tables. The one before is for pods whose
    /// address the node has as well.
    pub host_table: u32,
    /// Priority of Ebbtide's routing policy rules, in pods and in the host; the one before and the seven after it are
    /// used too. If foreign rules use one of them in the host, the nearest free block of nine is used, lower ones
    /// first.
    pub rule_priority: u32,
    /// Whether a rule may be put in front of the kernel's rule for its table `local`, where the node has the address of
    /// one of its pods as well.
    pub local_rule: LocalRule,
    /// The links that are NICs, where the agent would decide otherwise, and their ipvlan modes.
    pub nics: LinkNames,
    /// Networks in which other plugins may give pods addresses, besides those of the interface's NIC and those that the
    /// node routes to the pod anyway.
    pub foreign_subnets: Vec<IpNet>,
    /// Whether a pod may use only networks of its own namespace and of those in `global_namespaces`. Multus has a
    /// setting of this name.
    pub namespace_isolation: bool,
    /// The namespaces whose networks every pod may name where namespaces are isolated. Empty: the agent's own,
    /// `kube-system` and `default`.
    pub global_namespaces: Vec<String>,
    /// The cloud whose metadata service says which addresses the NICs have, for networks with
    /// `ebbtide.io/addresses: metadata`.
    pub cloud: CloudSetting,
    /// The URL of that service, where it is not the cloud's own.
    pub metadata_endpoint: Option<String>,
    /// How often it is read, in seconds; not where the service itself reports changes.
    pub metadata_seconds: u64,
    /// How pods reach that service by the interfaces that Ebbtide makes, whatever the cloud.
    pub metadata_for_pods: PodMetadata,
    /// Whether packets that a pod sends with an address that is not its own are dropped and counted. To be turned off
    /// for pods that forward for others.
    pub spoof_guard: bool,
    /// Whether packets that pods send from their interfaces bypass the host's netfilter, and so foreign MASQUERADE
    /// rules. In l2 they do anyway.
    pub exempt_from_masquerade: bool,
    /// The API server's `--service-node-port-range`. UDP to one of these ports is a Service's, even if a socket of the
    /// host is bound to it: kube-proxy before 1.24 holds one open for each. Other UDP with a socket may be a tunnel's.
    pub node_port_range: PortRange,
    /// How long a released address cools down before it is assigned to another pod, in seconds.
    pub cooldown_seconds: u64,
    /// Whether the addresses of a StatefulSet's pod are kept for its next sandbox on this node. Needs the API server,
    /// which has a pod's owner.
    pub sticky_addresses: bool,
    /// Where the agent tells how it is doing.
    pub metrics: MetricsSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_network: None,
            service_cidrs: Vec::new(),
            via_host_cidrs: vec![IpNet::new_assert([169, 254, 0, 0].into(), 16)],
            mark: DEFAULT_MARK,
            host_bypass_mark: DEFAULT_HOST_BYPASS_MARK,
            pod_nic_marks: DEFAULT_POD_NICS,
            nic_marks: DEFAULT_NIC_MARKS,
            ignore_marks_of: Vec::new(),
            reply_table: 7700,
            host_table: 7700,
            rule_priority: 1000,
            local_rule: LocalRule::Auto,
            nics: LinkNames::default(),
            foreign_subnets: Vec::new(),
            namespace_isolation: false,
            global_namespaces: Vec::new(),
            cloud: CloudSetting::Auto,
            metadata_endpoint: None,
            metadata_seconds: 30,
            metadata_for_pods: PodMetadata::ViaHost,
            spoof_guard: true,
            exempt_from_masquerade: false,
            node_port_range: PortRange::NODE_PORTS,
            cooldown_seconds: 60,
            sticky_addresses: false,
            metrics: MetricsSettings::default(),
        }
    }
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not valid.
    #[error("the configuration file {path} is not valid: {field}: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// The field.
        field: String,
        /// The reason.
        reason: String,
    },
}

impl Settings {
    /// Reads the configuration file `path`.
    ///
    /// # Errors
    /// If the file cannot be read, has unknown fields, or a value is not valid.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: name.clone(),
            source,
        })?;
        Self::parse(&text).map_err(|(field, reason)| Error::Invalid {
            path: name,
            field,
            reason,
        })
    }

    /// Parses the file; absent, empty and null fields get their defaults.
    fn read(text: &str) -> Result<Self, (String, String)> {
        match yaml::read(text) {
            Ok(Value::Null) => return Ok(Self::default()),
            Ok(Value::Object(mut fields)) => {
                let all = fields.len();
                fields.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
                if fields.len() < all {
                    return serde_path_to_error::deserialize(Value::Object(fields))
                        .map_err(|error| (error.path().to_string(), error.inner().to_string()));
                }
            }
            _ => {}
        }
        // Errors from the text itself have the line.
        yaml::read_fields(text)
    }

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let settings = Self::read(text)?;
        for (field, bits) in [
            ("mark", settings.mark),
            ("hostBypassMark", settings.host_bypass_mark),
            ("podNicMarks", settings.pod_nic_marks),
        ] {
            if bits == 0 {
                return Err((field.into(), "at least one bit must be set".into()));
            }
        }
        let bits = settings.pod_nic_marks >> settings.pod_nic_marks.trailing_zeros();
        if !bits.wrapping_add(1).is_power_of_two() && bits != u32::MAX {
            return Err((
                "podNicMarks".into(),
                "the bits hold a number: they must be adjacent, as in 0x0f000000".into(),
            ));
        }
        if settings.nic_marks.count_ones() < 3 {
            return Err((
                "nicMarks".into(),
                "at least three bits must be set: one for replies, the others for the NICs".into(),
            ));
        }
        if let Some((field, reason)) = marks::conflict(&settings) {
            return Err((field.into(), reason));
        }
        if let Some((field, reason)) = tables::wrong(&settings) {
            return Err((field.into(), reason));
        }
        if let Some((field, reason)) = settings.nics.wrong() {
            return Err((field, reason));
        }
        let endpoint = settings.metadata_endpoint.as_deref();
        if let Some((field, reason)) = cloud::wrong(endpoint, settings.metadata_seconds) {
            return Err((field.into(), reason));
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(Settings::parse(""), Ok(Settings::default()));
        assert_eq!(
            Settings::parse("cooldownSeconds: 60\n"),
            Ok(Settings::default())
        );
    }

    #[test]
    fn absent_empty_and_null_say_the_same() {
        for text in [
            "null",
            "~",
            "# a comment alone\n",
            "---\n",
            "serviceCIDRs:",
            "serviceCIDRs: null",
            "{serviceCIDRs: null, defaultNetwork: null}",
            "defaultNetwork: \"\"",
            "defaultNetwork:\ncooldownSeconds: 60\n",
            "nics: null",
            "mark: null",
        ] {
            assert_eq!(Settings::parse(text), Ok(Settings::default()), "{text}");
        }
        let (field, _) = Settings::parse("nonsense: 1\nserviceCIDRs: null").unwrap_err();
        assert_eq!(field, "nonsense");
        assert!(Settings::parse("[]").is_err());
        let (field, reason) = Settings::parse("serviceCIDRs: [x]").unwrap_err();
        assert!(
            field == "serviceCIDRs[0]" && !reason.contains("serviceCIDRs"),
            "{reason}"
        );
    }

    #[test]
    fn bits_of_somebody_who_is_not_there_can_be_used() {
        let settings = Settings::parse("nicMarks: 0x70000\nignoreMarksOf: [calico]\n");
        assert_eq!(settings.map(|s| s.nic_marks), Ok(0x7_0000));
    }

    #[test]
    fn a_nic_s_mode_is_said_by_its_name_before_patterns() {
        let text = "nics: {modes: {'ens*': l3s, ens5: l2, '*6': l3}}";
        let nics = Settings::parse(text).unwrap().nics;
        for (nic, mode) in [
            ("ens5", Some("l2")),
            // The first pattern in alphabetical order.
            ("ens6", Some("l3")),
            ("ens7", Some("l3s")),
            ("eth0", None),
        ] {
            assert_eq!(nics.mode_of(nic).map(|mode| mode.as_str()), mode, "{nic}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, field) in [
            ("mark: 0", "mark"),
            ("hostBypassMark: 0", "hostBypassMark"),
            ("nicMarks: 64", "nicMarks"),
            ("mark: 0x2", "in common with nicMarks"),
            ("hostBypassMark: 0x2", "in common with nicMarks"),
            ("mark: 0x3000", "in common with hostBypassMark"),
            ("hostBypassMark: 0x100", "istio"),
            ("podNicMarks: 0", "podNicMarks"),
            ("podNicMarks: 0x5000000", "adjacent"),
            ("podNicMarks: 0x3", "in common with nicMarks"),
            ("podNicMarks: 0xf000", "in common with mark"),
            ("podNicMarks: 0x700", "istio"),
            ("nicMarks: 0x4006", "kube-proxy"),
            ("nicMarks: 0x8006", "kube-proxy"),
            ("nicMarks: 0x70000", "calico"),
            ("nicMarks: 0x8e", "aws-vpc-cni"),
            ("mark: 0x100", "istio"),
            ("ignoreMarksOf: [nobody]", "nobody"),
            ("replyTable: 254", "replyTable"),
            ("hostTable: 0", "hostTable"),
            ("rulePriority: 32766", "rulePriority"),
            ("nics: {exclude: [ens5, \"ens[\"]}", "nics.exclude[1]"),
            (
                "nics: {include: [a-name-that-is-too-long]}",
                "nics.include[0]",
            ),
            ("nics: {includes: []}", "nics.includes"),
            ("nics: {modes: {ens5: l4}}", "nics.modes.ens5"),
            (
                "nics: {modes: {a-name-that-is-too-long: l2}}",
                "nics.modes.a-name-that-is-too-long",
            ),
            ("foreignSubnets: [10.0.0.0/33]", "foreignSubnets[0]"),
            ("localRule: always", "localRule"),
            ("metadataForPods: no", "metadataForPods"),
            ("namespaceIsolation: maybe", "namespaceIsolation"),
            ("nodePortRange: 32767-30000", "nodePortRange"),
            ("serviceCIDRs: [nonsense]", "serviceCIDRs[0]"),
            ("servicecidr: []", "servicecidr"),
            ("defaultNetwork: a/b/c", "defaultNetwork"),
        ] {
            let (found, reason) = Settings::parse(text).unwrap_err();
            assert!(
                found == field || reason.contains(field),
                "{text}: {found}: {reason}"
            );
        }
    }
}
