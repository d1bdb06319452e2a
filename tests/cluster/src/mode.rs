//! The modes of kube-proxy, or none.

use std::{fmt, fs, path::Path, process::Command};

use ebbtide_vpc::skip::Need;

use super::{binaries::Binaries, release::Release};

/// How Services are served on a cluster's nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// kube-proxy with iptables rules.
    #[default]
    Iptables,
    /// kube-proxy with IPVS, the kernel's load balancer.
    Ipvs,
    /// kube-proxy with nftables rules.
    Nftables,
    /// No kube-proxy, as with a network plugin that replaces it.
    Nobody,
}

impl ProxyMode {
    /// Returns what a machine lacks if it cannot run this mode.
    #[must_use]
    pub const fn need(self) -> Need {
        match self {
            Self::Nftables => Need::Nft,
            Self::Iptables | Self::Ipvs | Self::Nobody => Need::Node,
        }
    }

    /// Returns why these programs cannot run this mode in this kernel; `None` if they can.
    #[must_use]
    pub fn missing(self, binaries: &Binaries) -> Option<String> {
        let program = match self {
            Self::Nobody => return None,
            Self::Iptables => "iptables",
            Self::Ipvs => "ipset",
            Self::Nftables => "nft",
        };
        let by_release = || match binaries.release("kube-proxy") {
            Ok(release) => self.missing_in(release),
            Err(error) => Some(format!("{error:#}")),
        };
        let kernel = match self {
            Self::Ipvs if !has_ipvs() => Some("this kernel has no ip_vs".to_owned()),
            _ => None,
        };
        let program = || match binaries.file(program) {
            Ok(_) => None,
            Err(error) => Some(format!("{error:#}")),
        };
        by_release().or(kernel).or_else(program)
    }

    fn missing_in(self, release: Release) -> Option<String> {
        release.proxy_arguments(self).err()
    }
}

/// Whether the kernel has IPVS, built in or as a module.
fn has_ipvs() -> bool {
    let module = || {
        Command::new("modprobe")
            .args(["-n", "-q", "ip_vs"])
            .status()
    };
    Path::new("/proc/net/ip_vs").exists()
        || fs::exists("/sys/module/ip_vs").unwrap_or_default()
        || module().is_ok_and(|status| status.success())
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
            Self::Nobody => "nobody",
        })
    }
}
