//! What a test may need and a machine may lack, with names for people and programs.
//!
//! A skipped test names what it lacked, and `cargo xtask test --require` takes the same names.

use std::fmt;

/// Something that a test needs and a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Need {
    /// An API server's programs: etcd, kube-apiserver, kubectl.
    Kube,
    /// An API server with admission policies: those of accounts (Kubernetes 1.30), and those that check addresses
    /// (1.31).
    Policies,
    /// moto, a Python package that acts as EC2.
    Moto,
    /// The programs of a cluster's node: kubelet, containerd and the programs that they run.
    Node,
    /// A machine that can hold guests, which a guest itself cannot.
    Host,
    /// The rights of root.
    Root,
    /// A kernel with ipvlan: this one, or a guest's.
    Ipvlan,
    /// A kernel with TCX (Linux 6.6).
    Tcx,
    /// `nft`, and a kernel that accepts its rules.
    Nft,
    /// A kernel with SCTP.
    Sctp,
    /// A kernel with modules that can be removed, and root to remove them.
    Modules,
    /// Permission to trace a child process, which a sandbox may deny.
    Ptrace,
    /// A CPU and a kernel with more registers than those of SSE.
    Xsave,
    /// Prometheus and promtool.
    Prometheus,
    /// The browser chromium.
    Chromium,
    /// A kernel whose BPF_PROG_TEST_RUN accepts the interface by which a packet came in.
    Ingress,
    /// The programs of clouds' images, unpacked packages of Debian's.
    Images,
    /// The programs of an older release, which `cargo xtask older` builds.
    Older,
}

impl Need {
    /// Returns its stable name for programs: one word in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kube => "kube",
            Self::Policies => "policies",
            Self::Moto => "moto",
            Self::Node => "node",
            Self::Host => "host",
            Self::Root => "root",
            Self::Ipvlan => "ipvlan",
            Self::Tcx => "tcx",
            Self::Nft => "nft",
            Self::Sctp => "sctp",
            Self::Modules => "modules",
            Self::Ptrace => "ptrace",
            Self::Xsave => "xsave",
            Self::Prometheus => "prometheus",
            Self::Chromium => "chromium",
            Self::Ingress => "ingress",
            Self::Images => "images",
            Self::Older => "older",
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_command_line_and_the_tests_use_the_same_names() {
        for need in Need::value_variants() {
            assert_eq!(Need::from_str(need.name(), false), Ok(*need), "{need}");
        }
    }
}
