//! The environment variables of a plugin's invocation, checked.

use std::{collections::HashMap, path::PathBuf};

use ebbtide_plugin::{cni::code, wire::Invocation};
use ebbtide_types::link_name::name_fault;
use serde::{Deserialize, Serialize};

use super::Failure;

/// An interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

impl Attachment {
    /// Reads and checks the two variables.
    ///
    /// # Errors
    /// If one is missing or does not have the form that the specification requires.
    pub fn parse(invocation: &Invocation) -> Result<Self, Failure> {
        let container_id = required("CNI_CONTAINERID", &invocation.container_id)?;
        let first = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest = container_id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !first || !rest {
            return Err(invalid(
                "CNI_CONTAINERID",
                container_id,
                "it must start with a letter or digit and go on with letters, digits, '_', '.' and '-'",
            ));
        }
        let interface = required("CNI_IFNAME", &invocation.if_name)?;
        if let Some(fault) = name_fault(interface) {
            return Err(Failure::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_IFNAME={interface:?} {fault}"),
                "correct the name in the pod's annotation k8s.v1.cni.cncf.io/networks, where it is from one",
            ));
        }
        Ok(Self {
            container_id: container_id.to_owned(),
            interface: interface.to_owned(),
        })
    }
}

/// Returns `CNI_NETNS` for a command that needs it.
pub(super) fn netns(invocation: &Invocation) -> Result<PathBuf, Failure> {
    required("CNI_NETNS", &invocation.netns).map(PathBuf::from)
}

fn required<'a>(variable: &str, value: &'a str) -> Result<&'a str, Failure> {
    if value.is_empty() {
        return Err(Failure::new(
            code::INVALID_ENVIRONMENT,
            format!("{variable} is not set"),
            "the runtime must set it, see the CNI specification",
        ));
    }
    Ok(value)
}

fn invalid(variable: &str, value: &str, rule: &str) -> Failure {
    Failure::new(
        code::INVALID_ENVIRONMENT,
        format!("{variable}={value:?} is not valid"),
        rule,
    )
}

/// The pod, if the runtime named one in `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    /// `K8S_POD_NAMESPACE`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `K8S_POD_NAME`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `K8S_POD_UID`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl PodIdentity {
    /// Reads `CNI_ARGS` (`KEY=VALUE;KEY=VALUE`). Other keys are ignored.
    #[must_use]
    pub fn parse(args: &str) -> Self {
        let mut map: HashMap<&str, &str> = args
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let mut take = |key| map.remove(key).unwrap_or_default().to_owned();
        Self {
            namespace: take("K8S_POD_NAMESPACE"),
            name: take("K8S_POD_NAME"),
            uid: take("K8S_POD_UID"),
        }
    }

    /// Returns `namespace/name`; without Kubernetes the container's name, which podman gives, or else its ID.
    #[must_use]
    pub fn or_container(&self, container_id: &str) -> String {
        match (self.namespace.as_str(), self.name.as_str()) {
            (_, "") => container_id.to_owned(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_not_be_are_refused() {
        for (container_id, if_name, bad) in [
            ("", "eth0", "CNI_CONTAINERID"),
            ("-x", "eth0", "CNI_CONTAINERID"),
            ("a/../b", "eth0", "CNI_CONTAINERID"),
            ("abc", "", "CNI_IFNAME"),
            ("abc", "sixteencharacter", "CNI_IFNAME"),
            ("abc", "a/b", "CNI_IFNAME"),
            ("abc", "..", "CNI_IFNAME"),
            ("abc", "%d", "CNI_IFNAME"),
            ("abc", "eth%d", "CNI_IFNAME"),
            ("abc", "net%", "CNI_IFNAME"),
            ("abc", "all", "CNI_IFNAME"),
            ("abc", "default", "CNI_IFNAME"),
            ("abc", "bonding_masters", "CNI_IFNAME"),
            ("abc", "lo", "CNI_IFNAME"),
            ("abc", "a b", "CNI_IFNAME"),
            ("abc", "a:0", "CNI_IFNAME"),
            ("abc", "eth0\n", "CNI_IFNAME"),
            ("abc", "\u{1b}[2J", "CNI_IFNAME"),
            ("abc", "a\u{7f}", "CNI_IFNAME"),
            ("abc", "a\u{9b}", "CNI_IFNAME"),
            ("abc", "a\u{202e}b", "CNI_IFNAME"),
            ("abc", "\u{e0}", "CNI_IFNAME"),
            ("a b", "eth0", "CNI_CONTAINERID"),
            ("a\nb", "eth0", "CNI_CONTAINERID"),
            (".a", "eth0", "CNI_CONTAINERID"),
            ("\u{e4}", "eth0", "CNI_CONTAINERID"),
        ] {
            let invocation = Invocation {
                container_id: container_id.into(),
                if_name: if_name.into(),
                ..Invocation::default()
            };
            let failure = Attachment::parse(&invocation).unwrap_err();
            assert_eq!(failure.code, code::INVALID_ENVIRONMENT);
            assert!(failure.message.contains(bad), "{}", failure.message);
        }
    }

    #[test]
    fn the_pod_is_read_from_the_runtimes_arguments() {
        let pod = PodIdentity::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u",
        );
        assert_eq!(pod.or_container("abc"), "default/web-0");
        assert_eq!(pod.uid, "u");
        let podman = PodIdentity::parse("IgnoreUnknown=1;K8S_POD_NAME=web");
        assert_eq!(podman.or_container("abc"), "web");
        assert_eq!(PodIdentity::parse("").or_container("abc"), "abc");
        assert_eq!(PodIdentity::parse(";;=;x").or_container("abc"), "abc");
    }
}
