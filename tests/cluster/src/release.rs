//! Releases of Kubernetes, and the options that each needs, from 1.20 on.

use std::fmt;

use serde_json::{Value, json};

use super::mode::ProxyMode;

/// A release of Kubernetes: 1.`minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    minor: u16,
}

impl Release {
    /// Returns release 1.`minor`.
    #[must_use]
    pub const fn new(minor: u16) -> Self {
        Self { minor }
    }

    /// Parses a program's answer to `--version`: `Kubernetes v1.36.2`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("v1.")?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok().map(Self::new)
    }

    /// Returns further arguments of kube-controller-manager and kube-scheduler. They turn off ports that nobody needs,
    /// so no free ones must be found.
    pub(super) fn controller_arguments(self) -> Vec<&'static str> {
        let mut arguments = vec!["--secure-port=0", "--leader-elect=false"];
        // The port without TLS, which was removed in 1.24.
        if self < Self::new(24) {
            arguments.push("--port=0");
        }
        arguments
    }

    /// Returns further arguments of the kubelet.
    pub(super) fn kubelet_arguments(self, runtime: &str) -> Vec<String> {
        let mut arguments = Vec::new();
        // The default was Docker until 1.24.
        if self < Self::new(24) {
            arguments.push("--container-runtime=remote".to_owned());
        }
        if self < Self::new(27) {
            arguments.push(format!("--container-runtime-endpoint={runtime}"));
        }
        arguments
    }

    /// Completes the kubelet's configuration.
    pub(super) fn complete_kubelet(self, config: &mut Value, runtime: &str) {
        if self >= Self::new(27) {
            config["containerRuntimeEndpoint"] = json!(runtime);
        }
        // cadvisor does not find the device of a file system behind bind mounts.
        if self < Self::new(25) {
            config["featureGates"] = json!({"LocalStorageCapacityIsolation": false});
        } else {
            config["localStorageCapacityIsolation"] = json!(false);
        }
        // From 1.35 on it does not start on cgroup v1 unless this allows it.
        if self >= Self::new(31) {
            config["failCgroupV1"] = json!(false);
        }
    }

    /// Returns kube-proxy's arguments for a mode, or the reason why this release has no such mode.
    pub(super) fn proxy_arguments(self, mode: ProxyMode) -> Result<Vec<String>, String> {
        let mut arguments = vec![format!("--proxy-mode={mode}")];
        if mode == ProxyMode::Nftables {
            if self < Self::new(29) {
                return Err(format!(
                    "kube-proxy of {self} has no mode nftables: 1.29 has"
                ));
            }
            if self < Self::new(31) {
                arguments.push("--feature-gates=NFTablesProxyMode=true".to_owned());
            }
        }
        Ok(arguments)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kubernetes 1.{}", self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_of_what_programs_say() {
        for (text, minor) in [
            ("Kubernetes v1.20.2", Some(20)),
            ("Kubernetes v1.36.2\n", Some(36)),
            ("Kubernetes v1.31.0-alpha.1+0123abc", Some(31)),
            ("Kubernetes v1.27+", Some(27)),
            ("Kubernetes v1.", None),
            ("Kubernetes", None),
            ("", None),
        ] {
            assert_eq!(Release::parse(text), minor.map(Release::new), "{text}");
        }
    }

    #[test]
    fn each_release_is_told_what_it_knows_and_needs() {
        let socket = "unix:///run/c.sock";
        let by_argument = "--container-runtime-endpoint=unix:///run/c.sock";
        let gate = json!({"featureGates": {"LocalStorageCapacityIsolation": false}});
        let field = json!({"localStorageCapacityIsolation": false});
        let newer =
            json!({"localStorageCapacityIsolation": false, "containerRuntimeEndpoint": socket});
        let newest = json!({"localStorageCapacityIsolation": false, "containerRuntimeEndpoint": socket,
            "failCgroupV1": false});
        let two = vec!["--container-runtime=remote", by_argument];
        let with_port = vec!["--secure-port=0", "--leader-elect=false", "--port=0"];
        let without = vec!["--secure-port=0", "--leader-elect=false"];
        for (minor, controllers, kubelet, config) in [
            (20, &with_port, two.clone(), &gate),
            (23, &with_port, two, &gate),
            (24, &without, vec![by_argument], &gate),
            (25, &without, vec![by_argument], &field),
            (26, &without, vec![by_argument], &field),
            (27, &without, vec![], &newer),
            (30, &without, vec![], &newer),
            (31, &without, vec![], &newest),
            (36, &without, vec![], &newest),
        ] {
            let release = Release::new(minor);
            assert_eq!(&release.controller_arguments(), controllers, "{release}");
            assert_eq!(release.kubelet_arguments(socket), kubelet, "{release}");
            let mut told = json!({});
            release.complete_kubelet(&mut told, socket);
            assert_eq!(&told, config, "{release}");
        }
    }

    #[test]
    fn each_release_has_the_modes_of_its_age() {
        let gate = "--feature-gates=NFTablesProxyMode=true";
        for (minor, mode, arguments) in [
            (20, ProxyMode::Iptables, Ok(vec!["--proxy-mode=iptables"])),
            (20, ProxyMode::Ipvs, Ok(vec!["--proxy-mode=ipvs"])),
            (28, ProxyMode::Nftables, Err("1.29")),
            (
                29,
                ProxyMode::Nftables,
                Ok(vec!["--proxy-mode=nftables", gate]),
            ),
            (
                30,
                ProxyMode::Nftables,
                Ok(vec!["--proxy-mode=nftables", gate]),
            ),
            (31, ProxyMode::Nftables, Ok(vec!["--proxy-mode=nftables"])),
            (36, ProxyMode::Nftables, Ok(vec!["--proxy-mode=nftables"])),
            (36, ProxyMode::Iptables, Ok(vec!["--proxy-mode=iptables"])),
        ] {
            match (Release::new(minor).proxy_arguments(mode), arguments) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{minor} {mode}"),
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
                (found, expected) => panic!("{minor} {mode}: {found:?}, not {expected:?}"),
            }
        }
    }
}
